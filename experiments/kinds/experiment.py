"""The input and the results that all kinds of experiment share."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from experiments.kinds.models import ModelCache
from experiments.records.reuse import ReusedRows
from experiments.spec.quantities import Row


@dataclass(frozen=True)
class Workplace:
    """The folders that a replay works in, and the rows that it may reuse.

    Args:
        out: the output folder of the replay.
        data_dir: the folder of real data; None means the hub.
        models: the cache of trained models.
        reused: rows of a record that need not be measured again.
    """

    out: Path
    data_dir: Path | None
    models: ModelCache
    reused: ReusedRows = field(default_factory=ReusedRows)

    @property
    def runs(self) -> Path:
        """The folder of finished steps, which has one file or folder for each step."""
        return self.out / "runs"


@dataclass
class Measured:
    """The results of an experiment.

    Args:
        rows: the rows of results.
        curves: the points of each function's forms, by function: {"x": [...], FORM: [...]}.
        examples: a description, by task, of the examples that scores were measured on.
        teachers: for each teacher that was trained at several learning rates, the chosen rate and the scores of all
            rates on the examples set aside.
        n_trained: the number of models that were trained.
        n_run: the number of other steps that were run.
        n_reused: the number of rows that were taken from a record.
    """

    rows: list[Row] = field(default_factory=list)
    curves: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    examples: dict[str, Any] = field(default_factory=dict)
    teachers: list[dict[str, Any]] = field(default_factory=list)
    n_trained: int = 0
    n_run: int = 0
    n_reused: int = 0
