"""A run's finished batches, one JSON line each, on disk before the next is waited for; --resume goes on from there.

A line is whole or it is not there: the last one of a killed process may be torn, and is dropped.
"""

import json
import os
from pathlib import Path
from typing import Any

from google.protobuf import json_format

from mpcformer.errors import UserInputError
from parties.stubs import parties_pb2 as pb

FILE_NAME = "journal.jsonl"


class Journal:
    """Finished batches of one job, in order.

    Args:
        path: the file.
        facts: the job; a journal of another one is refused.
        resume: go on with the file that is there.

    Raises:
        UserInputError: nothing to resume, or another job's journal.
    """

    def __init__(self, path: Path, facts: dict[str, Any], *, resume: bool = False) -> None:
        self._path = path
        self.batches: list[tuple[pb.Batch, pb.Batch]] = []
        self.n_resumed = 0
        head = json.loads(json.dumps({"job": facts}, default=str))
        if resume:
            self._read(head)
            self.n_resumed = len(self.batches)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        self._append(head)

    def _read(self, head: dict[str, Any]) -> None:
        if not self._path.is_file():
            raise UserInputError(f"--resume: {self._path} does not exist", "start without --resume")
        text = self._path.read_text()
        whole, _, torn = text.rpartition("\n")
        lines = whole.splitlines()
        found = json.loads(lines[0]) if lines else None
        if found != head:
            different = [key for key in head["job"] if not found or found["job"].get(key) != head["job"][key]]
            raise UserInputError(
                f"--resume: {self._path} is of another job: {', '.join(different) or 'it is damaged'}",
                "give the same options, or start without --resume",
            )
        for line in lines[1:]:
            entry = json.loads(line)
            owners = [json_format.ParseDict(entry[owner], pb.Batch()) for owner in ("model_owner", "data_owner")]
            self.batches.append((owners[0], owners[1]))
        if torn:
            with self._path.open("r+b") as handle:
                handle.truncate(len((whole + "\n").encode()))

    @property
    def batch_plan(self) -> bytes:
        """What the data owner said its examples and batches are, empty before the first batch."""
        return bytes(self.batches[0][1].batch_plan) if self.batches else b""

    @property
    def student(self) -> str:
        """Hex SHA-256 of the weights as their owner told it, empty before the first batch."""
        return self.batches[0][0].student if self.batches else ""

    def add(self, model_owner: pb.Batch, data_owner: pb.Batch) -> None:
        """The next batch, as each owner reported it; on disk when this returns.

        Raises:
            OSError: it could not be written.
        """
        entry = {"model_owner": model_owner, "data_owner": data_owner}
        self._append({name: json_format.MessageToDict(message) for name, message in entry.items()})
        self.batches.append((model_owner, data_owner))

    def _append(self, value: dict[str, Any]) -> None:
        with self._path.open("a", encoding="utf-8") as handle:
            handle.write(json.dumps(value) + "\n")
            handle.flush()
            os.fsync(handle.fileno())
