"""How many sentences each data owner may ask in a day and in all, kept across restarts of the model owner."""

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
from parties.settings import metrics

# The answer to a question if there is nothing left that a day brings back.
NEVER = -1


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


class Budget:
    """Counts the sentences of each data owner by day (UTC) and in all, in a file, before their logits are told.

    A sentence is counted before it is computed, and the count is on disk before the computation begins: a crash can
    lose a data owner some sentences, but never the model owner's count. Several processes may share the file.

    Args:
        path: the file; None keeps no count.
        per_day: the most sentences a day for each data owner; None allows any number.
        in_all: the most sentences for each data owner for as long as the file is kept; None allows any number.
        now: the present time.

    Raises:
        UserInputError: the file is not one of this class, or cannot be written.
    """

    def __init__(
        self,
        path: Path | None,
        per_day: int | None,
        in_all: int | None = None,
        now: Callable[[], datetime.datetime] = _now,
    ) -> None:
        # Two names of one file are one budget: the lock lies beside the file itself.
        self._path = None if path is None or (per_day is None and in_all is None) else path.resolve()
        self._per_day, self._in_all, self._now = per_day, in_all, now
        self._lock = threading.Lock()
        if self._path is not None:
            with self._held() as counts:
                self._today(counts)

    def charge(self, data_owner: str, n_sentences: int) -> int:
        """Count sentences of a data owner if its budget allows all of them.

        Returns:
            0 if they are counted; the seconds until the next day begins if that day's budget allows them; else NEVER.
        """
        if self._path is None or n_sentences == 0:
            return 0
        # Both series begin with the first question, so that the first refusal is seen as an increase.
        spent, refused = metrics.budget_spent.labels(data_owner), metrics.budget_refused.labels(data_owner)
        with self._lock, self._held() as counts:
            today, in_all = self._today(counts), counts["in_all"]
            used = today.get(data_owner, 0) + n_sentences, in_all.get(data_owner, 0) + n_sentences
            limits = self._per_day, self._in_all
            word = self._word(used, n_sentences)
            if word == 0:
                today[data_owner], in_all[data_owner] = used
                write_json(self._path, counts)
                spent.inc(n_sentences)
            else:
                refused.inc(n_sentences)
            for period, limit, n_used in zip(("day", "all"), limits, used, strict=True):
                if limit is not None:
                    left = limit - n_used + (n_sentences if word else 0)
                    metrics.budget_left.labels(data_owner, period).set(left)
        return word

    def _word(self, used: tuple[int, int], n_sentences: int) -> int:
        """Return the answer to a question with which so many sentences would be used today and in all."""
        today, in_all = used
        if self._in_all is not None and in_all > self._in_all:
            return NEVER
        if self._per_day is None or today <= self._per_day:
            return 0
        if n_sentences > self._per_day:
            return NEVER
        now = self._now()
        midnight = datetime.datetime.combine(now.date() + datetime.timedelta(days=1), datetime.time(), now.tzinfo)
        return max(1, int((midnight - now).total_seconds()))

    def _today(self, counts: dict[str, Any]) -> dict[str, int]:
        """Return today's counts; those of earlier days are dropped, but not what was used in all."""
        date = self._now().date().isoformat()
        # A file of an earlier release counts the last day alone.
        in_all = counts.setdefault("in_all", dict(counts.get("sentences", {})))
        # A clock that was set back must not open a new budget: the latest day counts.
        date = max(date, counts.get("date", ""))
        if counts.get("date") != date:
            counts.clear()
            counts.update(date=date, sentences={}, in_all=in_all)
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
            numbers = [*counts["sentences"].values(), *counts.get("in_all", {}).values()]
            whole = isinstance(counts["date"], str) and all(type(n) is int and n >= 0 for n in numbers)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            whole = False
        if not whole:
            raise UserInputError(
                f"budget_file: {self._path} is not a file of counts", "restore it, or remove it to count anew"
            )
        return dict(counts)
