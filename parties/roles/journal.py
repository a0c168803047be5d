"""A run's finished batches, one JSON line each, on disk before the next is waited for; --resume goes on from there.

A line is whole or it is not there: the last one of a killed process may be torn, and is dropped.
"""

import fcntl
import json
import os
from pathlib import Path
from typing import IO, Any

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
        if resume and not path.is_file():
            raise UserInputError(f"--resume: {path} does not exist", "start without --resume")
        # Labels and logits are for their owner alone.
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._held = _hold(path)
        if resume:
            self._read(head)
            self.n_resumed = len(self.batches)
            return
        self._held.truncate(0)
        self._append(head)

    def _read(self, head: dict[str, Any]) -> None:
        text = self._path.read_text()
        whole, _, torn = text.rpartition("\n")
        lines = whole.splitlines()
        try:
            found, *entries = (json.loads(line) for line in lines) if lines else [None]
            self.batches = [_entry(entry, index) for index, entry in enumerate(entries)]
        except (json.JSONDecodeError, json_format.ParseError, KeyError, TypeError, ValueError) as error:
            raise UserInputError(f"--resume: {self._path} is damaged: {error}", "start without --resume") from None
        if found != head:
            different = [key for key in head["job"] if not found or found["job"].get(key) != head["job"][key]]
            raise UserInputError(
                f"--resume: {self._path} is of another job: {', '.join(different) or 'it is damaged'}",
                "give the same options, or start without --resume",
            )
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

    def close(self) -> None:
        """Let other processes have the file."""
        self._held.close()

    def _append(self, value: dict[str, Any]) -> None:
        with self._path.open("a", encoding="utf-8") as handle:
            handle.write(json.dumps(value) + "\n")
            handle.flush()
            os.fsync(handle.fileno())


def check_free(path: Path) -> None:
    """Refuse to touch a run that another process is at.

    Raises:
        UserInputError: somebody holds the journal.
    """
    if path.is_file():
        _hold(path).close()


def _hold(path: Path) -> IO[bytes]:
    handle = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "r+b")
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        handle.close()
        what = f"--out: another process is at work on {path.parent}"
        raise UserInputError(what, "wait for it, or choose another folder") from None
    return handle


def _entry(entry: dict[str, Any], index: int) -> tuple[pb.Batch, pb.Batch]:
    model_owner, data_owner = (json_format.ParseDict(entry[name], pb.Batch()) for name in ("model_owner", "data_owner"))
    if {model_owner.batch, data_owner.batch} != {index}:
        raise ValueError(f"batch {model_owner.batch} or {data_owner.batch} stands where {index} belongs")
    return model_owner, data_owner
