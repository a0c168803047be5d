"""Tests of the pool of batches that are dealt ahead."""

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from mpcformer.engines.base import BatchShape
from mpcformer.errors import MPCFormerError, PartyError, UserInputError
from parties.session import pool as pool_module
from parties.session.owner_session import Dealt
from parties.session.pool import Pool

ONE, FOUR, LONG = BatchShape(1, 32), BatchShape(4, 32), BatchShape(1, 128)
SIZES = {ONE: 10, FOUR: 40, LONG: 40, BatchShape(16, 512): 1000}


class Table:
    """A pool with a dealer that deals when it may.

    Attributes:
        dealt, forgotten: the shapes that were dealt, and the numbers of the batches that were dropped.
        begins_early: whether batches may be taken before they are dealt, as they may where nothing is audited.
    """

    def __init__(self, limit: int = 100) -> None:
        self.dealt: list[BatchShape] = []
        self.forgotten: list[int] = []
        self.failures: list[BaseException] = []
        self.open = threading.Event()
        self.open.set()
        self.pauses = 0
        self.fails = self.begins_early = False
        self.pool = Pool(
            deal=self._deal,
            forget=self.forgotten.append,
            size_of=SIZES.__getitem__,
            limit_bytes=limit,
            on_failure=self.failures.append,
        )

    def _deal(self, shape: BatchShape, pause: Callable[[], None], begun: Callable[[Dealt], None]) -> None:
        batch: Any = None
        dealt = Dealt(shape, batch, 2, SIZES[shape])
        if self.begins_early:
            begun(dealt)
        for _ in range(2):
            pause()
            self.pauses += 1
            self.open.wait(10)
        if self.fails:
            raise PartyError("dealer", "it left")
        self.dealt.append(shape)
        dealt.note(2, is_whole=True)
        if not self.begins_early:
            begun(dealt)

    def has_dealt(self, *shapes: BatchShape) -> None:
        """Wait until these shapes were dealt, and a little longer to see that no others follow."""
        deadline = time.monotonic() + 10
        while len(self.dealt) < len(shapes) and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.05)
        assert self.dealt == list(shapes)


@pytest.fixture
def table() -> Iterator[Table]:
    made = Table()
    yield made
    made.open.set()
    made.pool.close()


def test_a_batch_that_waits_is_taken_once(table: Table) -> None:
    table.pool.coming([ONE, ONE])
    table.has_dealt(ONE, ONE)
    numbers = [table.pool.take(ONE) for _ in range(3)]
    assert [number for number, _, _ in numbers] == [0, 1, 2]
    assert [ready for _, _, ready in numbers] == [True, True, False]


def test_what_waits_already_is_not_dealt_again(table: Table) -> None:
    table.pool.coming([ONE])
    table.has_dealt(ONE)
    table.pool.coming([ONE, FOUR, ONE])
    table.has_dealt(ONE, FOUR, ONE)


def test_nothing_is_dealt_beside_a_question_that_finds_its_batch(table: Table) -> None:
    table.pool.stock_only([ONE], 1)
    table.has_dealt(ONE)
    with table.pool.asking():
        assert table.pool.take(ONE)[2]
        table.has_dealt(ONE)
    table.has_dealt(ONE, ONE)


def test_a_question_that_waits_for_the_stock_does_not_pause_it(table: Table) -> None:
    table.open.clear()
    table.pool.stock_only([ONE], 1)
    while not table.pauses:
        time.sleep(0.01)
    table.open.set()
    with table.pool.asking():
        assert table.pool.take(ONE)[1].shape == ONE


def begin(table: Table, *, stock: bool = False) -> None:
    """Let a batch of ONE begin, which may be computed from now on and is not dealt to its end before `open` is set."""
    table.begins_early = True
    table.open.clear()
    if stock:
        table.pool.stock_only([ONE], 1)
    else:
        table.pool.coming([ONE])
    while not table.pauses:
        time.sleep(0.01)


def test_a_batch_can_be_taken_while_it_is_dealt(table: Table) -> None:
    begin(table)
    number, dealt, was_waiting = table.pool.take(ONE)
    assert (number, was_waiting, dealt.is_whole) == (0, False, False)
    table.open.set()
    table.has_dealt(ONE)
    assert dealt.is_whole
    assert not table.pool.has(ONE), "it was taken"
    assert table.pool.take(ONE)[0] == 1


def test_a_batch_that_is_dealt_fits_no_question_of_another_shape(table: Table) -> None:
    begin(table)
    taken: list[tuple[int, BatchShape]] = []

    def take() -> None:
        number, dealt, _ = table.pool.take(FOUR)
        taken.append((number, dealt.shape))

    thread = threading.Thread(target=take)
    thread.start()
    time.sleep(0.1)
    assert taken == []
    table.open.set()
    thread.join(10)
    assert taken == [(1, FOUR)]
    assert table.pool.has(ONE)


@pytest.mark.parametrize("is_dealt", [False, True])
def test_what_was_taken_early_and_not_used_goes_back(table: Table, is_dealt: bool) -> None:
    begin(table)
    number, dealt, _ = table.pool.take(ONE)
    if is_dealt:
        table.open.set()
        table.has_dealt(ONE)
    table.pool.put_back(number, dealt)
    table.open.set()
    table.has_dealt(ONE)
    assert table.pool.take(ONE) == (number, dealt, True)


def test_a_question_that_takes_what_is_dealt_for_the_stock_does_not_pause_it(table: Table) -> None:
    begin(table, stock=True)
    with table.pool.asking():
        _, dealt, _ = table.pool.take(ONE)
        table.open.set()
        assert dealt.wait(2, lambda: None) < 10
        assert table.dealt == [ONE]


def test_a_batch_that_is_taken_and_not_quite_dealt_serves_no_second_question(table: Table) -> None:
    """The first question may be answered a moment before the pool's thread has done its last step."""
    begin(table)
    assert table.pool.take(ONE)[0] == 0
    taken: list[int] = []
    thread = threading.Thread(target=lambda: taken.append(table.pool.take(ONE)[0]))
    with table.pool.asking():
        assert table.pool.fitting(BatchShape(1, 16)) == BatchShape(1, 16), "what is taken answers nobody else"
        thread.start()
        time.sleep(0.1)
        table.open.set()
        thread.join(10)
    assert taken == [1]


def test_a_batch_that_is_being_dealt_counts_among_what_is_coming(table: Table) -> None:
    begin(table, stock=True)
    table.pool.coming([ONE])
    table.pool.take(ONE)
    with table.pool.asking():
        table.open.set()
        table.has_dealt(ONE)


def test_who_waits_for_a_segment_hears_of_a_failure(table: Table) -> None:
    begin(table)
    _, dealt, _ = table.pool.take(ONE)
    dealt.note(1)
    assert dealt.wait(0, lambda: None) < 1
    dealt.fail(PartyError("dealer", "it left"))
    with pytest.raises(PartyError, match="dealer: it left"):
        dealt.wait(1, lambda: None)


def test_who_waits_for_a_segment_hears_of_the_end_of_the_session(table: Table) -> None:
    begin(table)
    _, dealt, _ = table.pool.take(ONE)

    def check() -> None:
        raise PartyError("model-owner", "it left the session")

    with pytest.raises(PartyError, match="it left the session"):
        dealt.wait(0, check)


def test_what_is_asked_for_now_comes_before_what_was_said_to_come(table: Table) -> None:
    table.open.clear()
    table.pool.coming([FOUR, FOUR])
    while not table.pauses:  # the first of them has begun
        time.sleep(0.01)
    taken: list[BatchShape] = []
    thread = threading.Thread(target=lambda: taken.append(table.pool.take(LONG)[1].shape))
    thread.start()
    time.sleep(0.1)
    table.open.set()
    thread.join(10)
    assert taken == [LONG]
    table.has_dealt(FOUR, LONG, FOUR)


def test_the_pool_holds_no_more_than_its_limit(table: Table) -> None:
    table.pool.coming([FOUR] * 5)
    table.has_dealt(FOUR, FOUR)  # a third would need 120 of 100 bytes
    table.pool.take(FOUR)
    table.has_dealt(FOUR, FOUR, FOUR)
    assert not table.pool.fits(BatchShape(16, 512))


def test_a_question_that_finds_no_room_drops_what_has_waited_longest(table: Table) -> None:
    table.pool.coming([FOUR, FOUR])
    table.has_dealt(FOUR, FOUR)
    assert table.pool.take(LONG)[1].shape == LONG
    assert table.forgotten == [0]


def test_the_stock_is_filled_while_nobody_asks(table: Table) -> None:
    with table.pool.asking():
        table.pool.stock_only([ONE], 2)
        table.has_dealt()
    table.has_dealt(ONE, ONE)
    table.pool.take(ONE)
    table.has_dealt(ONE, ONE, ONE)
    table.pool.stock_only([FOUR], 1)
    table.has_dealt(ONE, ONE, ONE, FOUR)


def test_dealing_for_the_stock_pauses_while_somebody_asks(table: Table) -> None:
    table.open.clear()
    table.pool.stock_only([ONE], 1)
    while not table.pauses:
        time.sleep(0.01)
    with table.pool.asking():
        table.open.set()
        time.sleep(0.2)
        assert table.pauses == 1
    table.has_dealt(ONE)


def test_a_pause_has_an_end(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model owner waits meanwhile, and would end the session during a long question."""
    monkeypatch.setattr(pool_module, "MAX_PAUSE_S", 0.1)
    table.open.clear()
    table.pool.stock_only([ONE], 1)
    while not table.pauses:
        time.sleep(0.01)
    with table.pool.asking():
        table.open.set()
        table.has_dealt(ONE)


def test_a_longer_batch_that_waits_answers_sooner(table: Table) -> None:
    half, quarter = BatchShape(1, 64), BatchShape(1, 32)
    assert table.pool.fitting(half) == half
    table.pool.coming([LONG])
    table.has_dealt(LONG)
    assert table.pool.fitting(half) == LONG
    assert table.pool.fitting(quarter) == quarter, "four times as long takes too long to compute"
    assert table.pool.fitting(BatchShape(4, 64)) == BatchShape(4, 64), "a batch of one has no room for four"
    assert table.pool.fitting(BatchShape(1, 256)) == BatchShape(1, 256)
    assert table.pool.fitting(LONG) == LONG


def test_deal_and_seal(table: Table) -> None:
    with pytest.raises(UserInputError, match=r"deal_ahead: 11 batches need 0 MiB, the pool has 0 MiB"):
        table.pool.deal_and_seal([ONE] * 11)
    table.pool.deal_and_seal([ONE, ONE])
    assert table.dealt == [ONE, ONE]
    table.pool.take(ONE)
    assert table.pool.can_serve(ONE)
    assert not table.pool.can_serve(FOUR)
    with pytest.raises(UserInputError, match="no batch of 4 x 32 tokens waits; what waits: 1 of 1 x 32"):
        table.pool.take(FOUR)
    table.pool.take(ONE)
    with pytest.raises(UserInputError, match="what waits: nothing"):
        table.pool.take(ONE)
    table.has_dealt(ONE, ONE)


def test_what_was_not_used_goes_back(table: Table) -> None:
    number, dealt, _ = table.pool.take(ONE)
    table.pool.put_back(number, dealt)
    assert table.pool.take(ONE) == (number, dealt, True)


def test_a_failure_reaches_who_waits_and_the_session(table: Table) -> None:
    table.fails = True
    with pytest.raises(PartyError, match="dealer: it left"):
        table.pool.take(ONE)
    assert [str(error) for error in table.failures] == ["dealer: it left"]
    with pytest.raises(PartyError, match="dealer: it left"):
        table.pool.take(ONE)


def test_after_the_end_nothing_is_dealt() -> None:
    table = Table()
    table.pool.close()
    with pytest.raises(MPCFormerError, match="the session has ended"):
        table.pool.take(ONE)
    table.has_dealt()
