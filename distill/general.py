"""General distillation: give the BERT that teachers start from the student's forms once, on texts of many tasks.

The student of every task then starts from the general student instead of from a fit to its own teacher. What is matched
are hidden states and attention probabilities; texts need no labels.
Source: Jiao et al., TinyBERT, EMNLP 2020, section 3.2, there with a large corpus.
"""

from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging as hf_logging

from distill.model_card import base_model
from distill.objectives.objectives import general_stage
from distill.recipe import GeneralRecipe
from distill.start.start import fitted
from distill.training.loop import Data, Options, pick_device, train
from distill.training.prepare import check_numbers, check_precision, check_replaced
from distill.training.processes import current
from distill.training.workspace import Workspace
from distill.versions import versions
from mpcformer.errors import UserInputError
from mpcformer.files import write_json
from mpcformer.modeling import MPCFormerForSequenceClassification, load_checkpoint, load_tokenizer, resolve_checkpoint
from mpcformer.modeling.load import require_teacher
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
    """Make and save a general student: weights, tokenizer, record. It has no head: `distill_student` starts from it.

    Returns:
        What general.json holds.

    Raises:
        UserInputError: anything wrong with the recipe, found before training.
    """
    if not recipe.tasks or len(set(recipe.tasks)) < len(recipe.tasks):
        raise UserInputError(f"--task: {', '.join(recipe.tasks) or 'none'}", "give each task once, at least one")
    for name in recipe.tasks:
        get_task(name)
    check_numbers(
        epochs=recipe.epochs, lr=recipe.learning_rate, batch_size=recipe.batch_size, fit_tokens=recipe.fit_tokens
    )
    check_precision(recipe.precision)
    check_replaced(recipe.replaced)
    work = Workspace(out, recipe, resume=resume)
    source = resolve_checkpoint(recipe.model)
    require_teacher(source, "--model")
    teacher = load_checkpoint(source)
    student = load_checkpoint(source, gelu=recipe.gelu, softmax=recipe.softmax)
    tokenizer = load_tokenizer(source)
    texts = _texts(recipe, tokenizer, positions=student.config.max_position_embeddings)
    data = Data(texts, torch.zeros(len(texts), dtype=torch.int64), tokenizer.pad_token_id, recipe.batch_size)
    work.open()
    device = pick_device()
    teacher.to(device)
    student.to(device)
    report = fitted(teacher, student, data, recipe.fit_tokens, work)
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


def _texts(recipe: GeneralRecipe, tokenizer: Any, *, positions: int) -> list[Encoded]:
    """Of all tasks, each spread evenly over the whole: the first texts, to which a model is fitted, are of all."""
    found: list[tuple[float, Encoded]] = []
    for name in recipe.tasks:
        task = get_task(name)
        with current().first_here_first():
            examples = load_examples(task, task.train_split, data_dir=recipe.data_dir, limit=recipe.limit)
        training, _ = carve_selection(examples, recipe.selection_share)
        encoded = encode(tokenizer, training, positions=positions, max_length=recipe.max_length)
        found += [((place + 0.5) / len(encoded), text) for place, text in enumerate(encoded)]
    return [text for _, text in sorted(found, key=lambda row: row[0])]


def _save(work: Workspace, student: MPCFormerForSequenceClassification, tokenizer: Any, record: dict[str, Any]) -> None:
    hf_logging.disable_progress_bar()
    student.cpu().save_pretrained(work.folder)
    tokenizer.save_pretrained(work.folder)
    write_json(work.folder / FILE_NAME, record)
    work.finish()
