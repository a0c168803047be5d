"""Load the examples of a task: from parquet files in the hub's layout, from the hub, or from the demo's source."""

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mpcformer.errors import DependencyError, UserInputError
from mpcformer.tasks.demo_source import load_movie_sentiment
from mpcformer.tasks.files import checked_texts
from mpcformer.tasks.labels import UNLABELLED, read_labels
from mpcformer.tasks.registry import EVAL, Task
from mpcformer.tasks.tables import parquet_table


@dataclass(frozen=True)
class Examples:
    """N examples in a fixed order.

    Args:
        ids: the N row numbers in the source.
        texts: N tuples of one or two texts.
        labels: N class indices, or numbers for regression; N times `UNLABELLED` where nobody knows them.
        groups: N split names; some tasks report several splits separately (MNLI matched and mismatched).
    """

    ids: list[int]
    texts: list[tuple[str, ...]]
    labels: list[float]
    groups: list[str]

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        return f"Examples({len(self)})"

    @property
    def has_labels(self) -> bool:
        """Whether every example has a label."""
        return not any(math.isnan(label) for label in self.labels)

    def select(self, indices: Sequence[int]) -> "Examples":
        """Return the examples at `indices`, in that order."""
        columns: tuple[list[Any], ...] = (self.ids, self.texts, self.labels, self.groups)
        return Examples(*([column[i] for i in indices] for column in columns))


def load_examples(
    task: Task, split: str, *, data_dir: Path | None = None, limit: int | None = None, labelled: bool = True
) -> Examples:
    """Load all examples of a split, or `limit` of them in an order fixed by hash, so that any prefix is a fair sample.

    Args:
        task: the task, from `get_task`.
        split: the name of a split, or "eval" for the split or splits that are reported.
        data_dir: a folder with `<split>*.parquet`, or its parent with a folder of the task's name; None for the hub,
            or PyPI for the demo task.
        limit: the most examples to return, at least 1.
        labelled: whether every row needs a label. If not, a split's labels may all be missing.

    Raises:
        UserInputError: there is no such split, it is empty or lacks a column, a label is not one of the task's, or a
            text is no string.
        DependencyError: there is nothing to load from.
    """
    check_limit(limit)
    splits = task.eval_splits if split == EVAL else (split,)
    parts = [_load_split(task, name, data_dir, labelled) for name in splits]
    return gathered([(*row, name) for part, name in zip(parts, splits, strict=True) for row in part], limit)


def check_limit(limit: int | None) -> None:
    """Check how many examples are asked for.

    Raises:
        UserInputError: fewer than one.
    """
    if limit is not None and limit < 1:
        raise UserInputError(f"--limit: {limit} is below 1", "give a positive number, or leave it out")


def gathered(rows: list[tuple[int, tuple[str, ...], float, str]], limit: int | None) -> Examples:
    """Return rows (id, texts, label, group) as examples: all, or `limit` of them in an order fixed by hash."""
    if limit is not None:
        rows = sorted(rows, key=lambda row: (_hash(row[1]), row[3], row[0]))[:limit]
    columns = [list(column) for column in zip(*rows, strict=True)]
    return Examples(*columns)


def carve_selection(examples: Examples, fraction: float) -> tuple[Examples, Examples]:
    """Split examples by hash into those to train on and those to select steps with. Equal texts stay together."""
    # This hash differs from the one that `limit` sorts by. With the same one a limited sample would be set aside whole.
    chosen = [int(_hash(("selection", *text))[:8], 16) < fraction * 2**32 for text in examples.texts]
    keep = [i for i, flag in enumerate(chosen) if not flag]
    select = [i for i, flag in enumerate(chosen) if flag]
    if not keep or not select:
        raise UserInputError(
            f"{len(examples)} training examples are too few to set {fraction:.0%} aside", "raise --limit"
        )
    return examples.select(keep), examples.select(select)


Row = tuple[int, tuple[str, ...], float]


def _hash(texts: tuple[str, ...]) -> str:
    return hashlib.sha256("\x1f".join(texts).encode()).hexdigest()


@dataclass(frozen=True)
class _Split:
    """A split as it was read: where from, its columns, and what it calls its classes if it says so."""

    source: str
    columns: dict[str, list[Any]]
    class_names: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"_Split({self.source})"


def _load_split(task: Task, split: str, data_dir: Path | None, labelled: bool) -> list[Row]:
    if data_dir is not None:
        read = _read_parquet(task, split, data_dir)
    elif task.hub_path:
        read = _read_hub(task, split)
    else:
        read = _Split(f"{task.name}/{split}", load_movie_sentiment(split))
    return _checked(task, read, labelled)


def _read_parquet(task: Task, split: str, data_dir: Path) -> _Split:
    if not data_dir.is_dir():
        raise UserInputError(f"--data-dir: {data_dir} is not a folder", "give the folder that holds the parquet files")
    for folder in (data_dir, data_dir / task.name):
        present = sorted(folder.glob("*.parquet"))
        files = [path for path in present if path.stem == split or path.stem.startswith(f"{split}-")]
        if files:
            table = parquet_table(files, files[0])
            asked = [name for name in (*task.text_columns, task.label_column) if name in table.columns]
            _check_columns(task, str(files[0]), table.columns)
            values = list(zip(*table.rows(asked), strict=True)) or [()] * len(asked)
            columns = {name: list(column) for name, column in zip(asked, values, strict=True)}
            return _Split(str(files[0]), columns, table.class_names.get(task.label_column, ()))
        if present:
            splits = sorted({path.stem.split("-")[0] for path in present})
            raise UserInputError(f"--split: {folder} has no split {split!r}", f"choose one of: {', '.join(splits)}")
    raise UserInputError(
        f"--data-dir: {data_dir} holds neither {split}*.parquet nor {task.name}/{split}*.parquet",
        "give the task's folder or its parent, in the Hugging Face hub's parquet layout",
    )


def _read_hub(task: Task, split: str) -> _Split:
    import datasets

    name = f"{task.hub_path} {task.hub_config or ''}".strip()
    load: Callable[..., Any] = datasets.load_dataset
    try:
        loaded = load(task.hub_path, task.hub_config, split=split)
    except ValueError:
        raise UserInputError(f"--split: {name} has no split {split!r}", "choose another split") from None
    except Exception as error:  # the hub's client raises errors of a dozen libraries
        raise DependencyError(
            f"{name} could not be loaded from the Hugging Face hub ({type(error).__name__})",
            "check the connection, or give --data-dir with the parquet files",
        ) from None
    _check_columns(task, name, loaded.column_names)
    names = getattr(loaded.features.get(task.label_column), "names", ())
    return _Split(name, loaded.to_dict(), tuple(names))


def _check_columns(task: Task, source: str, present: Sequence[str]) -> None:
    """Check that a split has the task's columns of text."""
    for column in task.text_columns:
        if column not in present:
            raise UserInputError(
                f"{source}: column {column!r} is missing; the columns are {', '.join(present)}",
                f"task {task.name} needs {list(task.text_columns)}; name the columns so, or give the file with --data",
            )


def _checked(task: Task, read: _Split, labelled: bool) -> list[Row]:
    source, columns = read.source, read.columns
    texts = list(zip(*(columns[column] for column in task.text_columns), strict=True))
    if not texts:
        raise UserInputError(f"{source} is empty", "choose another split")
    if task.label_column in columns:
        labels = read_labels(task, source, columns[task.label_column], names=read.class_names, labelled=labelled)
    elif labelled:
        raise UserInputError(
            f"{source}: column {task.label_column!r} is missing", "add the labels: training and scores need them"
        )
    else:
        labels = [UNLABELLED] * len(texts)
    rows = zip(texts, labels, strict=True)
    return [
        (index, checked_texts(source, index, task.text_columns, parts), label)
        for index, (parts, label) in enumerate(rows)
    ]
