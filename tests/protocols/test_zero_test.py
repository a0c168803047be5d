"""The zero test tells of each number whether it is zero, and nothing else of it."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mpcformer.correlations import Request, validate
from mpcformer.errors import ProtocolError
from mpcformer.protocols import zero_test
from mpcformer.protocols.party import Party
from tests.pair import dealer_bytes, run_protocol, share


def outcome(*numbers: int) -> tuple[list[int], int, int, int]:
    """Return the opened verdicts, the rounds, the bytes in one direction, and the dealer's bytes."""
    shares = share(torch.tensor(numbers))

    def owner(party: Party) -> torch.Tensor:
        tensors = party.take(zero_test.request(len(numbers)))
        c = party.open([(shares[party.rank] + tensors[0], 64)])[0]
        return party.open([(zero_test.verdict(tensors, c), 64)])[0]

    results, counters, requests = run_protocol(owner)
    assert torch.equal(*results)
    return results[0].tolist(), counters[0].rounds, counters[0].bytes_sent, dealer_bytes(requests)


@pytest.mark.parametrize("x", [1, -1, 2, 255, 256, 1 << 32, -(1 << 63), (1 << 63) - 1])
def test_what_is_not_zero_gives_a_fresh_number_that_tells_nothing_of_it(x: int) -> None:
    opened = [number for _ in range(6) for number in outcome(*[x] * 10)[0]]
    assert 0 not in opened
    assert len(set(opened)) == 60
    # If the trailing zeros of the number showed, all results would have them.
    trailing = [(value & -value).bit_length() - 1 for value in opened]
    assert min(trailing) == 0
    assert max(trailing) > 0
    assert sum(trailing) / 60 < 2.5


def test_zero_and_the_cost() -> None:
    assert [outcome(0) for _ in range(20)] == [([0], 2, 16, 16384)] * 20
    assert outcome(0, 0, 0) == ([0, 0, 0], 2, 48, 3 * 16384)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.one_of(st.just(0), st.integers(-(1 << 63), (1 << 63) - 1)), min_size=1, max_size=12))
def test_each_of_several_numbers_is_tested_by_itself(numbers: list[int]) -> None:
    """Equal numbers, and numbers that add up to zero, have verdicts of their own."""
    mirrored = numbers + [max(-x, -(1 << 63)) if x != -(1 << 63) else x for x in numbers]
    opened = outcome(*mirrored)[0]
    assert [value == 0 for value in opened] == [x == 0 for x in mirrored]
    told = [value for value in opened if value]
    assert len(set(told)) == len(told)


@pytest.mark.parametrize("shape", [(2, 3), (0,), (1 << 17,)])
def test_it_takes_a_row_of_numbers(shape: tuple[int, ...]) -> None:
    with pytest.raises(ProtocolError):
        validate(Request("zero_test", (shape,)))
