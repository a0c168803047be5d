"""How many sentences each data owner may ask a day, kept across restarts of the model owner."""

import datetime
import fcntl
import json
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mpcformer.errors import UserInputError
from mpcformer.files import write_json


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


class Budget:
    """Counts the sentences of each data owner by day (UTC), in a file, before their logits are told.

    A sentence is counted before it is computed, and the count is on disk before the computation begins: a crash can
    lose a data owner some sentences, but never the model owner's count. Several processes may share the file.

    Args:
        path: the file; None keeps no count.
        per_day: the most sentences a day for each data owner; None allows any number.
        now: the present time.

    Raises:
        UserInputError: the file is not one of this class, or cannot be written.
    """

    def __init__(self, path: Path | None, per_day: int | None, now: Callable[[], datetime.datetime] = _now) -> None:
        self._path, self._per_day, self._now = path, per_day, now
        self._lock = threading.Lock()
        if path is not None and per_day is not None:
            with self._held() as counts:
                self._today(counts)

    def charge(self, data_owner: str, n_sentences: int) -> int:
        """Count sentences of a data owner if its budget allows all of them.

        Returns:
            0 if they are counted, else the seconds until the next day begins.
        """
        if self._path is None or self._per_day is None or n_sentences == 0:
            return 0
        with self._lock, self._held() as counts:
            today = self._today(counts)
            used = today.get(data_owner, 0)
            if used + n_sentences > self._per_day:
                now = self._now()
                midnight = datetime.datetime.combine(
                    now.date() + datetime.timedelta(days=1), datetime.time(), now.tzinfo
                )
                return max(1, int((midnight - now).total_seconds()))
            today[data_owner] = used + n_sentences
            write_json(self._path, counts)
        return 0

    def _today(self, counts: dict[str, Any]) -> dict[str, int]:
        """Return today's counts; those of earlier days are dropped."""
        date = self._now().date().isoformat()
        # A clock that was set back must not open a new budget: the latest day counts.
        date = max(date, counts.get("date", ""))
        if counts.get("date") != date:
            counts.clear()
            counts.update(date=date, sentences={})
        sentences: dict[str, int] = counts["sentences"]
        return sentences

    @contextmanager
    def _held(self) -> Iterator[dict[str, Any]]:
        """Yield the file's content while no other process changes it."""
        assert self._path is not None
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            lock = os.open(self._path.with_name(f"{self._path.name}.lock"), os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise UserInputError(
                f"budget_file: {self._path}: {error.strerror}", "name a file in a folder to write to"
            ) from None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield self._read()
        finally:
            os.close(lock)

    def _read(self) -> dict[str, Any]:
        assert self._path is not None
        if not self._path.exists():
            return {}
        try:
            counts = json.loads(self._path.read_text())
            whole = isinstance(counts["date"], str) and all(isinstance(n, int) for n in counts["sentences"].values())
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            whole = False
        if not whole:
            raise UserInputError(
                f"budget_file: {self._path} is not a file of counts", "restore it, or remove it to count anew"
            )
        return dict(counts)
