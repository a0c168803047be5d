"""Fine-tune a teacher: a checkpoint, trained on a task. The best epoch is chosen on part of the training set."""

import contextlib
from pathlib import Path
from typing import Any

from distill.model_card import base_model, base_model_of, tasks_of, write_card
from distill.recipe import TeacherRecipe
from distill.start.initialise import order_head
from distill.training.checks import check_numbers, check_precision
from distill.training.data import Batch
from distill.training.device import pick_device
from distill.training.loop import Options, Stage, train
from distill.training.prepare import Prepared, prepare, training_task
from distill.training.versions import versions
from distill.training.workspace import Workspace
from mpcformer.errors import UserInputError
from mpcformer.files import read_json, write_json
from mpcformer.modeling import load_checkpoint, load_tokenizer, resolve_checkpoint
from mpcformer.modeling.families.export import as_transformers, tie_shared
from mpcformer.modeling.folder import read_config, require_teacher
from mpcformer.modeling.tokenizer import Limits
from mpcformer.tasks import Task


def train_teacher(
    recipe: TeacherRecipe,
    out: Path,
    *,
    resume: bool = False,
    checkpoint_minutes: float = 5.0,
    tensorboard: Path | None = None,
) -> dict[str, Any]:
    """Fine-tune a teacher and save it as transformers' own class, with tokenizer, record and model card.

    Args:
        recipe: the options of the training.
        out: the new folder for the teacher.
        resume: whether to continue an interrupted training.
        checkpoint_minutes: the time between two checkpoints, in minutes.
        tensorboard: the folder for TensorBoard's events; None writes none.

    Returns:
        The contents of teacher.json.

    Raises:
        UserInputError: an option is wrong; all are checked before training starts.
    """
    task = training_task(recipe)
    work = Workspace(out, recipe, resume=resume)
    source, model, tokenizer, prepared = load_material(recipe)
    work.open()
    model.to(pick_device()).train()

    def loss(batch: Batch) -> Any:
        return model(**batch).loss.float()

    stage = Stage("teacher", recipe.epochs, recipe.learning_rate, loss, prepared.scorer(model))
    options = Options(recipe.seed, recipe.precision, checkpoint_minutes, tensorboard)
    log = train(model, [stage], prepared.data, work=work, options=options)
    return work.processes.on_main(
        lambda: _save(recipe, work, task, prepared, source=source, model=model, tokenizer=tokenizer, log=log)
    )


def _save(
    recipe: TeacherRecipe,
    work: Workspace,
    task: Task,
    prepared: Prepared,
    *,
    source: Path,
    model: Any,
    tokenizer: Any,
    log: list[dict[str, Any]],
) -> dict[str, Any]:
    as_transformers(model, read_config(source), task.labels).save_pretrained(work.folder)
    tokenizer.save_pretrained(work.folder)
    record: dict[str, Any] = {
        "task": task.name,
        "recipe": work.recipe,
        "base_model": base_model(recipe.model, source) or base_model_of(source),
        "after": tasks_of(source),
        "n_training": len(prepared.data.encoded),
        "n_selection": len(prepared.selection),
        "selection_score": max(row["selection_score"] for row in log),
        "log": log,
        "versions": versions(),
    }
    write_json(work.folder / "teacher.json", record)
    before: dict[str, Any] = {"base": record["base_model"], "after": record["after"]}
    write_card(work.folder, task=task, recipe=recipe, record=record, model=model, **before)
    work.finish()
    return record


def load_material(recipe: TeacherRecipe) -> tuple[Path, Any, Any, Prepared]:
    """Check a recipe, and return its checkpoint's folder, the model, the tokenizer and the examples.

    Raises:
        UserInputError: an option is wrong.
    """
    task = training_task(recipe)
    check_numbers(epochs=recipe.epochs, lr=recipe.learning_rate)
    check_precision(recipe.precision)
    source = resolve_checkpoint(recipe.model)
    require_teacher(source, "--model")
    model = load_checkpoint(source, num_labels=task.num_labels, task=task.name, seed=recipe.seed)
    tie_shared(model, read_config(source))
    with contextlib.suppress(UserInputError):  # a head for other classes is trained anew
        order_head(model, task, "--model")
    tokenizer = load_tokenizer(source)
    prepared = prepare(recipe, tokenizer, limits=Limits.of(model.config))
    return source, model, tokenizer, prepared


def columns_of(teacher: Path) -> tuple[list[str] | None, str | None]:
    """Return the columns of text and of labels that a teacher was told to read; None for those that it was not told."""
    path = teacher / "teacher.json"
    recipe = read_json(path).get("recipe", {}) if path.is_file() else {}
    return recipe.get("text_columns"), recipe.get("label_column")
