"""Load the examples of a task: from parquet files in the hub's layout, from the hub, or from the demo's source."""

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from mpcformer.errors import DependencyError, UserInputError
from mpcformer.tasks.demo_source import load_movie_sentiment
from mpcformer.tasks.registry import EVAL, Task


@dataclass(frozen=True)
class Examples:
    """N examples in a fixed order.

    Args:
        ids: the N row numbers in the source.
        texts: N tuples of one or two texts.
        labels: N class indices, or numbers for regression.
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

    def select(self, indices: Sequence[int]) -> "Examples":
        """Return the examples at `indices`, in that order."""
        columns: tuple[list[Any], ...] = (self.ids, self.texts, self.labels, self.groups)
        return Examples(*([column[i] for i in indices] for column in columns))


def load_examples(task: Task, split: str, *, data_dir: Path | None = None, limit: int | None = None) -> Examples:
    """Load all examples of a split, or `limit` of them in an order fixed by hash, so that any prefix is a fair sample.

    Args:
        task: the task, from `get_task`.
        split: the name of a split, or "eval" for the split or splits that are reported.
        data_dir: a folder with `<split>*.parquet`, or its parent with a folder of the task's name; None for the hub,
            or PyPI for the demo task.
        limit: the most examples to return, at least 1.

    Raises:
        UserInputError: there is no such split, it is empty or lacks a column, a label is not one of the task's, or a
            text is no string.
        DependencyError: there is nothing to load from.
    """
    if limit is not None and limit < 1:
        raise UserInputError(f"--limit: {limit} is below 1", "give a positive number, or leave it out")
    splits = task.eval_splits if split == EVAL else (split,)
    parts = [_load_split(task, name, data_dir) for name in splits]
    rows = [(*row, name) for part, name in zip(parts, splits, strict=True) for row in part]
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


def _load_split(task: Task, split: str, data_dir: Path | None) -> list[Row]:
    if data_dir is not None:
        source, columns = _read_parquet(task, split, data_dir)
    elif task.hub_path:
        source, columns = _read_hub(task, split)
    else:
        source, columns = f"{task.name}/{split}", load_movie_sentiment(split)
    return _checked(task, source, columns)


def _read_parquet(task: Task, split: str, data_dir: Path) -> tuple[str, dict[str, list[Any]]]:
    if not data_dir.is_dir():
        raise UserInputError(f"--data-dir: {data_dir} is not a folder", "give the folder that holds the parquet files")
    for folder in (data_dir, data_dir / task.name):
        present = sorted(folder.glob("*.parquet"))
        files = [path for path in present if path.stem == split or path.stem.startswith(f"{split}-")]
        if files:
            columns: dict[str, list[Any]] = {}
            for path in files:
                try:
                    table = pq.read_table(path).to_pydict()
                except (OSError, ValueError) as error:
                    kind = type(error).__name__
                    raise UserInputError(f"{path} cannot be read as parquet ({kind})", "restore the file") from None
                for name, values in table.items():
                    columns.setdefault(name, []).extend(values)
            return str(files[0]), columns
        if present:
            splits = sorted({path.stem.split("-")[0] for path in present})
            raise UserInputError(f"--split: {folder} has no split {split!r}", f"choose one of: {', '.join(splits)}")
    raise UserInputError(
        f"--data-dir: {data_dir} holds neither {split}*.parquet nor {task.name}/{split}*.parquet",
        "give the task's folder or its parent, in the Hugging Face hub's parquet layout",
    )


def _read_hub(task: Task, split: str) -> tuple[str, dict[str, list[Any]]]:
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
    return name, loaded.to_dict()


def _checked(task: Task, source: str, columns: dict[str, list[Any]]) -> list[Row]:
    needed = [*task.text_columns, task.label_column]
    for column in needed:
        if column not in columns:
            raise UserInputError(
                f"{source}: column {column!r} is missing; the columns are {', '.join(columns)}",
                f"task {task.name} needs {needed}",
            )
    labels = columns[task.label_column]
    if not labels:
        raise UserInputError(f"{source} is empty", "choose another split")
    texts = list(zip(*(columns[column] for column in task.text_columns), strict=True))
    rows: list[Row] = []
    for index, (parts, label) in enumerate(zip(texts, labels, strict=True)):
        if not all(isinstance(part, str) for part in parts):
            raise UserInputError(
                f"{source}, row {index}: a text is {type(parts[0]).__name__}, not str", "correct the data"
            )
        rows.append((index, parts, _checked_label(task, f"{source}, row {index}", label)))
    return rows


def _checked_label(task: Task, where: str, label: Any) -> float:
    low, high = task.label_range if task.is_regression else (0, task.num_labels - 1)
    if isinstance(label, (int, float)) and not math.isnan(label) and low <= label <= high:
        if task.is_regression:
            return float(label)
        if label == int(label):
            return int(label)
    remedy = "GLUE's test splits are unlabelled: use a validation split" if label == -1 else "correct the data"
    # A column of texts may have been taken for the labels, so only numbers are shown.
    shown = f"label {label!r}" if isinstance(label, (int, float)) else f"a label of type {type(label).__name__}"
    raise UserInputError(f"{where}: {shown} is outside {task.name}'s {low}..{high}", remedy)
