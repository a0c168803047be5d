"""Shifts, lifting, squares and row products against plain arithmetic on the same integers."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mpcformer.correlations import validate
from mpcformer.correlations.lifted import FACTOR_EXTRA_BITS
from mpcformer.errors import ProtocolError
from mpcformer.protocols import lifted
from mpcformer.protocols.lifted import Mask, Opened
from mpcformer.protocols.party import Party, shift
from mpcformer.ring.packing import reduce
from tests.pair import dealer_bytes, integers, run_protocol, share


@settings(max_examples=60)
@given(st.integers(-(2**45), 2**45), st.integers(0, 24))
def test_shift_rounds_to_a_neighbour_with_the_stated_probability(value: int, bits: int) -> None:
    x = torch.full((4000,), value)
    shares = share(x)
    result = sum(shift(share, bits, rank) for rank, share in enumerate(shares))
    result = reduce(result, 64 - bits) if bits else result
    floor = reduce(x >> bits, 64 - bits) if bits else x
    off = reduce(result - floor, 64 - bits) if bits else result - floor
    assert set(off.tolist()) <= {0, 1}
    fraction = (value % (1 << bits) + (bits > 0)) / (1 << bits)
    assert abs(float(off.double().mean()) - fraction) < 5 * math.sqrt(0.25 / 4000) + 1e-9


@pytest.mark.parametrize(("bits", "large"), [(24, 64), (32, 64), (40, 64), (20, 40), (20, 48), (24, 52), (12, 24)])
def test_lifting_and_squares_are_exact_on_the_whole_range(bits: int, large: int) -> None:
    x = integers(7, 302, bits=bits - 1)
    shares = share(x, bits)

    def owner(party: Party) -> tuple[torch.Tensor, torch.Tensor]:
        mask = Mask(party.take(lifted.request("square", (7, 302), bits, large)), bits, "square", large)
        opened = Opened(party, mask, party.open([mask.half(shares[party.rank], party.rank)])[0])
        return opened.value(), opened.square(offset=12345)

    results, counters, requests = run_protocol(owner)
    value, square = (reduce(a + b, large) for a, b in zip(*results, strict=True))
    assert torch.equal(value, reduce(x, large))
    assert torch.equal(square, reduce((x + 12345) ** 2, large))
    n = x.numel()
    assert counters[0].rounds == counters[1].rounds == 1
    assert counters[0].bytes_sent == counters[1].bytes_sent == n * bits // 8
    assert dealer_bytes(requests) == n * (3 * (large - bits) + large) // 8


@pytest.mark.parametrize("op", ["norm", "scale"])
@pytest.mark.parametrize(("bits", "large"), [(24, 64), (32, 64), (24, 48), (28, 56), (20, 40), (20, 60)])
def test_a_rows_factor(op: str, bits: int, large: int) -> None:
    x, y = integers(50, 33, bits=bits - 1), integers(50, 1, bits=60)
    x_shares, y_shares = share(x, bits), share(y)

    def owner(party: Party) -> torch.Tensor:
        mask = Mask(party.take(lifted.request(op, (50, 33), bits, large)), bits, op, large)
        halves = [mask.half(x_shares[party.rank], party.rank), mask.factor_half(y_shares[party.rank], party.rank)]
        c, factor = party.open(halves)
        opened = Opened(party, mask, c)
        squares = opened.sum_of_squares() if op == "norm" else torch.zeros(50, 1, dtype=torch.int64)
        return torch.cat([opened.times(factor), squares], dim=-1)

    results, counters, requests = run_protocol(owner)
    total = reduce(results[0] + results[1], large)
    floor = y >> FACTOR_EXTRA_BITS
    either = [reduce(x * factor, large) for factor in (floor, floor + 1)]
    assert bool(((total[:, :-1] == either[0]) | (total[:, :-1] == either[1])).all())
    if op == "norm":
        assert torch.equal(total[:, -1:], reduce((x * x).sum(-1, keepdim=True), large))
    assert counters[0].bytes_sent == 50 * 33 * bits // 8 + 50 * 8
    n, high, of_rows = 50 * 33, large - bits, 50 * (64 + FACTOR_EXTRA_BITS)
    # From 40 bits down, the products with the top bit of the factor's mask vanish.
    expected = n * (3 * high + large + large - 40) + of_rows + (n * high + 50 * large if op == "norm" else 0)
    assert dealer_bytes(requests) == expected // 8


@pytest.mark.parametrize("bits", [24, 32])
def test_a_row_with_its_length(bits: int) -> None:
    x = integers(50, 33, bits=bits - 1)
    shares = share(x, bits)

    def owner(party: Party) -> torch.Tensor:
        mask = Mask(party.take(lifted.request("length", (50, 33), bits)), bits, "length")
        opened = Opened(party, mask, party.open([mask.half(shares[party.rank], party.rank)])[0])
        return torch.cat([opened.value(), opened.sum_of_squares()], dim=-1)

    results, counters, requests = run_protocol(owner)
    total = results[0] + results[1]
    assert torch.equal(total, torch.cat([x, (x * x).sum(-1, keepdim=True)], dim=-1))
    assert counters[0].bytes_sent == 50 * 33 * bits // 8
    assert dealer_bytes(requests) == 3 * 50 * 33 * (64 - bits) // 8 + 50 * 8


@pytest.mark.parametrize(("use", "bits", "large"), [("plain", 8, 24), ("norm", 20, 64), ("plain", 24, 24)])
def test_rings_that_do_not_fit_each_other_are_refused(use: str, bits: int, large: int) -> None:
    with pytest.raises(ProtocolError, match="or more, not"):
        validate(lifted.request(use, (3, 5), bits, large))
