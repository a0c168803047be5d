"""Several sessions that answer one job side by side, with the same dealer and model owner, or with replicas of them."""

import asyncio
import contextlib
import itertools
import queue
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any

from mpcformer.errors import MPCFormerError, UserInputError
from parties.ask.classifier import Answer, Classifier, Text, as_pair
from parties.session.data_side import BudgetError

# How many batches of the largest size a session takes at a time. Texts of about the same length share a batch, so a
# block of a single batch would be padded to its longest text.
BATCHES_A_BLOCK = 2
# How many blocks are taken from the input for each session before the first of them must be answered.
BLOCKS_AHEAD = 2
# How often a block is asked for, if the sessions that ask it die.
ATTEMPTS = 3


class SideBySide:
    """Answers like a `Classifier`, with several sessions at once. The answers are those of one session, in its order.

    The death of a session costs the batches that it was computing, which another one is asked for.

    Args:
        classifiers: one for each session; they ask equal models.
        largest: the most texts in a batch.
        on_close: called once when it is closed, after all sessions have ended.
    """

    def __init__(
        self, classifiers: Sequence[Classifier], largest: int, on_close: Callable[[], None] = lambda: None
    ) -> None:
        self._classifiers, self._largest, self._on_close = list(classifiers), largest, on_close
        self._free: queue.SimpleQueue[Classifier] = queue.SimpleQueue()
        for classifier in self._classifiers:
            self._free.put(classifier)
        self._closed = False

    @property
    def model(self) -> str:
        """The SHA-256 of the model's weights in hex digits."""
        return self._classifiers[0].model

    @property
    def labels(self) -> list[str]:
        """The names of the classes, in the order of the logits."""
        return self._classifiers[0].labels

    @property
    def task(self) -> str:
        """Its task, as Hugging Face names it."""
        return self._classifiers[0].task

    @property
    def positions(self) -> int:
        """How many tokens the model can read, with special tokens."""
        return self._classifiers[0].positions

    @property
    def parties(self) -> dict[str, str]:
        """The ids of the parties that compute with this one in the first session, by role."""
        return self._classifiers[0].parties

    def open(self) -> "SideBySide":
        """Open all sessions now; if that fails, all are closed."""
        try:
            with ThreadPoolExecutor(len(self._classifiers)) as pool:
                list(pool.map(Classifier.open, self._classifiers))
        except BaseException:
            self.close()
            raise
        return self

    def __call__(
        self, inputs: Text | Iterable[Text], *, batch_size: int | None = None, details: bool = False
    ) -> list[Answer] | Iterator[Answer]:
        """Answer one text, or several; see `Classifier.__call__`."""
        if isinstance(inputs, (str, Mapping, tuple)):
            return self._classifiers[0](inputs, batch_size=batch_size, details=details)
        found = self.answers(inputs, batch_size=batch_size, details=details)
        return found if isinstance(inputs, Iterator) else list(found)

    async def acall(
        self, inputs: Text | Iterable[Text], *, batch_size: int | None = None, details: bool = False
    ) -> list[Answer]:
        """Do as a call does, without blocking the event loop."""
        return await asyncio.to_thread(lambda: list(self(inputs, batch_size=batch_size, details=details)))

    def answers(
        self, inputs: Iterable[Text], *, batch_size: int | None = None, details: bool = False, seen: bool = False
    ) -> Generator[Answer, None, None]:
        """Yield an answer for each text, in order, as soon as it and all before it are known.

        Args:
            inputs, batch_size, details, seen: as for a `Classifier`.

        Raises:
            UserInputError: an input is no text.
            BudgetError: the model owner answers no more today; all answers before it were given.
            MPCFormerError: a party failed, again and again.
        """
        if isinstance(inputs, (str, Mapping)):
            raise UserInputError("answers: one text was given", "give a list of texts, or call the classifier itself")
        stop, options = threading.Event(), {"batch_size": batch_size, "details": details, "seen": seen}
        pool = ThreadPoolExecutor(len(self._classifiers), thread_name_prefix="asking")
        waiting: deque[Future[list[Answer]]] = deque()
        try:
            for block in _blocks(inputs, BATCHES_A_BLOCK * (batch_size or self._largest)):
                waiting.append(pool.submit(self._answered, block, options, stop))
                if len(waiting) > BLOCKS_AHEAD * len(self._classifiers):
                    yield from waiting.popleft().result()
            while waiting:
                yield from waiting.popleft().result()
        finally:
            # Whoever wants no more answers waits for the batches that are being computed.
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)

    def _answered(self, block: list[Text], options: Mapping[str, Any], stop: threading.Event) -> list[Answer]:
        for attempt in itertools.count(1):
            classifier = self._free.get()
            try:
                found: list[Answer] = []
                with contextlib.closing(classifier.answers(block, **options)) as answers:
                    for answer in answers:
                        found.append(answer)
                        if stop.is_set():
                            break
                return found
            except (BudgetError, UserInputError):
                raise
            except MPCFormerError:
                # The classifier opens another session the next time, perhaps in vain; another one may be well.
                if attempt == ATTEMPTS or stop.is_set():
                    raise
            finally:
                self._free.put(classifier)
        raise AssertionError("unreachable")

    def close(self) -> None:
        """End all sessions and what runs for them alone; nothing happens the second time."""
        if self._closed:
            return
        self._closed = True
        try:
            for classifier in self._classifiers:
                classifier.close()
        finally:
            self._on_close()

    def __enter__(self) -> "SideBySide":
        return self.open()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"SideBySide({len(self._classifiers)} sessions, {', '.join(self.labels)})"


def _blocks(inputs: Iterable[Text], size: int) -> Iterator[list[Text]]:
    """Yield the inputs in lists of `size`; a wrong one is named by its place among all."""
    numbered = enumerate(inputs)
    while block := [as_pair(index, text) for index, text in itertools.islice(numbered, size)]:
        yield [text[0] if len(text) == 1 else (text[0], text[1]) for text in block]
