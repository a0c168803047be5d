"""The journal of a run: one JSON line for each finished batch. With --resume a run continues from its journal.

A batch is on disk before the next one is waited for. If the process is killed while it writes, the last line may be
incomplete; such a line is dropped.
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
    """The finished batches of one job, in order. No other process can open the same journal.

    Args:
        path: the file.
        facts: what the job is, as JSON values. The journal of another job is refused.
        resume: continue the file that exists instead of a new one.
        begin: the number of the job's batches before the first one of this journal, which has a part of the job.

    Raises:
        UserInputError: there is no file to resume, it belongs to another job or is damaged, or another process uses it.
    """

    def __init__(self, path: Path, facts: dict[str, Any], *, resume: bool = False, begin: int = 0) -> None:
        self._path, self._begin = path, begin
        self.batches: list[tuple[pb.Batch, pb.Batch]] = []
        self.n_resumed = 0
        head = json.loads(json.dumps({"job": facts}, default=str))
        if resume and not path.is_file():
            raise UserInputError(f"--resume: {path} does not exist", "start without --resume")
        # Other users of this machine must not read labels and logits.
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._held = _hold(path)
        if resume:
            self._read(head)
            self.n_resumed = len(self.batches)
            return
        self._held.truncate(0)
        self._append(head)

    def _read(self, head: dict[str, Any]) -> None:
        try:
            text = self._path.read_text(encoding="utf-8")
            whole, _, torn = text.rpartition("\n")
            lines = whole.splitlines()
            found, *entries = (json.loads(line) for line in lines) if lines else [None]
            self.batches = [_entry(entry, index) for index, entry in enumerate(entries, start=self._begin)]
            if lines and not (isinstance(found, dict) and isinstance(found.get("job"), dict)):
                raise ValueError("its first line names no job")
        except (json_format.ParseError, KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise UserInputError(f"--resume: {self._path} is damaged: {error}", "start without --resume") from None
        if found != head:
            different = [key for key in head["job"] if not found or found["job"].get(key) != head["job"][key]]
            raise UserInputError(
                f"--resume: {self._path} belongs to another job: {', '.join(different) or 'it is damaged'}",
                "give the same options, or start without --resume",
            )
        if torn:
            with self._path.open("r+b") as handle:
                handle.truncate(len((whole + "\n").encode()))

    @property
    def next_batch(self) -> int:
        """The number of the batch that comes next, counted in the whole job."""
        return self._begin + len(self.batches)

    @property
    def batch_plan(self) -> bytes:
        """The digest of the examples and their batches that the data owner gave; empty before the first batch."""
        return bytes(self.batches[0][1].batch_plan) if self.batches else b""

    @property
    def student(self) -> str:
        """The SHA-256 of the weights that the model owner gave, in hexadecimal; empty before the first batch."""
        return self.batches[0][0].student if self.batches else ""

    def add(self, model_owner: pb.Batch, data_owner: pb.Batch) -> None:
        """Add the next batch as each owner reported it. It is on disk when this returns.

        Raises:
            OSError: the batch could not be written.
        """
        entry = {"model_owner": model_owner, "data_owner": data_owner}
        self._append({name: json_format.MessageToDict(message) for name, message in entry.items()})
        self.batches.append((model_owner, data_owner))

    def close(self) -> None:
        """Close the file, so that other processes can open it."""
        self._held.close()

    def _append(self, value: dict[str, Any]) -> None:
        with self._path.open("a", encoding="utf-8") as handle:
            handle.write(json.dumps(value) + "\n")
            handle.flush()
            os.fsync(handle.fileno())


def check_free(path: Path) -> None:
    """Check that no other process works on a run.

    Args:
        path: the journal of the run.

    Raises:
        UserInputError: another process uses the journal.
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
