"""How many sentences each data owner may ask of a student in a day and in all, kept across restarts.

A budget bounds what is learnt about weights, so it belongs to the weights: they are counted by their digest. A student
that is replaced by another one has a new budget, and finds its own count if it comes back, under whatever name.
"""

import datetime
import fcntl
import json
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mpcformer.errors import UserInputError
from mpcformer.files import write_json
from parties.settings import metrics
from parties.settings.config import Limits

# The answer to a question if there is nothing left that a day brings back.
NEVER = -1


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


@dataclass(frozen=True)
class Account:
    """Whose sentences are counted, and for what.

    Args:
        data_owner: the id of the data owner.
        limits: how many sentences it may ask in a day and in all; None allows any number.
        weights: hex SHA-256 of the student's weights. It is empty for the run of a program, which may use any weights:
            it counts for all of them, and as if it asked the one of which the data owner has asked most.
        student: the name of the student, for metrics.
    """

    data_owner: str
    limits: Limits
    weights: str = ""
    student: str = ""


class Budget:
    """Counts the sentences of each data owner by day (UTC) and in all, in a file, before their logits are told.

    A sentence is counted before it is computed, and the count is on disk before the computation begins: a crash can
    lose a data owner some sentences, but never the model owner's count. Several processes may share the file. Nothing
    is counted for an account without a limit.

    Args:
        path: the file.
        now: the present time.
    """

    def __init__(self, path: Path, now: Callable[[], datetime.datetime] = _now) -> None:
        # Two names of one file are one budget: the lock lies beside the file itself.
        self._path, self._now = path.resolve(), now
        self._lock = threading.Lock()

    def open(self, weights: Sequence[str] = ()) -> None:
        """Check the file, and make its folder.

        Args:
            weights: the digests of the students for which the counts of an earlier release stand.

        Raises:
            UserInputError: the file is not one of this class, or cannot be written.
        """
        with self._lock, self._held() as counts:
            is_old = "students" not in counts
            today = self._today(counts)
            if is_old and weights and counts["in_all"]:
                counts["students"] = {
                    digest: {"sentences": dict(today), "in_all": dict(counts["in_all"])} for digest in weights
                }
                counts["sentences"], counts["in_all"] = {}, {}
                write_json(self._path, counts)

    def charge(self, account: Account, n_sentences: int) -> int:
        """Count sentences of a data owner if its budget allows all of them.

        Returns:
            0 if they are counted; the seconds until the next day begins if that day's budget allows them; else NEVER.
        """
        if account.limits == (None, None) or n_sentences == 0:
            return 0
        labels = account.student, account.data_owner
        # Both series begin with the first question, so that the first refusal is seen as an increase.
        spent, refused = metrics.budget_spent.labels(*labels), metrics.budget_refused.labels(*labels)
        with self._lock, self._held() as counts:
            self._today(counts)
            used = [n + n_sentences for n in self._used(counts, account)]
            word = self._word(account.limits, used, n_sentences)
            if word == 0:
                own = _own(counts, account.weights)
                for kept in (own["sentences"], own["in_all"]):
                    kept[account.data_owner] = kept.get(account.data_owner, 0) + n_sentences
                write_json(self._path, counts)
                spent.inc(n_sentences)
            else:
                refused.inc(n_sentences)
                used = [n - n_sentences for n in used]
            for period, left in zip(("day", "all"), _left(account.limits, used), strict=True):
                if left is not None:
                    metrics.budget_left.labels(*labels, period).set(left)
        return word

    def left(self, account: Account) -> Limits:
        """Return how many sentences a data owner may still ask today and in all; None stands for any number."""
        if account.limits == (None, None):
            return None, None
        with self._lock, self._held() as counts:
            self._today(counts)
            today, in_all = _left(account.limits, self._used(counts, account))
        # What is left in all bounds the day, too.
        return min(n for n in (today, in_all) if n is not None), in_all

    def _used(self, counts: dict[str, Any], account: Account) -> list[int]:
        """Return how many sentences an account has used today and in all."""

        def of(kept: dict[str, Any], period: str) -> int:
            return int(kept[period].get(account.data_owner, 0))

        students = counts["students"]
        chosen = [students[account.weights]] if account.weights in students else []
        chosen = chosen if account.weights else list(students.values())
        return [
            of(counts, period) + max([of(kept, period) for kept in chosen], default=0)
            for period in ("sentences", "in_all")
        ]

    def _word(self, limits: Limits, used: Sequence[int], n_sentences: int) -> int:
        """Return the answer to a question with which so many sentences would be used today and in all."""
        per_day, most = limits
        today, in_all = used
        if most is not None and in_all > most:
            return NEVER
        if per_day is None or today <= per_day:
            return 0
        if n_sentences > per_day:
            return NEVER
        now = self._now()
        midnight = datetime.datetime.combine(now.date() + datetime.timedelta(days=1), datetime.time(), now.tzinfo)
        return max(1, int((midnight - now).total_seconds()))

    def _today(self, counts: dict[str, Any]) -> dict[str, int]:
        """Return today's counts; those of earlier days are dropped, but not what was used in all."""
        date = self._now().date().isoformat()
        # A file of an earlier release counts the last day alone, or no student by itself.
        in_all = counts.setdefault("in_all", dict(counts.get("sentences", {})))
        students = counts.setdefault("students", {})
        # A clock that was set back must not open a new budget: the latest day counts.
        date = max(date, counts.get("date", ""))
        if counts.get("date") != date:
            counts.clear()
            counts.update(date=date, sentences={}, in_all=in_all, students=students)
            for kept in students.values():
                kept["sentences"] = {}
        sentences: dict[str, int] = counts["sentences"]
        return sentences

    @contextmanager
    def _held(self) -> Iterator[dict[str, Any]]:
        """Yield the file's content while no other process changes it."""
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
        if not self._path.exists():
            return {}
        try:
            counts = json.loads(self._path.read_text())
            kept = [{"in_all": {}} | counts, *counts.get("students", {}).values()]
            numbers = [n for each in kept for name in ("sentences", "in_all") for n in each[name].values()]
            whole = isinstance(counts["date"], str) and all(type(n) is int and n >= 0 for n in numbers)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            whole = False
        if not whole:
            raise UserInputError(
                f"budget_file: {self._path} is not a file of counts", "restore it, or remove it to count anew"
            )
        return dict(counts)


def _own(counts: dict[str, Any], weights: str) -> dict[str, Any]:
    """Return the counts to which an account's sentences are added."""
    if not weights:
        return counts
    own: dict[str, Any] = counts["students"].setdefault(weights, {"sentences": {}, "in_all": {}})
    return own


def _left(limits: Limits, used: Sequence[int]) -> Limits:
    today, in_all = (None if most is None else max(0, most - n) for most, n in zip(limits, used, strict=True))
    return today, in_all
