"""General distillation: make one general student, on the texts of many tasks, from the BERT that teachers start from.

The general student has the student's forms of GeLU and softmax. The students of all tasks can start from it, instead of
from a fit to their own teachers. It matches hidden states and attention probabilities, so its texts need no labels.
Source: Jiao et al., TinyBERT, EMNLP 2020, section 3.2, where a large corpus is used.
"""

from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging as hf_logging

from distill.model_card import base_model
from distill.objectives.stages import general_stage
from distill.recipe import GeneralRecipe
from distill.start.initialise import fit_once
from distill.training.checks import check_numbers, check_precision, check_replaced
from distill.training.data import Data
from distill.training.device import pick_device
from distill.training.loop import Options, train
from distill.training.processes import current
from distill.training.versions import versions
from distill.training.workspace import Workspace
from mpcformer.errors import UserInputError
from mpcformer.files import write_json
from mpcformer.modeling import MPCFormerForSequenceClassification, load_checkpoint, load_tokenizer, resolve_checkpoint
from mpcformer.modeling.folder import require_teacher
from mpcformer.modeling.tokenizer import Limits
from mpcformer.tasks import Encoded, carve_selection, encode, get_task, load_examples

FILE_NAME = "general.json"


def distill_general(
    recipe: GeneralRecipe,
    out: Path,
    *,
    resume: bool = False,
    checkpoint_minutes: float = 5.0,
    tensorboard: Path | None = None,
) -> dict[str, Any]:
    """Make a general student and save it: weights, tokenizer and record. Its head is not trained.

    Args:
        recipe: the options of the training.
        out: the new folder for the general student, from which `distill_student` can start.
        resume: whether to continue an interrupted training.
        checkpoint_minutes: the time between two checkpoints, in minutes.
        tensorboard: the folder for TensorBoard's events; None writes none.

    Returns:
        The contents of general.json.

    Raises:
        UserInputError: an option is wrong; all are checked before training starts.
    """
    _check(recipe)
    work = Workspace(out, recipe, resume=resume)
    source = resolve_checkpoint(recipe.model)
    require_teacher(source, "--model")
    # Neither head is used.
    teacher = load_checkpoint(source, seed=0)
    student = load_checkpoint(source, gelu=recipe.gelu, softmax=recipe.softmax, seed=0)
    tokenizer = load_tokenizer(source)
    texts = _texts(recipe, tokenizer, limits=Limits.of(student.config))
    data = Data(texts, torch.zeros(len(texts), dtype=torch.int64), tokenizer.pad_token_id, recipe.batch_size)
    work.open()
    device = pick_device()
    teacher.to(device)
    student.to(device)
    report = fit_once(teacher, student, data, recipe.fit_tokens, work)
    stage = general_stage(recipe, teacher, student, data, tuple(tokenizer.all_special_ids))
    options = Options(recipe.seed, recipe.precision, checkpoint_minutes, tensorboard)
    log = train(student, [stage], data, work=work, options=options)
    record = {
        "tasks": list(recipe.tasks),
        "recipe": work.recipe,
        "base_model": base_model(recipe.model, source),
        "n_training": len(texts),
        "fit": report,
        "log": log,
        "versions": versions(),
    }
    work.processes.on_main(lambda: _save(work, student, tokenizer, record))
    return record


def _check(recipe: GeneralRecipe) -> None:
    """Check the options that need no data."""
    if not recipe.tasks or len(set(recipe.tasks)) < len(recipe.tasks):
        raise UserInputError(
            f"--task: {', '.join(recipe.tasks) or 'none'}", "give at least one task, and each task only once"
        )
    for name in recipe.tasks:
        get_task(name)
    check_numbers(
        epochs=recipe.epochs, lr=recipe.learning_rate, batch_size=recipe.batch_size, fit_tokens=recipe.fit_tokens
    )
    check_precision(recipe.precision)
    check_replaced(recipe.replaced)


def _texts(recipe: GeneralRecipe, tokenizer: Any, *, limits: Limits) -> list[Encoded]:
    """Return the texts of all tasks, interleaved evenly: the first texts, which the fit uses, come from all tasks."""
    found: list[tuple[float, Encoded]] = []
    for name in recipe.tasks:
        task = get_task(name)
        with current().first_here_first():
            examples = load_examples(task, task.train_split, data_dir=recipe.data_dir, limit=recipe.limit)
        training, _ = carve_selection(examples, recipe.selection_share)
        encoded = encode(tokenizer, training, limits=limits, max_length=recipe.max_length)
        found += [((place + 0.5) / len(encoded), text) for place, text in enumerate(encoded)]
    return [text for _, text in sorted(found, key=lambda row: row[0])]


def _save(work: Workspace, student: MPCFormerForSequenceClassification, tokenizer: Any, record: dict[str, Any]) -> None:
    hf_logging.disable_progress_bar()
    student.cpu().save_pretrained(work.folder)
    tokenizer.save_pretrained(work.folder)
    write_json(work.folder / FILE_NAME, record)
    work.finish()
