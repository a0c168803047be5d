"""A model that the gateway serves, and what is public of it."""

import re
import threading
from collections.abc import AsyncGenerator, Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

from anyio import to_thread

from mpcformer.errors import UserInputError
from parties.ask.classifier import Answer, Classifier
from parties.gateway import replies
from parties.gateway.questions import Question
from parties.gateway.replies import RequestError

NAME = re.compile(r"[A-Za-z0-9_.-]{1,100}")
# Each question that waits for its turn takes a thread.
MOST_QUESTIONS = 32
Value = TypeVar("Value")


def check_name(name: str) -> str:
    """Return a name if it can be part of an address.

    Raises:
        UserInputError: it cannot.
    """
    if not NAME.fullmatch(name):
        raise UserInputError(
            f"--name: {name!r} cannot be part of an address", "give a name of letters, digits, points and dashes"
        )
    return name


@dataclass
class ServedModel:
    """A model under its name.

    Args:
        name: the last part of its address.
        classify: what answers.
        is_local: whether all parties run on this machine.
        max_length: to how many tokens texts are cut; None refuses longer ones.
    """

    name: str
    classify: Classifier
    is_local: bool
    max_length: int | None = None
    _n_asking: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def facts(self) -> dict[str, Any]:
        """Return what is public of the model, and who answers, as JSON values."""
        return {
            "name": self.name,
            "task": self.classify.task,
            "labels": self.classify.labels,
            "sha256": self.classify.model,
            "positions": self.classify.positions,
            "max_length": self.max_length,
            "local": self.is_local,
            "parties": self.classify.parties,
        }

    def answers(self, question: Question) -> Generator[Answer, None, None]:
        """Yield an answer for each text, as soon as it is known."""
        return self.classify.answers(question.texts, details=True, seen=question.seen)

    @contextmanager
    def asking(self) -> Iterator[None]:
        """Count a question that is being answered.

        Raises:
            RequestError: too many are.
        """
        with self._lock:
            if self._n_asking >= MOST_QUESTIONS:
                raise RequestError(
                    replies.NO_SESSION,
                    f"{self.name}: {MOST_QUESTIONS} questions are being answered already",
                    "ask again in a moment",
                )
            self._n_asking += 1
        try:
            yield
        finally:
            with self._lock:
                self._n_asking -= 1


async def in_threads(values: Generator[Value, None, None]) -> AsyncGenerator[Value, None]:
    """Yield what a generator gives, without blocking the event loop while it works."""
    try:
        while found := await to_thread.run_sync(_next, values):
            yield found[0]
    finally:
        # A server that stops cancels what it waits for, while a thread still works; that ends with its batch.
        with suppress(ValueError):
            values.close()


def _next(values: Generator[Value, None, None]) -> tuple[Value] | None:
    for value in values:
        return (value,)
    return None
