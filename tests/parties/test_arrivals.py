"""What arrives ahead keeps its order and its room, and a failure reaches whoever waits."""

import threading

import pytest

from mpcformer.errors import PartyError
from parties.wire.arrivals import Arrivals

TIMEOUT_S = 10.0


class Sender:
    """Gives parts of given sizes, and notes how much has arrived and was not used when each part began to arrive."""

    def __init__(self, sizes: list[int], fails_at: int | None = None) -> None:
        self.sizes, self.fails_at = sizes, fails_at
        self.order: list[int] = []
        self.used = -1
        self.most = 0

    def receive(self, part: int) -> None:
        if part == self.fails_at:
            raise PartyError("dealer-1", "it left the session")
        self.order.append(part)
        self.most = max(self.most, sum(self.sizes[self.used + 1 : part + 1]))


@pytest.mark.parametrize(
    ("sizes", "limit", "most"), [([5, 5, 5, 5, 5], 10, 10), ([3, 20, 3, 3], 10, 20), ([1] * 50, 50, 50), ([7, 7], 1, 7)]
)
def test_no_more_arrives_than_there_is_room_for(sizes: list[int], limit: int, most: int) -> None:
    """A part that is larger than the room arrives alone."""
    sender = Sender(sizes)
    with Arrivals(sender.receive, sizes, limit, lambda: None) as arrivals:
        for part in range(len(sizes)):
            arrivals.wait(part)
            assert sender.order[: part + 1] == list(range(part + 1))
            sender.used = part
            arrivals.use(part)
    assert sender.order == list(range(len(sizes)))
    assert sender.most <= most


def test_parts_arrive_while_the_one_before_is_used() -> None:
    sender, begun = Sender([5, 5, 5]), threading.Event()

    def receive(part: int) -> None:
        sender.receive(part)
        if part == 1:
            begun.set()

    with Arrivals(receive, sender.sizes, 10, lambda: None) as arrivals:
        arrivals.wait(0)
        assert begun.wait(TIMEOUT_S), "the second part arrives although the first one is still used"
        assert sender.order == [0, 1], "there is no room for the third"


def test_a_failure_reaches_whoever_waits_and_nothing_arrives_after_it() -> None:
    sender = Sender([1, 1, 1, 1], fails_at=2)
    with Arrivals(sender.receive, sender.sizes, 10, lambda: None) as arrivals:
        arrivals.wait(0)
        arrivals.wait(1)
        with pytest.raises(PartyError, match="it left the session"):
            arrivals.wait(2)
    assert sender.order == [0, 1]


def test_a_session_that_was_aborted_ends_the_wait() -> None:
    never = threading.Event()

    def check() -> None:
        raise PartyError("data-owner-1", "it stopped")

    with (
        pytest.raises(PartyError, match="it stopped"),
        Arrivals(lambda part: never.wait() and None, [1], 1, check) as arrivals,
    ):
        arrivals.wait(0)
    never.set()


def test_nothing_arrives_after_it_was_left() -> None:
    sender = Sender([5, 5, 5])
    with Arrivals(sender.receive, sender.sizes, 5, lambda: None) as arrivals:
        arrivals.wait(0)
    arrivals._thread.join(TIMEOUT_S)
    assert not arrivals._thread.is_alive()
    assert sender.order == [0]
