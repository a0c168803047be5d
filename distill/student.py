"""Distil the MPC-friendly student from a teacher, in MPCFormer's two stages.

Stage 1: mean squared error of the raw attention scores of all layers and of all hidden states, embeddings included,
over real tokens. Stage 2: soft cross-entropy with the teacher's logits at temperature 1, or their squared error for a
regression. The student starts from the teacher's weights. Two baselines leave parts of this out: `objective` labels
trains on the labels alone, `start` random starts from fresh weights.
Source: Li et al., MPCFormer, ICLR 2023, section 3.2; Jiao et al., TinyBERT, EMNLP 2020. Unlike the published code, the
teacher is in evaluation mode, the student's dropout is off, and steps are chosen inside the training set.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F
from transformers.utils import logging as hf_logging

from distill.calibrate import calibrate
from distill.deviations import set_deviations
from distill.loop import Batch, Options, Stage, pick_device, train
from distill.model_card import base_model_of, write_card
from distill.prepare import Prepared, check_numbers, check_precision, prepare
from distill.record import versions
from distill.workspace import Workspace
from mpcformer.errors import UserInputError
from mpcformer.files import sha256_file, write_json
from mpcformer.modeling import MPCFormerConfig, MPCFormerForSequenceClassification, load_checkpoint, load_tokenizer
from mpcformer.modeling.load import WEIGHTS
from mpcformer.tasks import Task, get_task


@dataclass(frozen=True)
class DistillRecipe:
    """How a student is made; part of the result's record.

    epochs1, learning_rate1: stage 1, the inner states. epochs2, learning_rate2: stage 2, the logits.
    linear_decay1: stage 1's rate falls to zero; the published recipe keeps it constant.
    start: whose weights the student starts from, the teacher's or fresh ones drawn from the seed.
    objective: distil, or labels: no distillation, one stage on the labels, epochs1 + epochs2 passes at learning_rate1.
    constant_norms: LayerNorms that divide by a learnt constant, as `MPCFormerConfig` takes them.
    """

    teacher: Path
    task: str
    data_dir: Path | None = None
    limit: int | None = None
    gelu: str = "quad"
    softmax: str = "2quad"
    epochs1: int = 4
    learning_rate1: float = 1e-4
    linear_decay1: bool = True
    epochs2: int = 2
    learning_rate2: float = 3e-5
    batch_size: int = 32
    max_length: int = 128
    seed: int = 0
    precision: str = "auto"
    selection_share: float = 0.05
    calibration_examples: int = 2000
    start: str = "teacher"
    objective: str = "distil"
    constant_norms: tuple[str, ...] = ()


CHOICES = {"start": ("teacher", "random"), "objective": ("distil", "labels")}
# Stage 1 epochs of the published recipe; stage 2 is 5 epochs at 1e-5.
PAPER_EPOCHS = {"cola": 50, "mnli": 5, "mrpc": 20, "sst2": 10, "stsb": 100, "qqp": 5, "qnli": 10, "rte": 50, "imdb": 30}


def paper_recipe(task: str) -> dict[str, Any]:
    """The published hyper-parameters of a task.

    Raises:
        UserInputError: MPCFormer did not publish any for it.
    """
    if task not in PAPER_EPOCHS:
        raise UserInputError(
            f"--recipe paper: MPCFormer published none for {task!r}", f"tasks with one: {', '.join(PAPER_EPOCHS)}"
        )
    return {
        "epochs1": PAPER_EPOCHS[task],
        "learning_rate1": 5e-5,
        "linear_decay1": False,
        "epochs2": 5,
        "learning_rate2": 1e-5,
        "max_length": 512 if task == "imdb" else 128,
    }


def distill_student(
    recipe: DistillRecipe,
    out: Path,
    *,
    resume: bool = False,
    checkpoint_minutes: float = 5.0,
    tensorboard: Path | None = None,
) -> dict[str, Any]:
    """Distil, calibrate and save a student: model, tokenizer, ranges.json, distillation.json, a model card.

    Returns:
        What distillation.json holds.

    Raises:
        UserInputError: anything wrong with the recipe, found before training.
    """
    task = get_task(recipe.task)
    check_numbers(
        lr1=recipe.learning_rate1, lr2=recipe.learning_rate2, calibration_examples=recipe.calibration_examples
    )
    if recipe.epochs1 < 0 or recipe.epochs2 < 0:
        raise UserInputError(
            f"--epochs1 {recipe.epochs1} --epochs2 {recipe.epochs2}: below 0", "give 0 to skip a stage"
        )
    for name, known in CHOICES.items():
        if getattr(recipe, name) not in known:
            option = "--from" if name == "start" else f"--{name}"
            raise UserInputError(
                f"{option}: {getattr(recipe, name)!r} is unknown", f"choose one of: {', '.join(known)}"
            )
    check_precision(recipe.precision)
    work = Workspace(out, recipe, resume=resume)
    teacher, student = _load_pair(recipe, task)
    tokenizer = load_tokenizer(recipe.teacher)
    prepared = prepare(
        task,
        tokenizer,
        data_dir=recipe.data_dir,
        limit=recipe.limit,
        max_length=recipe.max_length,
        batch_size=recipe.batch_size,
        selection_share=recipe.selection_share,
        positions=student.config.max_position_embeddings,
    )
    work.open()
    device = pick_device()
    teacher.to(device)
    # Evaluation mode turns dropout off, which is all it does in BERT; gradients flow all the same.
    student.to(device).eval()
    set_deviations(student, teacher, prepared.data.encoded, pad_id=prepared.data.pad_id)
    options = Options(recipe.seed, recipe.precision, checkpoint_minutes, tensorboard)
    log = train(student, _stages(recipe, task, teacher, student, prepared), prepared.data, work=work, options=options)
    return _save(recipe, work, task, prepared, teacher=teacher, student=student, tokenizer=tokenizer, log=log)


def _load_pair(
    recipe: DistillRecipe, task: Task
) -> tuple[MPCFormerForSequenceClassification, MPCFormerForSequenceClassification]:
    teacher = load_checkpoint(recipe.teacher, task=task.name)
    if teacher.num_labels != task.num_labels:
        raise UserInputError(
            f"--teacher: {recipe.teacher} has {teacher.num_labels} outputs, task {task.name} needs {task.num_labels}",
            f"fine-tune a teacher first: mpcformer teacher --task {task.name} --out DIR",
        )
    student = load_checkpoint(
        recipe.teacher,
        task=task.name,
        gelu=recipe.gelu,
        softmax=recipe.softmax,
        constant_norms=recipe.constant_norms,
    )
    if recipe.start == "random":
        with torch.random.fork_rng():
            torch.manual_seed(recipe.seed)
            student = MPCFormerForSequenceClassification(student.config).eval()
    return teacher, student


def _stages(
    recipe: DistillRecipe,
    task: Task,
    teacher: MPCFormerForSequenceClassification,
    student: MPCFormerForSequenceClassification,
    prepared: Prepared,
) -> list[Stage]:
    match = _matcher(teacher, student)

    def states(batch: Batch) -> torch.Tensor:
        return inner_loss(*match(batch, inner=True), batch["attention_mask"])

    def logits(batch: Batch) -> torch.Tensor:
        theirs, ours = match(batch, inner=False)
        return logit_loss(theirs.logits, ours.logits, task.is_regression)

    def labels(batch: Batch) -> torch.Tensor:
        return student(**batch).loss.float()  # type: ignore[no-any-return]

    if recipe.objective == "labels":
        epochs = recipe.epochs1 + recipe.epochs2
        return [Stage("labels", epochs, recipe.learning_rate1, labels, prepared.scorer(student))]
    return [
        Stage("stage 1 (states)", recipe.epochs1, recipe.learning_rate1, states, None, recipe.linear_decay1),
        Stage("stage 2 (logits)", recipe.epochs2, recipe.learning_rate2, logits, prepared.scorer(student)),
    ]


def _matcher(
    teacher: MPCFormerForSequenceClassification, student: MPCFormerForSequenceClassification
) -> Callable[..., tuple[Any, Any]]:
    def match(batch: Batch, inner: bool) -> tuple[Any, Any]:
        inputs: dict[str, Any] = {key: value for key, value in batch.items() if key != "labels"}
        inputs |= {"output_hidden_states": inner, "output_attention_scores": inner}
        with torch.no_grad():
            theirs = teacher(**inputs)
        return theirs, student(**inputs)

    return match


def inner_loss(theirs: Any, ours: Any, mask: torch.Tensor) -> torch.Tensor:
    """Mean squared error of scores and of hidden states, over real tokens, summed over layers.

    Args:
        theirs, ours: outputs with hidden_states (B, L, H) and attention_scores (B, A, L, L) per layer.
        mask: (B, L).
    """
    tokens = mask.float()[:, :, None]  # (B, L, 1)
    pairs = (mask[:, None, :, None] * mask[:, None, None, :]).float()  # (B, 1, L, L)
    loss = torch.zeros((), device=mask.device)
    for name, weight in (("hidden_states", tokens), ("attention_scores", pairs)):
        for a, b in zip(getattr(theirs, name), getattr(ours, name), strict=True):
            squared = (a.float() - b.float()) ** 2 * weight
            loss = loss + squared.sum() / (weight.sum() * (squared.numel() // weight.numel()))
    return loss


def logit_loss(theirs: torch.Tensor, ours: torch.Tensor, regression: bool) -> torch.Tensor:
    """Soft cross-entropy at temperature 1 of (B, C) logits, or mean squared error."""
    if regression:
        return F.mse_loss(ours.float(), theirs.float())
    return F.cross_entropy(ours.float(), theirs.float().softmax(-1))


def _save(
    recipe: DistillRecipe,
    work: Workspace,
    task: Task,
    prepared: Prepared,
    *,
    teacher: MPCFormerForSequenceClassification,
    student: MPCFormerForSequenceClassification,
    tokenizer: Any,
    log: list[dict[str, Any]],
) -> dict[str, Any]:
    scores = {"teacher": prepared.scorer(teacher)(), "student": prepared.scorer(student)()}
    student.cpu().eval()
    ranges = calibrate(student, prepared.data.encoded[: recipe.calibration_examples], pad_id=prepared.data.pad_id)
    if isinstance(student.config, MPCFormerConfig) and task.labels:
        student.config.id2label = dict(enumerate(task.labels))
        student.config.label2id = {label: index for index, label in enumerate(task.labels)}
    hf_logging.disable_progress_bar()
    student.save_pretrained(work.folder)
    tokenizer.save_pretrained(work.folder)
    ranges.save(work.folder)
    record = {
        "task": task.name,
        "recipe": work.recipe,
        "teacher": {"folder": str(recipe.teacher.resolve()), "sha256": sha256_file(recipe.teacher / WEIGHTS)},
        "n_training": len(prepared.data.encoded),
        "n_selection": len(prepared.selection),
        "selection_score": scores,
        "log": log,
        "versions": versions(),
    }
    write_json(work.folder / "distillation.json", record)
    base = base_model_of(recipe.teacher)
    write_card(work.folder, task=task, recipe=recipe, record=record, model=student, base=base, ranges=ranges)
    work.finish()
    return record
