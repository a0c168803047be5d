"""What each kind of experiment is given, and what it gives back."""

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from experiments.kept import Kept
from experiments.kinds.models import ModelCache
from experiments.spec.quantities import Row


@dataclass(frozen=True)
class Place:
    """Where a replay works.

    Args:
        out: its folder.
        data_dir: of real data; None: the hub.
        models: the cache.
        kept: rows of a record.
    """

    out: Path
    data_dir: Path | None
    models: ModelCache
    kept: Kept = field(default_factory=Kept)

    @property
    def runs(self) -> Path:
        """Folder of finished steps, one file or folder each."""
        return self.out / "runs"


@dataclass
class Found:
    """What was measured.

    Args:
        rows: of results.
        curves: by function, the points of its forms: {"x": [...], FORM: [...]}.
        examples: what scores were measured on, for the reader.
        teachers: of several learning rates, which was taken and how all scored on the examples set aside.
        n_trained, n_run: work that was not there already.
        n_kept: rows of a record.
    """

    rows: list[Row] = field(default_factory=list)
    curves: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    examples: dict[str, Any] = field(default_factory=dict)
    teachers: list[dict[str, Any]] = field(default_factory=list)
    n_trained: int = 0
    n_run: int = 0
    n_kept: int = 0


def remove(path: Path) -> None:
    """A file or a folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
