"""A classifier that is asked like a Hugging Face pipeline, and whose text and weights stay with their owners."""

import asyncio
import itertools
import math
import threading
import time
import weakref
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any

import torch

from mpcformer.engines.base import BatchShape, PublicModel, load_public_model
from mpcformer.errors import PartyError, UserInputError
from mpcformer.modeling.tokenizer import Limits, TextTokenizer
from mpcformer.tasks import Encoded
from mpcformer.tasks.batching import LONGEST_TEXT
from mpcformer.tasks.files import is_unicode
from mpcformer.tasks.labels import known_names
from parties.ask import shapes
from parties.ask.options import AskOptions
from parties.ask.session import AskingSession
from parties.session.data_side import Asked
from parties.settings.config import DataOwnerConfig
from parties.settings.public_files import recorded_student
from parties.wire import causes

# Texts are grouped into batches among so many, and generators are read so far ahead.
CHUNK = 256
# How many shapes stay in stock while nobody asks: those that were asked for last.
RECENT = 2
OUT_OF_RANGE = "an activation of this text left the range that the model was calibrated for"
TO_CUT = "; to cut long texts, set max_length"
NO_CHARACTERS = "some of this text is no Unicode character: it was not read as UTF-8"
Text = str | tuple[str, str] | Mapping[str, str]
Answer = dict[str, Any]


class Classifier:
    """Answers texts privately. Call it as a Hugging Face text-classification pipeline.

    It may be called from several threads, which then take turns. A session that fails ends with an error, and the next
    call opens another one. Use it in a `with` block, or call `close`.

    Args:
        config: the data owner's configuration, which names dealer and model owner.
        options: how to ask.
        on_close: called once when it is closed, to end what runs for it alone.
    """

    def __init__(
        self, config: DataOwnerConfig, options: AskOptions, on_close: Callable[[], None] = lambda: None
    ) -> None:
        self._config, self._options = config, options
        folder = config.folder_of_model()
        self._public: PublicModel = load_public_model(folder)
        self._student = recorded_student(folder)
        self._tokenizer = TextTokenizer(folder, options.max_length, Limits.of(self._public.config))
        # What runs for this classifier alone also ends when it is forgotten, or with the interpreter.
        self._on_close = weakref.finalize(self, on_close)
        self._lock = threading.RLock()
        self._session: AskingSession | None = None
        # A session whose classifier is forgotten would take up a place at dealer and model owner.
        self._on_forgotten: weakref.finalize[..., Classifier] | None = None
        self._recent: list[BatchShape] = []
        self._closed = False
        positions = self._public.config.max_position_embeddings
        if options.max_length is not None and not 8 <= options.max_length <= positions:
            raise UserInputError(
                f"max_length: {options.max_length} is outside 8..{positions}", f"give at most {positions}"
            )
        self._positions = positions

    @property
    def model(self) -> str:
        """The SHA-256 of the model's weights in hex digits, as its owner told it with the public files."""
        return str(self._student)

    @property
    def labels(self) -> list[str]:
        """The names of the classes, in the order of the logits; one name for a regression.

        They are the model's own or, if it has none, those of the task that it was distilled for.
        """
        config = self._public.config
        return list(known_names(config)) or [str(config.id2label[0])]

    @property
    def task(self) -> str:
        """Its task, as Hugging Face names it: text-classification, feature-extraction or token-classification."""
        config = self._public.config
        if config.output == "embedding":
            return "feature-extraction"
        return "token-classification" if config.pooling == "each" else "text-classification"

    @property
    def positions(self) -> int:
        """How many tokens the model can read, with special tokens."""
        return self._positions

    @property
    def parties(self) -> dict[str, str]:
        """The ids of the parties that compute with this one, by role."""
        peers = {"dealer": self._config.dealer, "model-owner": self._config.model_owner}
        return {role: peer.id for role, peer in peers.items() if peer is not None}

    def open(self) -> "Classifier":
        """Open the session now, and begin to deal; otherwise the first call does it.

        If that fails, the classifier is closed.
        """
        try:
            with self._lock:
                self._opened()
        except BaseException:
            self.close()
            raise
        return self

    def __call__(
        self, inputs: Text | Iterable[Text], *, batch_size: int | None = None, details: bool = False
    ) -> list[Answer] | Iterator[Answer]:
        """Answer one text, or several.

        Args:
            inputs: a text; a pair of texts, as a tuple or as {"text": ..., "text_pair": ...}; or a list, a column of a
                data set, or a generator of these.
            batch_size: the most texts that share every round; the default is 16.
            details: whether answers also contain logits and what their batch took.

        Returns:
            A list with one answer for each text, in their order; a generator of them if `inputs` is a generator. An
            answer is {"label": name, "score": probability}, with the score that a plaintext pipeline gives: a softmax,
            or for regression the value. A text that was refused has {"label": None, "score": None, "refused": True,
            "reason": ...}. With `details` there are also "logits" (C numbers), "seconds" (of the whole batch, with
            dealing if nothing was dealt ahead), "online_seconds" (without the waiting for what was not dealt yet),
            "rounds", "bytes" (of the online part, both ways), "batch" (texts, tokens) and "dealt_ahead".

        Raises:
            UserInputError: an input is no text.
            BudgetError: the model owner answers no more today. What is answered is not lost: see `answers`.
            MPCFormerError: a party failed; the error names it. The next call opens another session.
        """
        if isinstance(inputs, (str, Mapping)) or _is_pair(inputs):
            one: Any = inputs
            return list(self.answers([one], batch_size=batch_size, details=details))
        found = self.answers(inputs, batch_size=batch_size, details=details)
        return found if isinstance(inputs, Iterator) else list(found)

    async def acall(
        self, inputs: Text | Iterable[Text], *, batch_size: int | None = None, details: bool = False
    ) -> list[Answer]:
        """Do as a call does, without blocking the event loop."""

        def call() -> list[Answer]:
            return list(self(inputs, batch_size=batch_size, details=details))

        return await asyncio.to_thread(call)

    def answers(
        self, inputs: Iterable[Text], *, batch_size: int | None = None, details: bool = False, seen: bool = False
    ) -> Generator[Answer, None, None]:
        """Yield an answer for each text, in order, as soon as it and all before it are known; see `__call__`.

        Args:
            inputs, batch_size, details: as for a call.
            seen: whether each answer also has "seen", a `parties.session.seen.Seen`: the first bytes that left for the
                model owner, and what the dealer was asked for. A text that was not asked, because it is too long or no
                Unicode, has none.
        """
        largest = self._options.largest if batch_size is None else batch_size
        if not 1 <= largest <= self._options.largest:
            raise UserInputError(
                f"batch_size: {batch_size} is outside 1..{self._options.largest}",
                f"give at most {self._options.largest}, or open with a larger batch_size",
            )
        if isinstance(inputs, (str, Mapping)):
            # Its letters, or its keys, would be asked one by one.
            raise UserInputError("answers: one text was given", "give a list of texts, or call the classifier itself")
        numbered = enumerate(inputs)
        while chunk := list(itertools.islice(numbered, CHUNK)):
            yield from self._chunk([as_pair(index, text) for index, text in chunk], largest, details, seen)

    def _chunk(self, texts: list[tuple[str, ...]], largest: int, details: bool, seen: bool) -> Iterator[Answer]:
        encoded: dict[int, Encoded] = {}
        found: dict[int, Answer] = {}
        for i, text in enumerate(texts):
            if not all(map(is_unicode, text)):
                found[i] = _refused(NO_CHARACTERS)
                continue
            if self._options.max_length is None and (longest := max(map(len, text))) > LONGEST_TEXT:
                found[i] = _refused(f"it has {longest} characters; at most {LONGEST_TEXT} are tokenised")
                continue
            encoded[i] = self._encode(tuple(part[:LONGEST_TEXT] for part in text))
            if (n := len(encoded[i].input_ids)) > self._positions:
                what = f"{n} tokens are more than the model's {self._positions} positions"
                found[i] = _refused(what + TO_CUT)
        short = [i for i in range(len(texts)) if i not in found]
        lengths = [len(encoded[i].input_ids) for i in short]
        sizes = [size for size in self._options.sizes if size <= largest] or list(self._options.sizes)
        plan = shapes.batches(lengths, self._options.padded_lengths, self._positions, sizes)
        # The batch of the first text goes first, so that each batch brings an answer that can be given at once, and is
        # not lost if the work ends early.
        plan.sort(key=lambda item: min(item[1]))
        wanted = [shape for shape, _ in plan]
        with self._lock:
            if len(plan) == 1:
                shape, members = plan[0]
                plan = [(self._opened().fitting(shape), members)]
            following, at = iter(plan), 0
            if plan:
                self._opened().coming([shape for shape, _ in plan])
        while at < len(texts):
            while at not in found:
                shape, members = next(following)
                chosen = [short[i] for i in members]
                answers = self._batch([encoded[i] for i in chosen], shape, details, seen)
                found |= dict(zip(chosen, answers, strict=True))
            yield found.pop(at)
            at += 1
        with self._lock:
            if self._session is not None and not self._session.has_ended:
                self._restock(wanted)

    def _batch(self, texts: Sequence[Encoded], shape: BatchShape, details: bool, seen: bool) -> list[Answer]:
        inputs = shapes.filled(texts, shape, self._tokenizer.pad_token_id)
        with self._lock:
            before, start = self._session, time.perf_counter()
            session = self._opened()
            try:
                asked = session.ask(inputs, seen=seen)
            except PartyError as error:
                # A session that was idle for too long may end just when it is asked again.
                if session is not before or not causes.is_kept_waiting(error, self._config.id):
                    raise
                asked = self._opened().ask(inputs, seen=seen)
            seconds = time.perf_counter() - start
        return [self._answer(asked, row, seconds, details) for row in range(len(texts))]

    def _opened(self) -> AskingSession:
        """Return the session; open one if there is none, or if the last one has failed."""
        if self._closed:
            raise UserInputError("this classifier is closed", "open another one")
        if self._session is not None and self._session.has_ended:
            self._end_session()
        if self._session is None:
            options = self._options
            session = AskingSession(self._config, self._public, self._student, largest=options.largest)
            length = shapes.padded_length(options.first[1], options.padded_lengths, self._positions)
            first = BatchShape(options.first[0], length)
            if options.deal_ahead is None:
                session.stock(self._recent or [first], options.ahead)
            else:
                try:
                    session.deal_and_leave([first] * options.deal_ahead)
                except BaseException:
                    # Nothing may be asked in a session that the dealer has not left.
                    session.close()
                    raise
            self._session = session
            self._on_forgotten = weakref.finalize(self, _forget, session)
            self._on_forgotten.atexit = False
        return self._session

    def _end_session(self) -> None:
        if self._on_forgotten is not None:
            self._on_forgotten.detach()
        session, self._session = self._session, None
        if session is not None:
            session.close()

    def _restock(self, asked: Sequence[BatchShape]) -> None:
        for shape in asked:
            if shape in self._recent:
                self._recent.remove(shape)
            self._recent = [shape, *self._recent][:RECENT]
        if self._session is not None and self._options.deal_ahead is None:
            self._session.stock(self._recent, self._options.ahead)

    def _encode(self, text: tuple[str, ...]) -> Encoded:
        return Encoded(*self._tokenizer.ids(*text))

    def _answer(self, asked: Asked, row: int, seconds: float, details: bool) -> Answer:
        (out, told), report = asked.outcome.known(), asked.report
        refused = bool(out[row])
        logits = _listed(told[row])
        answer = _refused(OUT_OF_RANGE) if refused else self._scored(logits)
        if details:
            answer |= {
                "logits": None if refused else logits,
                "seconds": seconds,
                "online_seconds": report.online.seconds,
                "rounds": report.online.rounds,
                "bytes": asked.bytes_sent + asked.bytes_received,
                "batch": [report.batch_size, report.seq_len],
                "dealt_ahead": asked.was_ready,
            }
        return answer if asked.seen is None else answer | {"seen": asked.seen}

    def _scored(self, logits: list[Any]) -> Answer:
        """Return the answer to a text from its logits, or from those of each of its tokens."""
        config = self._public.config
        if config.output == "embedding":
            length = math.hypot(*logits) or 1.0
            return {"label": None, "score": None, "embedding": [value / length for value in logits]}
        if config.pooling == "each":
            return {"label": None, "score": None, "tokens": [self._best(row) for row in logits]}
        return self._best(logits)

    def _best(self, logits: list[float]) -> Answer:
        if len(logits) == 1:
            return {"label": self.labels[0], "score": logits[0]}
        largest = max(logits)
        weights = [math.exp(value - largest) for value in logits]
        best = max(range(len(logits)), key=logits.__getitem__)
        return {"label": self.labels[best], "score": weights[best] / sum(weights)}

    def close(self) -> None:
        """End the session and what runs for this classifier alone; nothing happens the second time."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            try:
                self._end_session()
            finally:
                self._on_close()

    def __enter__(self) -> "Classifier":
        return self.open()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Classifier({', '.join(self.labels)})"


def _forget(session: AskingSession) -> None:
    # What collects garbage may hold any lock, so it must not wait for one.
    threading.Thread(target=session.forget, name="forgotten", daemon=True).start()


def _listed(logits: torch.Tensor) -> list[Any]:
    """Return the logits of a text (C,), or those of each of its real tokens (L, C), as lists."""
    found: list[Any] = (logits[~logits.isnan().all(1)] if logits.dim() == 2 else logits).tolist()
    return found


def _refused(reason: str) -> Answer:
    return {"label": None, "score": None, "refused": True, "reason": reason}


def _is_pair(value: object) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and all(isinstance(part, str) for part in value)


def as_pair(index: int, text: object) -> tuple[str, ...]:
    """Return a text as a tuple of one or two.

    Raises:
        UserInputError: it is no text.
    """
    if isinstance(text, Mapping):
        parts: tuple[object, ...] = tuple(text[key] for key in ("text", "text_pair") if text.get(key) is not None)
    elif isinstance(text, (tuple, list)):
        parts = tuple(text)
    else:
        parts = (text,)
    if len(parts) not in (1, 2) or not all(isinstance(part, str) for part in parts):
        kinds = ", ".join(type(part).__name__ for part in parts[:3]) or "nothing"
        raise UserInputError(
            f"text {index}: {kinds} is neither a text nor a pair of texts",
            'give strings, pairs (first, second), or {"text": ..., "text_pair": ...}',
        )
    return tuple(str(part) for part in parts)
