"""The zero test tells whether a number is zero, and nothing else of it."""

import pytest
import torch

from mpcformer.correlations import Request, validate
from mpcformer.errors import ProtocolError
from mpcformer.protocols import zero_test
from mpcformer.protocols.party import Party
from tests.pair import dealer_bytes, run_protocol, share


def outcome(x: int) -> tuple[int, int, int, int]:
    """Return the opened verdict, the rounds, the bytes in one direction, and the dealer's bytes."""
    shares = share(torch.tensor([x]))

    def owner(party: Party) -> torch.Tensor:
        tensors = party.take(zero_test.request())
        c = party.open([(shares[party.rank] + tensors[0], 64)])[0]
        return party.open([(zero_test.verdict(tensors, c), 64)])[0]

    results, counters, requests = run_protocol(owner)
    assert torch.equal(*results)
    return int(results[0]), counters[0].rounds, counters[0].bytes_sent, dealer_bytes(requests)


@pytest.mark.parametrize("x", [1, -1, 2, 255, 256, 1 << 32, -(1 << 63), (1 << 63) - 1])
def test_what_is_not_zero_gives_a_fresh_number_that_tells_nothing_of_it(x: int) -> None:
    opened = [outcome(x)[0] for _ in range(60)]
    assert 0 not in opened
    assert len(set(opened)) == 60
    # If the trailing zeros of the number showed, all results would have them.
    trailing = [(value & -value).bit_length() - 1 for value in opened]
    assert min(trailing) == 0
    assert max(trailing) > 0
    assert sum(trailing) / 60 < 2.5


def test_zero_and_the_cost() -> None:
    assert [outcome(0) for _ in range(20)] == [(0, 2, 16, 16384)] * 20


def test_it_takes_one_number() -> None:
    with pytest.raises(ProtocolError, match="one number"):
        validate(Request("zero_test", ((2,),)))
