"""Load a teacher and give its student initial weights.

A student starts from the teacher fitted to the student's forms, from the teacher's weights as they are, from fresh
weights, or from a general student with the teacher's pooler and head.
"""

from pathlib import Path
from typing import Any, cast

import torch

from distill.recipe import DistillRecipe
from distill.start.fit import Report, fit
from distill.training.data import Data
from distill.training.workspace import Workspace
from mpcformer.console import console
from mpcformer.errors import UserInputError
from mpcformer.modeling import MPCFormerConfig, MPCFormerForSequenceClassification, load_checkpoint, load_tokenizer
from mpcformer.modeling.description import SIZES, described
from mpcformer.modeling.folder import read_config, require_teacher
from mpcformer.tasks import Task, class_order, model_names

Model = MPCFormerForSequenceClassification

# The sizes in which a student may differ from its teacher, and the command-line options that set them.
SIZE_OPTIONS = {"num_hidden_layers": "--layers", "intermediate_size": "--intermediate"}
# The weights that depend on the task; a student never takes them from a general student.
TASK_WEIGHTS = ("bert.pooler.", "classifier.")
FORMS = ("gelu", "softmax")
# What a general student must have as the student that takes its weights has it.
BODY = (*FORMS, *SIZES, "embedding_size", "projection", "score_buckets")


def load_pair(recipe: DistillRecipe, task: Task) -> tuple[Model, Model]:
    """Return the teacher and a student with the weights that it starts from, before any fit.

    Both are in evaluation mode. A student that is fitted later has the teacher's weights here, or fresh ones if it is
    smaller than its teacher.

    Raises:
        UserInputError: a folder or an option is wrong.
    """
    require_teacher(recipe.teacher)
    teacher = load_checkpoint(recipe.teacher, task=task.name, embedding=task.is_embedding)
    if not task.is_embedding and teacher.num_labels != task.num_labels:
        raise UserInputError(
            f"--teacher: {recipe.teacher} has {teacher.num_labels} outputs, task {task.name} needs {task.num_labels}",
            f"fine-tune a teacher first: mpcformer teacher --task {task.name} --out DIR",
        )
    if not task.is_embedding:
        order_head(teacher, task, f"--teacher: {recipe.teacher}")
    forms: dict[str, Any] = {"gelu": recipe.gelu, "softmax": recipe.softmax, "constant_norms": recipe.constant_norms}
    forms["strides"] = recipe.strides
    sizes = _smaller_sizes(recipe, teacher)
    if recipe.start == "random" or sizes:
        config = MPCFormerConfig(**{**teacher.config.to_dict(), **sizes, **forms})
        with torch.random.fork_rng():
            torch.manual_seed(recipe.seed)
            return teacher, MPCFormerForSequenceClassification(config).eval()
    student = load_checkpoint(recipe.teacher, task=task.name, embedding=task.is_embedding, **forms)
    if not task.is_embedding:
        order_head(student, task, f"--teacher: {recipe.teacher}")
    if recipe.general is not None:
        _take_body(student, recipe.general, recipe.teacher)
    return teacher, student


def order_head(model: Model, task: Task, where: str) -> None:
    """Put a model's outputs into the order of the task's classes, by name, and name them as the task does.

    Args:
        model: the model, which has as many outputs as the task has classes.
        task: the task.
        where: the option of the model, for the error.

    Raises:
        UserInputError: the model's classes have names, and they are not the task's.
    """
    order = class_order(model_names(model.config), task, where)
    if order is not None:
        with torch.no_grad():
            for tensor in (model.classifier.weight, model.classifier.bias):
                tensor.copy_(tensor[order].clone())
    if task.labels:
        model.config.id2label = dict(enumerate(task.labels))
        model.config.label2id = {label: index for index, label in enumerate(task.labels)}


def _smaller_sizes(recipe: DistillRecipe, teacher: Model) -> dict[str, int]:
    """Return the configuration fields in which the student is smaller than its teacher, with the student's values."""
    sizes: dict[str, int] = {}
    for name, value in (("num_hidden_layers", recipe.layers), ("intermediate_size", recipe.intermediate)):
        option, theirs = SIZE_OPTIONS[name], getattr(teacher.config, name)
        if value is None or value == theirs:
            continue
        if not 0 < value < theirs:
            raise UserInputError(
                f"{option}: {value} is not in 1..{theirs}", f"give at most {theirs}, the teacher's number"
            )
        if recipe.start in ("teacher", "general"):
            raise UserInputError(
                f"{option}: {value} needs another start than weights which have {theirs}",
                "choose --from fitted, or random",
            )
        sizes[name] = value
    return sizes


def _take_body(student: Model, general: Path, teacher: Path) -> None:
    """Copy a general student's weights, except those that depend on the task, into a student with the teacher's.

    Raises:
        UserInputError: the general student has other forms, sizes or tokens than the student.
    """
    ours = student.config
    theirs = described(read_config(general), str(general))
    for name in BODY:
        if (found := getattr(theirs, name)) != (wanted := getattr(ours, name)):
            raise UserInputError(
                f"--from: the general student {general} has {name} {found}, this student {wanted}",
                "make one that fits: mpcformer distill-general",
            )
    if load_tokenizer(general).get_vocab() != load_tokenizer(teacher).get_vocab():
        raise UserInputError(
            f"--from: the general student {general} reads other tokens than the teacher {teacher}",
            "make one from the BERT that the teacher started from: mpcformer distill-general --model",
        )
    body = load_checkpoint(general, seed=0).state_dict()
    student.load_state_dict({k: v for k, v in body.items() if not k.startswith(TASK_WEIGHTS)}, strict=False)


def fit_once(teacher: Model, student: Model, data: Data, n_tokens: int, work: Workspace) -> Report:
    """Fit the student to its teacher, or load the fitted weights if an interrupted run saved them.

    Nothing is done for a student with exact forms and the teacher's sizes, because its weights are the teacher's.

    Args:
        teacher: see `fit`.
        student: see `fit`; its weights are replaced.
        data: the training texts.
        n_tokens: about how many of their tokens the fit uses.
        work: the run's folder, where the fitted weights are saved.

    Returns:
        The fit's report.
    """
    config = student.config
    exact = is_exact(config, teacher.config) and not config.constant_norms
    if exact and not any(getattr(config, name) != getattr(teacher.config, name) for name in SIZE_OPTIONS):
        return []
    saved = work.load("fit")
    if saved:
        student.load_state_dict(saved[0])
        return cast(Report, saved[1]["report"])
    device = next(student.parameters()).device
    with console.status("fitting the student to its teacher"):
        report = work.processes.on_main(lambda: fit(teacher, student, data.first(n_tokens, device)))
    student.load_state_dict(work.processes.tensors_of_main(lambda: dict(student.state_dict())))
    work.save("fit", dict(student.state_dict()), {"stage": 0, "step": 0, "report": report})
    return report


def is_exact(config: MPCFormerConfig, teacher: MPCFormerConfig) -> bool:
    """Return whether a student computes activation and softmax as its teacher does."""
    return all(getattr(config, name) == getattr(teacher, name) for name in FORMS)
