"""Distil an MPC-friendly student from a teacher: give it initial weights, then train it in two stages.

Our recipe starts from the teacher's weights, fitted to the student's forms in closed form (`distill.start.fit`). Stage
1 matches all hidden states, all attention probabilities and the logits together; stage 2 matches the logits alone. Both
stages keep the rows of 2Quad in a narrow range. In half of the texts some tokens are replaced, and the teacher gives
its logits for the changed texts (`distill.objectives.augment`).

The published recipe starts from the teacher's weights as they are. Stage 1 matches the raw attention scores of all
layers and all hidden states; stage 2 matches the logits.

There are two baselines: `objective` "labels" trains on the labels alone, and `start` "random" starts from fresh
weights. Instead of being fitted, a student can also start from a general student (`distill.general`).

Hidden states and scores are matched by the mean squared error over real tokens. Logits are matched by soft
cross-entropy at temperature 1, or by their squared error for a regression.

Source: Li et al., MPCFormer, ICLR 2023, section 3.2; Jiao et al., TinyBERT, EMNLP 2020. Unlike in the published code,
the teacher is in evaluation mode, the student has no dropout, and the best epoch is chosen on part of the training set.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.nn import functional as F
from transformers.utils import logging as hf_logging

from distill.cover import Texts, cover
from distill.model_card import base_model_of, tasks_of, write_card
from distill.objectives.stages import stages
from distill.ready import RUNS
from distill.recipe import ALSO, CHOICES, TRAINING_TEXTS, DistillRecipe
from distill.start.deviations import set_deviations
from distill.start.fit import Report
from distill.start.initialise import fit_once, is_exact, load_pair
from distill.start.positions import known_positions, repeat_positions
from distill.start.spans import layer_spans
from distill.training.calibrate import calibrate
from distill.training.checks import check_numbers, check_precision, check_replaced
from distill.training.device import pick_device
from distill.training.disturb import Vocabulary
from distill.training.loop import Options, train
from distill.training.moments import moments_of
from distill.training.prepare import Prepared, prepare, training_task
from distill.training.versions import versions
from distill.training.workspace import Workspace
from mpcformer.engines.registry import DEFAULT_ENGINE
from mpcformer.errors import UserInputError
from mpcformer.files import write_json
from mpcformer.modeling import MPCFormerConfig, MPCFormerForSequenceClassification, load_tokenizer
from mpcformer.modeling.description import check_precision as check_engine_precision
from mpcformer.modeling.folder import weights_digest
from mpcformer.modeling.precision import BITS, COMPACT, WIDE
from mpcformer.modeling.save import round_weights, save_student
from mpcformer.modeling.tokenizer import Limits
from mpcformer.tasks import Task


@dataclass(frozen=True)
class Distilled:
    """The result of a distillation before it is saved.

    Attributes:
        teacher: the teacher.
        student: the trained student.
        tokenizer: the tokenizer of both.
        prepared: the training examples and the selection part.
        fitted: the fit's report; empty without a fit.
        log: the training log, one row per epoch.
    """

    teacher: MPCFormerForSequenceClassification
    student: MPCFormerForSequenceClassification
    tokenizer: Any
    prepared: Prepared
    fitted: Report
    log: list[dict[str, Any]]


def distill_student(
    recipe: DistillRecipe,
    out: Path,
    *,
    resume: bool = False,
    checkpoint_minutes: float = 5.0,
    tensorboard: Path | None = None,
) -> dict[str, Any]:
    """Distil and calibrate a student, and save it: model, tokenizer, ranges.json, distillation.json, model card.

    Args:
        recipe: the options of the distillation.
        out: the new folder for the student.
        resume: whether to continue an interrupted distillation.
        checkpoint_minutes: the time between two checkpoints, in minutes.
        tensorboard: the folder for TensorBoard's events; None writes none.

    Returns:
        The contents of distillation.json.

    Raises:
        UserInputError: an option is wrong; all are checked before training starts.
    """
    _check(recipe)
    task = training_task(recipe)
    if task.is_embedding and (recipe.objective == "labels" or recipe.choose_by == "score" or recipe.also2):
        raise UserInputError(
            "objective, choose_by, also2: sentence embeddings have no labels", "leave these fields at their defaults"
        )
    work = Workspace(out, recipe, resume=resume)
    if "sinkhorn" in recipe.also2 and work.processes.size > 1:
        raise UserInputError(
            f"also2: sinkhorn compares all rows of a batch, of which {work.processes.size} processes have a share each",
            "start a single process, or leave sinkhorn out",
        )
    teacher, student = load_pair(recipe, task)
    forms = recipe.gelu, recipe.softmax, recipe.constant_norms
    check_engine_precision(recipe.engine_precision or WIDE, *forms, projection=teacher.config.projection)
    work.processes.check_same("teacher", lambda: weights_digest(recipe.teacher))
    if general := recipe.general:
        work.processes.check_same("general student", lambda: weights_digest(general))
    tokenizer = load_tokenizer(recipe.teacher)
    prepared = prepare(recipe, tokenizer, limits=Limits.of(student.config))
    work.open()
    device = pick_device()
    teacher.to(device)
    # In BERT, evaluation mode only turns dropout off; gradients are computed as usual.
    student.to(device).eval()
    ends = [last - 1 for _, last in layer_spans(len(teacher.bert.layers), len(student.bert.layers))]
    data = prepared.data
    set_deviations(student, teacher, data.encoded, pad_id=data.pad_id, teacher_layers=ends)
    options = Options(recipe.seed, recipe.precision, checkpoint_minutes, tensorboard)
    report = fit_once(teacher, student, data, recipe.fit_tokens, work) if recipe.start == "fitted" else []
    log = train(student, stages(recipe, task, teacher, student, prepared), data, work=work, options=options)
    made = Distilled(teacher, student, tokenizer, prepared, report, log)
    return work.processes.on_main(lambda: _save(recipe, work, task, made))


def _check(recipe: DistillRecipe) -> None:
    """Check the options that need neither data nor models."""
    check_numbers(lr1=recipe.learning_rate1, lr2=recipe.learning_rate2)
    if recipe.epochs1 < 0 or recipe.epochs2 < 0:
        raise UserInputError(
            f"--epochs1 {recipe.epochs1} --epochs2 {recipe.epochs2}: one of them is below 0", "give 0 to skip a stage"
        )
    for name, known in CHOICES.items():
        if getattr(recipe, name) not in known:
            option = {"start": "--from", "objective": "--objective"}.get(name, name)
            raise UserInputError(
                f"{option}: {getattr(recipe, name)!r} is unknown", f"choose one of: {', '.join(known)}"
            )
    if (recipe.start == "general") is not (recipe.general is not None):
        raise UserInputError(
            f"--from: start {recipe.start!r} was given with general student {recipe.general}",
            "give --from the folder of a general student",
        )
    if recipe.covers not in (None, TRAINING_TEXTS):
        raise UserInputError(f"covers: {recipe.covers!r} is unknown", f"give {TRAINING_TEXTS!r}, or leave it out")
    _check_also(recipe)
    check_precision(recipe.precision)
    if recipe.layer_rates is not None and not 0 < recipe.layer_rates <= 1:
        raise UserInputError(
            f"layer_rates: {recipe.layer_rates} is not above 0 and at most 1", "give a factor in this interval"
        )
    check_replaced(recipe.replaced)
    _check_engine_precision(recipe)
    if recipe.fit_tokens < 1:
        raise UserInputError(f"fit_tokens: {recipe.fit_tokens} is below 1", "give a positive number")


def _check_engine_precision(recipe: DistillRecipe) -> None:
    """Check the precision of the student and the bits of its weights."""
    precision = recipe.engine_precision or WIDE
    check_engine_precision(precision, recipe.gelu, recipe.softmax, recipe.constant_norms)
    if recipe.weight_bits is None:
        return
    if recipe.weight_bits not in BITS:
        raise UserInputError(
            f"--weight-bits: {recipe.weight_bits} is unknown", f"choose one of: {', '.join(map(str, BITS))}"
        )
    if precision != COMPACT:
        raise UserInputError(
            f"weight_bits: weights of {recipe.weight_bits} bits need the compact precision",
            "give engine_precision compact, or leave weight_bits out",
        )


def _check_also(recipe: DistillRecipe) -> None:
    """Check `also1` and `also2`: their values must be known, and the stages must be able to match them."""
    for name, known in ALSO.items():
        asked = getattr(recipe, name)
        if others := [value for value in asked if value not in known]:
            raise UserInputError(f"{name}: {others[0]!r} is unknown", f"choose among: {', '.join(known)}")
    if recipe.also2 and recipe.objective == "labels":
        raise UserInputError(
            f"also2: {recipe.also2[0]} has no place in a training on labels alone", "leave also2 empty"
        )
    if recipe.strides and recipe.match1 == "mixture":
        raise UserInputError(
            "match1: mixture runs layers of the teacher, which need the positions that strides drop",
            "leave match1 at its default, or leave strides out",
        )
    if recipe.also1 and recipe.match1 == "mixture":
        raise UserInputError(
            f"also1: {recipe.also1[0]} has no place beside match1 mixture, which matches logits alone",
            "leave also1 empty",
        )


def _save(recipe: DistillRecipe, work: Workspace, task: Task, made: Distilled) -> dict[str, Any]:
    teacher, student, prepared = made.teacher, made.student, made.prepared
    widen, known = recipe.covers is None, student.config.max_position_embeddings
    if widen and not is_exact(student.config, made.teacher.config):
        known = min(known, known_positions(prepared.data.encoded))
        repeat_positions(student, known)
    score = _scorer(task, teacher, prepared)
    scores = {"teacher": score(teacher), "student": score(student)}
    rounded = None
    if recipe.weight_bits is not None:
        seen = moments_of(student, prepared.data.encoded, pad_id=prepared.data.pad_id)
        rounded = round_weights(student, recipe.weight_bits, seen)
        scores[f"student, {recipe.weight_bits} bits"] = score(student)
    student.cpu().eval()
    encoded, pad_id = prepared.data.encoded, prepared.data.pad_id
    texts = Texts(encoded, prepared.selection_encoded, Vocabulary.of(made.tokenizer), pad_id, recipe.max_length)
    # A student whose rows are too long for compact rings is computed in wide ones.
    for precision in (recipe.engine_precision or WIDE, WIDE):
        student.config.precision = precision
        trained = calibrate(student, encoded, pad_id=pad_id)
        ranges, verdicts, coverage = cover(student, trained, texts, seed=recipe.seed, widen=widen)
        if precision == WIDE or verdicts[DEFAULT_ENGINE] == RUNS:
            break
    if isinstance(student.config, MPCFormerConfig) and task.labels:
        student.config.id2label = dict(enumerate(task.labels))
        student.config.label2id = {label: index for index, label in enumerate(task.labels)}
    hf_logging.disable_progress_bar()
    save_student(student, work.folder, rounded)
    made.tokenizer.save_pretrained(work.folder)
    ranges.save(work.folder)
    record = {
        "task": task.name,
        "recipe": work.recipe,
        "teacher": {"folder": str(recipe.teacher.resolve()), "sha256": weights_digest(recipe.teacher)},
        **({"general": {"sha256": weights_digest(recipe.general)}} if recipe.general else {}),
        "n_training": len(prepared.data.encoded),
        "n_selection": len(prepared.selection),
        "selection_score": scores,
        "fit": made.fitted,
        "log": made.log,
        "engines": verdicts,
        "coverage": {"known_positions": known, **coverage},
        **({"engine_precision": precision} if recipe.engine_precision else {}),
        "versions": versions(),
    }
    write_json(work.folder / "distillation.json", record)
    before: dict[str, Any] = {"base": base_model_of(recipe.teacher), "after": tasks_of(recipe.teacher)[:-1]}
    write_card(work.folder, task=task, recipe=recipe, record=record, model=student, ranges=ranges, **before)
    work.finish()
    return record


def _scorer(task: Task, teacher: MPCFormerForSequenceClassification, prepared: Prepared) -> Callable[[Any], float]:
    """Return the score of a model on the examples set aside: the task's, or the mean cosine with the teacher's."""
    if not task.is_embedding:
        return lambda model: prepared.scorer(model)()
    theirs = F.normalize(prepared.selection_logits(teacher), dim=-1)
    return lambda model: float((F.normalize(prepared.selection_logits(model), dim=-1) * theirs).sum(-1).mean())
