"""Classes are matched by name: those of a model, of a task and of a file may stand in different orders.

Where one side has no names but numbers, the order decides. Case, spaces, hyphens and underscores do not count, and some
names are short for others.
"""

import math
import re
from collections.abc import Sequence
from typing import Any

from mpcformer.errors import UserInputError
from mpcformer.tasks.registry import TASKS, Task

# What stands for the label of a row without one.
UNLABELLED = math.nan
SHORT = {"neg": "negative", "neu": "neutral", "pos": "positive"}
# Texts of a column are shown in an error only if they look like classes: few, short, and each found several times.
MOST_SHOWN, LONGEST_SHOWN = 20, 30


def default_names(n: int) -> tuple[str, ...]:
    """Return the names that transformers gives the classes of a model that has none."""
    return tuple(f"LABEL_{i}" for i in range(n))


def are_default(names: Sequence[str]) -> bool:
    """Return whether names are only numbers: those of `default_names`, or 0, 1, and so on."""
    return all(name in (f"LABEL_{i}", str(i)) for i, name in enumerate(names))


def model_names(config: Any) -> tuple[str, ...]:
    """Return the names of a model's classes in the order of its outputs; none for a regression.

    Args:
        config: a configuration of transformers.
    """
    if config.num_labels == 1:
        return ()
    named = {int(index): str(name) for index, name in config.id2label.items()}
    return tuple(named.get(i, f"LABEL_{i}") for i in range(config.num_labels))


def known_names(config: Any) -> tuple[str, ...]:
    """Return the names of a model's classes; where it has only numbers, those of the task that it was made for.

    Args:
        config: a configuration of transformers, or a student's description.
    """
    names = model_names(config)
    task = TASKS.get(getattr(config, "task", None) or "")
    return task.labels if task is not None and are_default(names) and len(task.labels) == len(names) else names


def matches(theirs: Sequence[str], ours: Sequence[str]) -> list[int | None]:
    """Return for each of their names its place among ours; None where none of ours means the same, or several do."""
    plain = [_plain(name) for name in ours]

    def place(name: str) -> int | None:
        if ours.count(name) == 1:
            return ours.index(name)
        return plain.index(_plain(name)) if plain.count(_plain(name)) == 1 else None

    return [place(name) for name in theirs]


def class_order(names: Sequence[str], task: Task, where: str) -> list[int] | None:
    """Return the order in which a model's outputs are those of the task's classes: logits[:, order].

    Args:
        names: the model's classes, from `model_names`.
        task: the task, which has as many classes.
        where: the option or the folder of the model, for the error.

    Returns:
        One output for each class; None if the order is the task's already, or one of both has no names.

    Raises:
        UserInputError: the names are not the same.
    """
    if are_default(names) or are_default(task.labels):
        return None
    order = matches(task.labels, names)
    if len(set(order) - {None}) != len(names):
        raise UserInputError(
            f"{where}: the model's classes are {', '.join(names)}; those of {task.name} are {', '.join(task.labels)}",
            "give a model of this task, or correct the names in id2label in its config.json",
        )
    return None if order == list(range(len(names))) else [i for i in order if i is not None]


def read_labels(
    task: Task, source: str, values: Sequence[Any], *, names: Sequence[str] = (), labelled: bool = True
) -> list[float]:
    """Return the labels of a column: indices of the task's classes, or numbers for a regression.

    Args:
        task: the task.
        source: the file or data set, for errors.
        values: the column: numbers, names of classes, or numbers written as text.
        names: what the file calls its classes 0, 1, and so on; empty if it does not say.
        labelled: whether every row needs a label. If not, all may be missing: null, empty, NaN, or a class of -1.

    Returns:
        The labels; `UNLABELLED` for each row if all are missing.

    Raises:
        UserInputError: a label is wrong, some are missing, or the file's classes are not the task's.
    """
    missing = [_is_missing(value, task) for value in values]
    if not labelled and all(missing):
        return [UNLABELLED] * len(values)
    if not labelled and any(missing):
        raise UserInputError(
            f"{source}, row {missing.index(True)}: the label is missing, and other rows have one",
            "give every row a label, or leave the column of labels out",
        )
    values = _numbers(task, source, values)
    if names and task.labels and not are_default(names) and not are_default(task.labels):
        places: dict[float, int | None] = dict(enumerate(matches(names, task.labels)))
        if any(places.get(value, 0) is None for value in values if isinstance(value, int | float)):
            raise UserInputError(
                f"{source}: the file's classes are {', '.join(names)}; those of {_model_or(task)} are"
                f" {', '.join(task.labels)}",
                _other_classes(task),
            )
        values = [places.get(value, value) if isinstance(value, int | float) else value for value in values]
    return [_checked(task, f"{source}, row {index}", value) for index, value in enumerate(values)]


def _plain(name: str) -> str:
    plain = re.sub(r"[-_\s]+", "", name.casefold())
    return SHORT.get(plain, plain)


def _is_missing(value: Any, task: Task) -> bool:
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
        return True
    return not task.is_regression and value in (-1, "-1")


def _numbers(task: Task, source: str, values: Sequence[Any]) -> list[Any]:
    """Return a column with the numbers of classes in the place of their names, and of text that is a number."""
    texts = {value for value in values if isinstance(value, str)}
    if not texts:
        return list(values)
    known: dict[str, Any] = {}
    if task.labels and all(isinstance(value, str) for value in values):
        known = dict(zip(texts, matches(list(texts), task.labels), strict=True))
    if not known or None in known.values():
        try:
            known = {text: _number(text) for text in texts}
        except ValueError:
            if not task.labels or not _look_like_classes(texts, len(values)):
                return list(values)  # the first wrong row is named
            shown = ", ".join(sorted(texts))
            theirs = f"those of {_model_or(task)} are {', '.join(task.labels)}"
            raise UserInputError(
                f"{source}: the file's classes are {shown}; {theirs}",
                _other_classes(task),
                told=f"{source}: the file's classes are others; {theirs}",
            ) from None
    return [known[value] if isinstance(value, str) else value for value in values]


def _number(text: str) -> float:
    """Return the number that a text is, as an int where it is written as one."""
    return int(text) if re.fullmatch(r"\s*[-+]?\d+\s*", text) else float(text)


def _look_like_classes(texts: set[str], n_rows: int) -> bool:
    return len(texts) <= min(MOST_SHOWN, n_rows // 2) and all(len(text) <= LONGEST_SHOWN for text in texts)


def _model_or(task: Task) -> str:
    return "the model" if task.is_own else f"task {task.name}"


def _other_classes(task: Task) -> str:
    if task.is_own:
        return "name the classes alike in the file and in id2label in the model's config.json"
    return "name the classes as the task does, or give data of your own with --data"


def _checked(task: Task, where: str, label: Any) -> float:
    low, high = task.label_range if task.is_regression else (0, task.num_labels - 1)
    if isinstance(label, int | float) and math.isfinite(label) and low <= label <= high:
        if task.is_regression:
            return float(label)
        if label == int(label):
            return int(label)
    remedy = "GLUE's test splits are unlabelled: use a validation split" if label == -1 else "correct the data"
    theirs = "the model's" if task.is_own else f"{task.name}'s"
    # A column of texts may have been taken for the labels, so only numbers are shown.
    shown = f"label {label!r}" if isinstance(label, int | float) else f"a label of type {type(label).__name__}"
    raise UserInputError(f"{where}: {shown} is outside {theirs} {low}..{high}", remedy)
