"""The zero test tells of each number whether it is zero, and nothing else; what it seals opens only then."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mpcformer.correlations import Request, validate
from mpcformer.errors import ProtocolError
from mpcformer.protocols import sealed, zero_test
from mpcformer.protocols.party import MODEL_OWNER, Party, split
from mpcformer.ring.packing import reduce
from tests.pair import dealer_bytes, run_protocol, share


def outcome(*numbers: int) -> tuple[list[int], int, int, int]:
    """Return the opened verdicts, the rounds, the bytes in one direction, and the dealer's bytes."""
    shares = share(torch.tensor(numbers))

    def owner(party: Party) -> torch.Tensor:
        tensors = party.take(zero_test.request(len(numbers)))
        c = party.open([(shares[party.rank] + tensors[0], 64)])[0]
        block = party.open([(zero_test.verdict(tensors, c), 64)])[0]
        assert bool(((block == 0).all(1) == (block == 0).any(1)).all()), "both words are zero, or neither"
        return block[:, 0]

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
    assert [outcome(0) for _ in range(20)] == [([0], 2, 24, 32768)] * 20
    assert outcome(0, 0, 0) == ([0, 0, 0], 2, 72, 3 * 32768)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.one_of(st.just(0), st.integers(-(1 << 63), (1 << 63) - 1)), min_size=1, max_size=12))
def test_each_of_several_numbers_is_tested_by_itself(numbers: list[int]) -> None:
    """Equal numbers, and numbers that add up to zero, have verdicts of their own."""
    mirrored = numbers + [max(-x, -(1 << 63)) if x != -(1 << 63) else x for x in numbers]
    opened = outcome(*mirrored)[0]
    assert [value == 0 for value in opened] == [x == 0 for x in mirrored]
    told = [value for value in opened if value]
    assert len(set(told)) == len(told)


@pytest.mark.parametrize("bits", [24, 64])
def test_what_is_sealed_opens_where_the_number_is_zero_and_the_sender_is_told_nothing(bits: int) -> None:
    tested = torch.tensor([0, 1, 0, -(1 << 63), 1 << 32])
    numbers = torch.arange(15).view(5, 3) - 7
    shares = share(tested)

    def owner(party: Party) -> tuple[torch.Tensor, ...]:
        tensors = party.take(zero_test.request(5))
        block = zero_test.verdict(tensors, party.open([(shares[party.rank] + tensors[0], 64)])[0])
        if party.rank == MODEL_OWNER:
            party.send(sealed.seal(block, numbers, bits))
            return ()
        shapes = sealed.shapes(5, 3, bits)
        (tags, _), (told, _) = split(party.receive(shapes), shapes)
        return told, *sealed.unseal(block, tags, told)

    (nothing, (sent, is_open, found)), counters, _ = run_protocol(owner)
    assert nothing == ()
    assert counters[0].messages_received == 1, "the half of the opening, and no answer"
    assert is_open.tolist() == [True, False, True, False, False]
    assert torch.equal(reduce(found, bits)[is_open], reduce(numbers, bits)[is_open])
    assert not (reduce(found, bits) == reduce(numbers, bits))[~is_open].any()
    assert not (reduce(sent, bits) == reduce(numbers, bits)).any(), "nothing is sent in the clear"


def test_a_key_of_another_row_or_another_test_opens_nothing() -> None:
    block = torch.tensor([[5, 6], [7, 8]])
    (tags, _), (told, _) = sealed.seal(block, torch.tensor([[1], [2]]), 64)
    assert sealed.unseal(-block, tags, told)[0].all()
    assert not sealed.unseal(-block.flip(0), tags, told)[0].any()
    for wrong in (block, -block + torch.tensor([0, 1]), -block ^ torch.tensor([-1 << 63, 0])):
        assert not sealed.unseal(wrong, tags, told)[0].any()


@pytest.mark.parametrize("shape", [(2, 3), (0,), (1 << 17,)])
def test_it_takes_a_row_of_numbers(shape: tuple[int, ...]) -> None:
    with pytest.raises(ProtocolError):
        validate(Request("zero_test", (shape,)))
