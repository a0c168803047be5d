"""Rows of an earlier record that a replay reuses because they belong to the same models, measured in the same way.

The `origin` of a row says what the row was made of: `model` is the hash of everything that the model is made of
(`experiments.kinds.models`); `weights`, in the row of a teacher, is the digest of the trained weights, from which the
hashes of its students follow without the teacher; `measured` is the hash of the way the row was measured. A record can
therefore grow by a task or a seed at a time, on machines that share nothing else.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from experiments.records.recorded import load_recorded
from experiments.spec.quantities import Row
from experiments.spec.spec import digest
from mpcformer.errors import UserInputError

# Raise this number when the meaning of a score, or of what a private run counts, changes.
FORMAT = 2


class ReusedRows:
    """The rows that a replay may reuse.

    Args:
        rows: the rows of a record; rows without an origin are left out.
    """

    def __init__(self, rows: Iterable[Row] = ()) -> None:
        self._rows = {row.identity: row for row in rows if row.origin}

    @classmethod
    def load(cls, path: Path, experiment: str, scale: str) -> "ReusedRows":
        """Return the rows of a recorded results.json.

        Raises:
            UserInputError: the file is missing, belongs to another experiment or scale, or none of its rows has an
                origin.
        """
        rows = [Row.from_json(row) for row in load_recorded(path, experiment, scale, option="--keep")["rows"]]
        if not any(row.origin for row in rows):
            raise UserInputError(
                f"--keep: no row of {path} says which model it belongs to",
                "give a results.json that this version made of an experiment with students",
            )
        return cls(rows)

    def find(self, key: dict[str, Any], **origin: str) -> Row | None:
        """Return the row of that key if its origin has these values, else None."""
        row = self._rows.get(Row(key, {}).identity)
        return row if row is not None and all(row.origin.get(name) == value for name, value in origin.items()) else None


def how_measured(**settings: Any) -> str:
    """Return the hash of the settings that a row was measured with."""
    return digest({"format": FORMAT, **settings})[:20]
