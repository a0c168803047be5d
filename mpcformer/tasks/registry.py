"""The tasks: nine of GLUE, IMDb and the demo. Columns and label order are those of the Hugging Face hub."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from mpcformer.errors import UserInputError

# The split whose name stands for a task's `eval_splits`.
EVAL = "eval"
# The name of every task that is not in the registry: it follows from a model and a file, see `mpcformer.tasks.own`.
OWN_DATA = "own-data"
# The name of the task of giving sentence embeddings, for which no labels are needed.
EMBEDDING = "sentence-embedding"


@dataclass(frozen=True)
class Task:
    """A classification or regression task on one or two texts.

    Args:
        name: the name on the command line and of the folder with the parquet files.
        text_columns: the names of one or two columns.
        labels: the names of the classes, in label order; empty for regression.
        metrics: the metrics that GLUE reports, in its order.
        hub_path, hub_config: the arguments of `datasets.load_dataset`; the path of the demo task is empty.
        label_column: the name of the column of labels.
        label_range: the smallest and the largest label of a regression.
        train_split: the split to train on.
        eval_splits: the splits on which the reported score is measured.
    """

    name: str
    text_columns: tuple[str, ...]
    labels: tuple[str, ...]
    metrics: tuple[str, ...]
    hub_path: str = "nyu-mll/glue"
    hub_config: str | None = None
    label_column: str = "label"
    label_range: tuple[float, float] = (0.0, 0.0)
    train_split: str = "train"
    eval_splits: tuple[str, ...] = ("validation",)

    @property
    def is_own(self) -> bool:
        """Whether this is a task of somebody's own data, and not one of the registry."""
        return self.name == OWN_DATA

    @property
    def is_embedding(self) -> bool:
        """Whether a sentence's embedding is the answer."""
        return self.name == EMBEDDING

    @property
    def is_regression(self) -> bool:
        """Whether labels are numbers on a scale."""
        return not self.labels

    @property
    def num_labels(self) -> int:
        """The width of the logits, which is 1 for regression."""
        return len(self.labels) or 1


@dataclass(frozen=True)
class OwnData:
    """A file of one's own and what its columns mean; `mpcformer.tasks.own` reads it.

    Args:
        path: a file or folder of one of `mpcformer.tasks.tables.FORMATS`.
        text_columns: the one or two columns of text; empty: they are guessed by their names.
        label_column: the column of labels; None: it is guessed; "": there are none.
    """

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    path: Path
    text_columns: tuple[str, ...] = ()
    label_column: str | None = None


def _glue(name: str, columns: str, labels: str, metrics: str = "accuracy", **more: object) -> Task:
    return Task(
        name,
        tuple(columns.split()),
        tuple(labels.split()),
        tuple(metrics.split()),
        hub_config=name,
        **more,  # type: ignore[arg-type]
    )


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task("movie-sentiment", ("sentence",), ("negative", "positive"), ("accuracy",), hub_path=""),
        _glue("cola", "sentence", "unacceptable acceptable", "matthews"),
        _glue("sst2", "sentence", "negative positive"),
        _glue("mrpc", "sentence1 sentence2", "not_equivalent equivalent", "accuracy f1"),
        _glue("stsb", "sentence1 sentence2", "", "pearson spearman", label_range=(0.0, 5.0)),
        _glue("qqp", "question1 question2", "not_duplicate duplicate", "accuracy f1"),
        _glue(
            "mnli",
            "premise hypothesis",
            "entailment neutral contradiction",
            eval_splits=("validation_matched", "validation_mismatched"),
        ),
        _glue("qnli", "question sentence", "entailment not_entailment"),
        _glue("rte", "sentence1 sentence2", "entailment not_entailment"),
        _glue("wnli", "sentence1 sentence2", "not_entailment entailment"),
        Task("imdb", ("text",), ("neg", "pos"), ("accuracy",), hub_path="stanfordnlp/imdb", eval_splits=("test",)),
    )
}


def get_task(name: str) -> Task:
    """Return the task with this name.

    Raises:
        UserInputError: there is no such task; the message lists the names.
    """
    if name == OWN_DATA:
        raise UserInputError(
            f"--task: {name!r} stands for data of your own, which is not given", "give the file with --data"
        )
    if name == EMBEDDING:
        raise UserInputError(
            f"--task: {name!r} takes texts of your own and no labels", "give a file of texts with --train-data"
        )
    if name not in TASKS:
        raise UserInputError(f"--task: {name!r} is unknown", f"choose one of: {', '.join(TASKS)}")
    return TASKS[name]
