"""Data of one's own: a task that follows from a file and a model, without an entry in the registry."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mpcformer.errors import UserInputError
from mpcformer.tasks.files import TextFile, checked_texts, guess_label_column
from mpcformer.tasks.labels import (
    UNLABELLED,
    are_default,
    class_order,
    default_names,
    known_names,
    model_names,
    read_labels,
)
from mpcformer.tasks.load import Examples, check_limit, gathered, load_examples
from mpcformer.tasks.registry import EMBEDDING, OWN_DATA, OwnData, Task, get_task

# The one group of examples of one's own. A file's name might tell what other parties are not to know.
GROUP = "data"
MOST_CLASSES = 1000
CLASSIFICATION = ("accuracy", "f1", "matthews")
REGRESSION = ("pearson", "spearman")


@dataclass(frozen=True)
class JobData:
    """The examples of a job, and what a model's outputs mean for them.

    Args:
        task: the job's task.
        examples: the examples; they may have no labels.
        order: the order in which the model's outputs are those of the task's classes; None if they are in order.
    """

    task: Task
    examples: Examples
    order: list[int] | None

    def in_order(self, logits: Any) -> Any:
        """Return logits (N, C), which may be an array or a tensor, with the columns in the order of the classes."""
        return logits if self.order is None else logits[:, self.order]


def own_task(names: Sequence[str], metrics: Sequence[str] = ()) -> Task:
    """Return the task of a model's classes.

    Args:
        names: the classes in the order of the model's outputs; none for a regression.
        metrics: the metrics to report; none at all: accuracy, for two classes also F1, or the correlations.

    Raises:
        UserInputError: a metric does not fit.
    """
    usual = (CLASSIFICATION[:2] if len(names) == 2 else CLASSIFICATION[:1]) if names else REGRESSION
    task = Task(OWN_DATA, (), tuple(names), usual, hub_path="", label_column="", label_range=(-math.inf, math.inf))
    return with_metrics(task, metrics)


def embedding_task(own: OwnData) -> Task:
    """Return the task of giving the embeddings of a file's texts.

    Raises:
        UserInputError: see `open_own`; or a row has two texts, each of which has an embedding of its own.
    """
    columns = open_own(own)[0].columns
    if len(columns) != 1:
        raise UserInputError(
            f"{own.path}: the columns {' and '.join(columns)} are a pair of texts", "name one with --text-column"
        )
    everything = -math.inf, math.inf
    return Task(EMBEDDING, columns, (), ("cosine",), hub_path="", label_column="", label_range=everything)


def with_metrics(task: Task, metrics: Sequence[str]) -> Task:
    """Return a task that reports these metrics, or the task as it is if there are none.

    Raises:
        UserInputError: a metric is unknown, or is not one of such a task.
    """
    fitting = (
        REGRESSION if task.is_regression else tuple(m for m in CLASSIFICATION if m != "f1" or task.num_labels == 2)
    )
    for metric in metrics:
        if metric not in fitting:
            kind = "regression" if task.is_regression else f"task of {task.num_labels} classes"
            raise UserInputError(
                f"--metrics: {metric!r} is no metric of a {kind}", f"choose among: {', '.join(fitting)}"
            )
    return replace(task, metrics=tuple(dict.fromkeys(metrics))) if metrics else task


def job_task(name: str, n_outputs: int, names: Sequence[str] = ()) -> Task:
    """Return the task of a job by its name; that of own data follows from the model.

    Args:
        name: a name in the registry, or `OWN_DATA`.
        n_outputs: how many outputs the model has.
        names: the names of its classes, if they are known.
    """
    if name != OWN_DATA:
        return get_task(name)
    return own_task(() if n_outputs == 1 else names or default_names(n_outputs))


def load_job(
    name: str,
    split: str,
    config: Any,
    where: str,
    *,
    data_dir: Path | None = None,
    own: OwnData | None = None,
    limit: int | None = None,
) -> JobData:
    """Load the examples of a job for a model.

    Args:
        name, split: the job's task and split; the split of own data plays no part.
        config: the model's configuration.
        where: the option or the folder of the model, for errors.
        data_dir, limit: as `load_examples` takes them.
        own: the file of own data, if the job is on it.

    Raises:
        UserInputError: the model has another number of outputs than the task or other classes, gives no class, or the
            data are wrong.
        DependencyError: there is nothing to load from.
    """
    check_scored(config, where)
    if name == OWN_DATA and own is not None:
        task = own_task(best_names(own, model_names(config)))
        return JobData(task, load_own(own, task, limit=limit, labelled=False), None)
    task = get_task(name)
    check_outputs(config.num_labels, task, where)
    order = class_order(known_names(config), task, where)
    return JobData(task, load_examples(task, split, data_dir=data_dir, limit=limit, labelled=False), order)


def check_scored(config: Any, where: str) -> None:
    """Check that a model answers a text with one class or one number, so that a job can score it.

    Raises:
        UserInputError: it gives sentence embeddings, or labels of tokens.
    """
    given = "sentence embeddings" if config.output == "embedding" else "labels of tokens"
    if config.output == "embedding" or config.pooling == "each":
        raise UserInputError(
            f"{where}: the model gives {given}, which no job scores", "ask it with mpcformer ask, or from Python"
        )


def check_outputs(n_outputs: int, task: Task, where: str) -> None:
    """Check that a model has one output for each of the task's classes.

    Raises:
        UserInputError: it has another number.
    """
    if n_outputs != task.num_labels:
        raise UserInputError(
            f"{where}: the model has {n_outputs} outputs, task {task.name} needs {task.num_labels}",
            f"give a model of task {task.name}, or data of your own with --data",
        )


def file_classes(own: OwnData) -> tuple[str, ...]:
    """Return the names of the classes in a file's column of labels, in the order in which a model is to have them.

    They are the names that the file gives them, or else the sorted names that are found. Whole numbers from 0 have no
    names. Numbers with a decimal point are a regression, for which nothing is returned.

    Raises:
        UserInputError: there is no column of labels, a label is missing, or the labels are no classes.
    """
    file, label_column = open_own(own)
    if label_column is None:
        raise UserInputError(f"{own.path} has no column of labels", "name it with --label-column")
    if named := file.table.class_names.get(label_column):
        return named
    found = {label for (label,) in file.table.rows([label_column])}
    if bad := [label for label in found if label is None or label == "" or isinstance(label, list | dict)]:
        raise UserInputError(
            f"{own.path}, column {label_column!r}: a label is missing or is a {type(bad[0]).__name__}",
            "give every row a label",
        )
    texts = {str(label).strip() for label in found}
    if not all(re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?", text, re.IGNORECASE) for text in texts):
        if not 2 <= len(texts) <= MOST_CLASSES:
            raise UserInputError(
                f"{own.path}, column {label_column!r}: it holds {len(texts)} different names of classes",
                f"2 to {MOST_CLASSES} are possible: name the column of labels with --label-column",
            )
        return tuple(sorted(texts))
    if any("." in text or "e" in text.lower() for text in texts):
        return ()
    if {int(text) for text in texts} != set(range(len(texts))) or len(texts) < 2:
        raise UserInputError(
            f"{own.path}, column {label_column!r}: the classes are not numbered 0, 1, and so on",
            "number them from 0 without a gap, or give them names; a scale has a decimal point in one label or more",
        )
    return default_names(len(texts))


def load_own(own: OwnData, task: Task, *, limit: int | None = None, labelled: bool = True) -> Examples:
    """Load the examples of a file.

    Args:
        own: the file and its columns.
        task: what the labels are, from `own_task`.
        limit: the most examples to return, drawn by hash, at least 1.
        labelled: whether every row needs a label. If not, all labels may be missing.

    Raises:
        UserInputError: the file is no table or empty, a column is missing, a text is none, or a label is wrong.
    """
    check_limit(limit)
    file, label_column = open_own(own)
    if labelled and label_column is None:
        raise UserInputError(f"{own.path} has no column of labels", "name it with --label-column")
    columns = (*file.columns, *((label_column,) if label_column else ()))
    texts: list[tuple[str, ...]] = []
    values: list[Any] = []
    n = len(file.columns)
    for index, row in enumerate(file.table.rows(columns)):
        texts.append(checked_texts(str(own.path), index, file.columns, row[:n]))
        values += row[n:]
    if not texts:
        raise UserInputError(f"{own.path} has no row", "give a file with a text in it")
    labels = [UNLABELLED] * len(texts)
    if label_column:
        named = file.table.class_names.get(label_column, ())
        labels = read_labels(task, str(own.path), values, names=named, labelled=labelled)
    return gathered([(i, *row, GROUP) for i, row in enumerate(zip(texts, labels, strict=True))], limit)


def open_own(own: OwnData) -> tuple[TextFile, str | None]:
    """Open a file of own data, and return it with its column of labels if it has one.

    Raises:
        UserInputError: see `TextFile.open`; or the column of labels is missing or is one of text.
    """
    file = TextFile.open(own.path, own.text_columns)
    if own.label_column is None:
        return file, guess_label_column(file.table, file.columns)
    others = [name for name in file.table.columns if name not in file.columns]
    if own.label_column and own.label_column not in others:
        raise UserInputError(
            f"--label-column: {own.path} has no column {own.label_column!r} beside its columns of text;"
            f" it has {', '.join(others) or 'none'}",
            'give the name of a column that is there, or "" if there are no labels',
        )
    return file, own.label_column or None


def described(own: OwnData) -> str:
    """Return which columns of a file are read, and whether their names were guessed, in a few words.

    Raises:
        UserInputError: see `open_own`.
    """
    file, label_column = open_own(own)
    texts = " and ".join(file.columns) + (" (guessed)" if file.guessed else "")
    guessed = " (guessed)" if own.label_column is None else ""
    return f"{own.path}: texts in {texts}, " + (f"labels in {label_column}{guessed}" if label_column else "no labels")


def best_names(own: OwnData, names: tuple[str, ...]) -> tuple[str, ...]:
    """Return the names of a model's classes or, if it has none, those that a file gives as many classes.

    Raises:
        UserInputError: the file is no table, or a column is missing.
    """
    if not names or not are_default(names):
        return names
    file, label_column = open_own(own)
    told = file.table.class_names.get(label_column or "", ())
    return told if len(told) == len(names) else names
