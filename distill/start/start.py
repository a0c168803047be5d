"""What a student starts from: the teacher fitted to the student's forms, the teacher as it is, fresh weights, or a
general student with the teacher's pooler and head.
"""

from pathlib import Path
from typing import Any, cast

import torch

from distill.recipe import DistillRecipe
from distill.start.fit import Report, fit
from distill.training.loop import Data
from distill.training.workspace import Workspace
from mpcformer.console import console
from mpcformer.errors import UserInputError
from mpcformer.modeling import MPCFormerConfig, MPCFormerForSequenceClassification, load_checkpoint, load_tokenizer
from mpcformer.modeling.load import read_config, require_teacher
from mpcformer.tasks import Task

Model = MPCFormerForSequenceClassification

OPTIONS = {"num_hidden_layers": "--layers", "intermediate_size": "--intermediate"}
# What a task decides: a general student has none of it.
OF_TASK = ("bert.pooler.", "classifier.")
# As a plain BERT has them, whose configuration names none.
FORMS = {"gelu": "gelu", "softmax": "softmax"}
SIZES = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "max_position_embeddings",
    "type_vocab_size",
)


def load_pair(recipe: DistillRecipe, task: Task) -> tuple[Model, Model]:
    """The teacher, and a student of its weights, a general student's, or fresh ones; both in evaluation mode.

    Raises:
        UserInputError: anything wrong with the folders, or with what the student shall be.
    """
    require_teacher(recipe.teacher)
    teacher = load_checkpoint(recipe.teacher, task=task.name)
    if teacher.num_labels != task.num_labels:
        raise UserInputError(
            f"--teacher: {recipe.teacher} has {teacher.num_labels} outputs, task {task.name} needs {task.num_labels}",
            f"fine-tune a teacher first: mpcformer teacher --task {task.name} --out DIR",
        )
    forms: dict[str, Any] = {"gelu": recipe.gelu, "softmax": recipe.softmax, "constant_norms": recipe.constant_norms}
    changes: dict[str, int] = {}
    for name, value in (("num_hidden_layers", recipe.layers), ("intermediate_size", recipe.intermediate)):
        option, theirs = OPTIONS[name], getattr(teacher.config, name)
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
        changes[name] = value
    if recipe.start == "random" or changes:
        config = MPCFormerConfig(**{**teacher.config.to_dict(), **changes, **forms})
        with torch.random.fork_rng():
            torch.manual_seed(recipe.seed)
            return teacher, MPCFormerForSequenceClassification(config).eval()
    student = load_checkpoint(recipe.teacher, task=task.name, **forms)
    if recipe.general is not None:
        _take_body(student, recipe.general, recipe.teacher)
    return teacher, student


def _take_body(student: Model, general: Path, teacher: Path) -> None:
    """Give a student of the teacher's weights a general student's but for what the task decides."""
    ours = student.config
    theirs = FORMS | read_config(general)
    for name in (*FORMS, *SIZES):
        if (found := theirs.get(name)) != (wanted := getattr(ours, name)):
            raise UserInputError(
                f"--from: the general student {general} has {name} {found}, this student {wanted}",
                "make one that fits: mpcformer distill-general",
            )
    if load_tokenizer(general).get_vocab() != load_tokenizer(teacher).get_vocab():
        raise UserInputError(
            f"--from: the general student {general} reads other tokens than the teacher {teacher}",
            "make one from the BERT that the teacher started from: mpcformer distill-general --model",
        )
    body = load_checkpoint(general, **{name: getattr(ours, name) for name in FORMS}).state_dict()
    student.load_state_dict({k: v for k, v in body.items() if not k.startswith(OF_TASK)}, strict=False)


def fitted(teacher: Model, student: Model, data: Data, n_tokens: int, work: Workspace) -> Report:
    """The fitted start, made once: a resumed run has it behind itself. A student with exact forms is its teacher.

    Args:
        teacher, student: as `fit` takes them; the student's weights are replaced.
        data, n_tokens: the texts, and how many tokens of theirs to look at.
        work: where the fit is kept.

    Returns:
        The fit's report.
    """
    config = student.config
    exact = (config.gelu, config.softmax, tuple(config.constant_norms)) == ("gelu", "softmax", ())
    if exact and not any(getattr(config, name) != getattr(teacher.config, name) for name in OPTIONS):
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
