"""Rows of an earlier record that a replay keeps: those of the same models, measured in the same way.

A row says what it was made of: `model`, the hash of all that the model is made of (`experiments.kinds.models`);
`weights`, of a teacher, what it came out as, so that its students' hashes can be told without it; `measured`, the hash
of how. So a record grows, a task or a seed at a time, on machines that share nothing else.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from experiments.compare import identity, load_recorded
from experiments.spec.quantities import Row
from experiments.spec.spec import digest
from mpcformer.errors import UserInputError

# Bump when a score, or what a private run counts, comes to mean something else.
FORMAT = 1


class Kept:
    """Rows to be kept.

    Args:
        rows: of a record; those that do not say what they were made of are left out.
    """

    def __init__(self, rows: Iterable[Row] = ()) -> None:
        self._rows = {identity(row): row for row in rows if row.origin}

    @classmethod
    def load(cls, path: Path, experiment: str, scale: str) -> "Kept":
        """From a recorded results.json.

        Raises:
            UserInputError: missing, of another experiment or scale, or none of its rows can be kept.
        """
        rows = [Row.from_json(row) for row in load_recorded(path, experiment, scale, option="--keep")["rows"]]
        if not any(row.origin for row in rows):
            raise UserInputError(
                f"--keep: no row of {path} says which model it is of",
                "give a results.json that this version made of an experiment with students",
            )
        return cls(rows)

    def find(self, key: dict[str, Any], **origin: str) -> Row | None:
        """The row of that key, if it was made of the same."""
        row = self._rows.get(identity(Row(key, {})))
        return row if row is not None and all(row.origin.get(name) == value for name, value in origin.items()) else None


def how_measured(**asked: Any) -> str:
    """Hash of how a row is measured."""
    return digest({"format": FORMAT, **asked})[:20]
