"""The model owner's side of a session: what the two streams say, in any order in which it may arrive."""

import queue
import threading
import time
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mpcformer.channel import Spec
from mpcformer.engines.base import BatchInputs, BatchShape, Outcome
from mpcformer.errors import MPCFormerError, PartyError, ProtocolError
from parties.session import model_side
from parties.session.instructions import GRANTED, MOST_PLANNED, Verb
from parties.session.model_side import ModelSide
from parties.session.owner_session import Dealt
from parties.stubs import parties_pb2 as pb

SIZE = 40
SHAPE = BatchShape(4, 16)
MASK = torch.ones(4, 16, dtype=torch.int64)


class Stream:
    """The model owner's end of a stream, and what the data owner puts into it."""

    def __init__(self) -> None:
        self._inbox: queue.SimpleQueue[torch.Tensor | MPCFormerError] = queue.SimpleQueue()
        self.sent: queue.SimpleQueue[torch.Tensor] = queue.SimpleQueue()

    def tell(self, verb: Verb, *numbers: int) -> None:
        self._inbox.put(torch.tensor([verb, *numbers, *[0] * (3 - len(numbers))]))

    def put(self, tensor: torch.Tensor) -> None:
        self._inbox.put(tensor)

    def answer(self) -> int:
        return int(self.sent.get(timeout=5))

    def send(self, tensors: Sequence[torch.Tensor]) -> None:
        self.sent.put(tensors[0])

    def receive(self, specs: Sequence[Spec]) -> list[torch.Tensor]:
        item = self._inbox.get(timeout=20)
        if isinstance(item, MPCFormerError):
            raise item
        assert Spec.of(item) == specs[0]
        return [item]

    receive_at_leisure = receive

    def abort(self, error: MPCFormerError) -> None:
        self._inbox.put(error)


class Session:
    """A session whose batches are made at once, and computed when `open` is set."""

    def __init__(self) -> None:
        self.asking, self.dealing, self.job = Stream(), Stream(), pb.Job(session_id=bytes(16))
        self.config = SimpleNamespace(id="model-owner")
        self.open = threading.Event()
        self.open.set()
        self.may_finish_dealing = threading.Event()
        self.may_finish_dealing.set()
        self.computing = self.most_computing = 0
        self.dealt: list[BatchShape] = []
        self.pools: list[int] = []
        self.planned: list[BatchShape] = []

    def check(self) -> None:
        """Nobody aborts this session."""

    def tell(self, error: MPCFormerError) -> None:
        """Nobody orders this session, so nobody is told of an error."""

    def size_of(self, shape: BatchShape) -> int:
        self.planned.append(shape)
        return SIZE

    def deal(self, shape: BatchShape, *, begun: Callable[[Dealt], None] = lambda dealt: None) -> Dealt:
        self.dealt.append(shape)
        batch: Any = None
        dealt = Dealt(shape, batch, 2, SIZE)
        begun(dealt)
        self.may_finish_dealing.wait(10)
        return dealt

    def compute(self, dealt: Dealt, inputs: BatchInputs) -> tuple[pb.BatchReport, Outcome]:
        self.computing += 1
        self.most_computing = max(self.most_computing, self.computing)
        self.open.wait(10)
        time.sleep(0.05)
        self.computing -= 1
        return pb.BatchReport(), Outcome()

    def deal_and_compute(self, inputs: BatchInputs, pool_bytes: int) -> tuple[pb.BatchReport, Outcome]:
        self.pools.append(pool_bytes)
        return self.compute(self.deal(inputs.shape), inputs)


class Served:
    """A model owner that serves a session in a thread, with room for two batches."""

    def __init__(self, charge: Callable[[int], int] = lambda n: GRANTED, pool: int = 100) -> None:
        self.session = Session()
        self.errors: list[BaseException] = []
        self.done: list[pb.BatchReport] = []
        session: Any = self.session
        self.side = ModelSide(
            session,
            positions=32,
            max_sentences=16,
            max_tokens=512,
            pool_bytes=100,
            charge=charge,
            done=self.done.append,
        )
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()
        assert self.session.asking.answer() == 100
        self.session.asking.put(torch.tensor([pool]))

    def _serve(self) -> None:
        try:
            self.side.serve()
        except BaseException as error:
            self.errors.append(error)

    def deal(self, n: int = 1) -> None:
        for _ in range(n):
            self.session.dealing.tell(Verb.DEAL, SHAPE.batch_size, SHAPE.seq_len)

    def has_dealt(self, n: int) -> None:
        deadline = time.monotonic() + 5
        while len(self.session.dealt) < n and time.monotonic() < deadline and not self.errors:
            time.sleep(0.01)
        time.sleep(0.1)
        assert len(self.session.dealt) == n

    def ask(self, number: int, n_told: int = 4) -> int:
        self.session.asking.tell(Verb.ASK, number, n_told)
        word = self.session.asking.answer()
        if word == GRANTED:  # a data owner that is refused tells no lengths
            self.session.asking.put(MASK)
        return word

    def end(self) -> list[BaseException]:
        for stream in (self.session.asking, self.session.dealing):
            stream.tell(Verb.END)
        self._thread.join(10)
        assert not self._thread.is_alive()
        return self.errors


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_side, "ROOM_TIMEOUT_S", 1.0)


def test_a_question_and_the_batch_for_its_room_may_arrive_in_any_order() -> None:
    """They travel on two streams: the data owner takes a batch out of a full pool, and its other thread deals."""
    served = Served()
    served.deal(3)
    served.has_dealt(2)
    assert served.ask(0) == GRANTED
    served.has_dealt(3)
    assert served.end() == []


def test_a_batch_is_planned_before_it_is_dealt() -> None:
    served = Served()
    served.session.asking.tell(Verb.PLAN, SHAPE.batch_size, SHAPE.seq_len)
    deadline = time.monotonic() + 5
    while not served.session.planned and time.monotonic() < deadline:
        time.sleep(0.01)
    assert served.session.planned == [SHAPE]
    served.deal()
    served.has_dealt(1)
    assert served.ask(0) == GRANTED
    assert served.end() == []


def test_hints_cost_the_model_owner_little() -> None:
    """They are not charged, so a data owner could send them without end, or for batches that are not allowed."""
    served = Served()
    for seq_len in [33, *[16] * (MOST_PLANNED + 3)]:
        served.session.asking.tell(Verb.PLAN, 1, seq_len)
    served.deal()
    served.has_dealt(1)
    assert served.ask(0) == GRANTED
    served.session.asking.tell(Verb.PLAN, 2, 16)
    assert served.end() == []
    # The one that is dealt is looked at too, by the other thread.
    hinted = [shape for shape in served.session.planned if shape != SHAPE]
    assert hinted == [BatchShape(1, 16)] * MOST_PLANNED + [BatchShape(2, 16)]


def test_a_batch_is_computed_while_it_is_dealt() -> None:
    served = Served()
    served.session.may_finish_dealing.clear()
    served.deal()
    served.has_dealt(1)
    assert served.ask(0) == GRANTED
    deadline = time.monotonic() + 5
    while not served.done and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(served.done) == 1
    served.session.may_finish_dealing.set()
    assert served.end() == []


def test_more_than_the_pool_is_refused() -> None:
    served = Served()
    served.deal(3)
    served.has_dealt(2)
    time.sleep(1.2)
    (error,) = served.end()
    assert isinstance(error, ProtocolError)
    assert "asked for 0 MiB of correlations ahead, pool_mib allows 0" in str(error)


def test_a_refused_question_leaves_the_batch_and_the_session() -> None:
    words = [7, 7, GRANTED, GRANTED]
    served = Served(charge=lambda n: words.pop(0))
    served.deal(2)
    served.has_dealt(2)
    assert served.ask(0) == 7
    served.deal()  # the data owner began to fill the room before it heard the answer
    served.has_dealt(3)
    assert served.ask(0) == 7
    served.session.dealing.tell(Verb.FORGET, 0)
    assert [served.ask(number) for number in (1, 2)] == [GRANTED, GRANTED]
    assert served.end() == []
    assert len(served.done) == 2


def test_refused_questions_make_room_for_one_batch_only() -> None:
    served = Served(charge=lambda n: 7)
    served.deal(2)
    served.has_dealt(2)
    for number in (0, 1):
        served.ask(number)
        served.deal()
        if number == 0:
            served.has_dealt(3)
    time.sleep(1.2)
    assert len(served.session.dealt) == 3
    assert isinstance(served.end()[0], ProtocolError)


def test_what_was_put_back_can_be_forgotten_at_once() -> None:
    """The data owner may forget a batch on one stream as soon as it hears on the other that it was not used."""
    served = Served(charge=lambda n: 7)
    served.deal()
    served.has_dealt(1)
    send = served.session.asking.send
    held: list[list[int]] = []

    def note(tensors: Sequence[torch.Tensor]) -> None:
        held.append(list(served.side._waiting))
        send(tensors)

    served.session.asking.send = note  # type: ignore[method-assign]
    served.ask(0)
    assert held == [[0]]
    assert served.end() == []


def test_one_batch_is_computed_at_a_time() -> None:
    """The engine crypten has one state for all batches of a session."""
    served = Served(pool=60)
    served.deal()
    served.has_dealt(1)
    served.session.open.clear()
    assert served.ask(0) == GRANTED
    served.session.dealing.tell(Verb.COMPUTE, SHAPE.batch_size, SHAPE.seq_len, 4)
    assert served.session.dealing.answer() == GRANTED
    served.session.dealing.put(MASK)
    time.sleep(0.2)
    served.session.open.set()
    assert served.end() == []
    assert served.session.most_computing == 1
    assert served.session.pools == [60], "both owners cut a batch that is too large by the smaller number"


def test_a_batch_is_used_once_and_limits_hold() -> None:
    spoils: list[tuple[Callable[[Served], object], str]] = [
        (lambda served: served.session.asking.tell(Verb.ASK, 0, 4), "which does not wait: each is used once"),
        (lambda served: served.session.asking.tell(Verb.DEAL, 1, 16), "sent instruction 1 on a stream for ASK, PLAN"),
        (lambda served: served.session.dealing.tell(Verb.DEAL, 17, 16), "a batch of 17 x 16 tokens"),
    ]
    for spoil, message in spoils:
        served = Served()
        served.deal()
        served.has_dealt(1)
        assert served.ask(0) == GRANTED
        spoil(served)
        time.sleep(0.2)
        (error,) = served.end()
        assert message in str(error)


def test_a_pool_that_is_larger_than_allowed() -> None:
    served = Served(pool=101)
    (error,) = served.end()
    assert "pool of 101 bytes is outside 1..100" in str(error)


def test_a_failure_of_dealing_ends_the_session() -> None:
    served = Served()
    served.session.dealing.abort(PartyError("dealer", "it left"))
    served._thread.join(10)
    assert [str(error) for error in served.errors] == ["dealer: it left"]
