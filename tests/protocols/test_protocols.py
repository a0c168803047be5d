"""The suite's protocols against their plaintext twins on the same fixed-point numbers; bytes and rounds as stated."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mpcformer.channel import Counters, MemoryChannel, memory_pair
from mpcformer.correlations import Request, correction_specs
from mpcformer.correlations.suite import GUARD_BITS
from mpcformer.correlations.table import MAX_LOG_BINS
from mpcformer.engines.lift import fixed_point as fp
from mpcformer.engines.lift import norms
from mpcformer.engines.lift.rows import LayerScales, row_function
from mpcformer.errors import RangeError
from mpcformer.protocols import guard, lifted, linear, matmul
from mpcformer.protocols.lifted import Mask, Opened
from mpcformer.protocols.party import Party, shift
from mpcformer.protocols.table import Function, Lookup
from mpcformer.ring.packing import WIDTHS, pack, reduce, unpack
from mpcformer.ring.random import Stream, fresh_key
from tests.pair import InlineDealer, in_two_threads


def run(function: Callable[[Party], Any]) -> tuple[list[Any], list[Counters], list[Request]]:
    """function(party) at both owners; results, what each channel counted, the correlations asked for."""
    ends: tuple[MemoryChannel, MemoryChannel] = memory_pair(timeout_s=20)
    seeds, session_id = [fresh_key(), fresh_key()], fresh_key()
    dealers = [InlineDealer(rank, seeds, session_id) for rank in (0, 1)]
    results = in_two_threads(lambda rank: function(Party(rank, ends[rank], dealers[rank])))
    return results, [end.counters for end in ends], dealers[0].requests


def split(x: torch.Tensor, bits: int = 64) -> list[torch.Tensor]:
    """Two shares of x over Z_2^bits, with meaningless bits above."""
    mask = Stream(fresh_key()).int64(tuple(x.shape))
    noise = Stream(fresh_key()).int64(tuple(x.shape)) << bits if bits < 64 else 0
    return [x - mask + noise, mask]


def dealer_bytes(requests: list[Request]) -> int:
    return sum(spec.n_bytes for request in requests for spec in correction_specs(request))


def integers(*shape: int, bits: int, signed: bool = True) -> torch.Tensor:
    """Uniform integers below 2^bits, edges first."""
    x = Stream(fresh_key()).bits(shape, bits)
    x = x - (1 << (bits - 1)) if signed else x
    edges = torch.tensor([-(1 << (bits - 1)), (1 << (bits - 1)) - 1, 0, -1] if signed else [0, (1 << bits) - 1])
    x.view(-1)[: edges.numel()] = edges[: x.numel()]
    return x


@settings(max_examples=60)
@given(st.sampled_from(WIDTHS), st.lists(st.integers(-(2**63), 2**63 - 1), max_size=9))
def test_packing_keeps_the_low_bits(bits: int, values: list[int]) -> None:
    x = torch.tensor(values, dtype=torch.int64)
    packed = pack(x, bits)
    assert packed.dtype == torch.uint8
    assert packed.numel() == len(values) * bits // 8
    assert torch.equal(unpack(packed, x.shape, bits), reduce(x, bits))
    # A part of a message may start at any byte.
    moved = torch.cat([torch.zeros(3, dtype=torch.uint8), packed])[3:]
    assert torch.equal(unpack(moved, x.shape, bits), reduce(x, bits))


@settings(max_examples=60)
@given(st.integers(-(2**45), 2**45), st.integers(0, 24))
def test_shift_rounds_to_a_neighbour_with_the_stated_probability(value: int, bits: int) -> None:
    x = torch.full((4000,), value)
    shares = split(x)
    result = sum(shift(share, bits, rank) for rank, share in enumerate(shares))
    result = reduce(result, 64 - bits) if bits else result
    floor = reduce(x >> bits, 64 - bits) if bits else x
    off = reduce(result - floor, 64 - bits) if bits else result - floor
    assert set(off.tolist()) <= {0, 1}
    fraction = (value % (1 << bits) + (bits > 0)) / (1 << bits)
    assert abs(float(off.double().mean()) - fraction) < 5 * math.sqrt(0.25 / 4000) + 1e-9


@pytest.mark.parametrize("bits", [24, 32, 40])
def test_lifting_and_squares_are_exact_on_the_whole_range(bits: int) -> None:
    x = integers(7, 301, bits=bits - 1)
    shares = split(x, bits)

    def owner(party: Party) -> tuple[torch.Tensor, torch.Tensor]:
        mask = Mask(party.take(lifted.request("square", (7, 301), bits)), bits, "square")
        opened = Opened(party, mask, party.open([mask.half(shares[party.rank], party.rank)])[0])
        return opened.value(), opened.square(offset=12345)

    results, counters, requests = run(owner)
    value, square = (a + b for a, b in zip(*results, strict=True))
    assert torch.equal(value, x)
    assert torch.equal(square, (x + 12345) ** 2)
    n = x.numel()
    assert counters[0].rounds == counters[1].rounds == 1
    assert counters[0].bytes_sent == counters[1].bytes_sent == n * bits // 8
    assert dealer_bytes(requests) == n * (3 * (64 - bits) // 8 + 8)


@pytest.mark.parametrize("op", ["norm", "scale"])
@pytest.mark.parametrize("bits", [24, 32])
def test_a_rows_factor(op: str, bits: int) -> None:
    x, y = integers(50, 33, bits=bits - 1), integers(50, 1, bits=60)
    x_shares, y_shares = split(x, bits), split(y)

    def owner(party: Party) -> torch.Tensor:
        mask = Mask(party.take(lifted.request(op, (50, 33), bits)), bits, op)
        halves = [mask.half(x_shares[party.rank], party.rank), mask.factor_half(y_shares[party.rank], party.rank)]
        c, factor = party.open(halves)
        opened = Opened(party, mask, c)
        squares = opened.sum_of_squares() if op == "norm" else torch.zeros(50, 1, dtype=torch.int64)
        return torch.cat([opened.times(factor), squares], dim=-1)

    results, counters, requests = run(owner)
    total = results[0] + results[1]
    floor = y >> GUARD_BITS
    assert bool(((total[:, :-1] == x * floor) | (total[:, :-1] == x * (floor + 1))).all())
    if op == "norm":
        assert torch.equal(total[:, -1:], (x * x).sum(-1, keepdim=True))
    assert counters[0].bytes_sent == 50 * 33 * bits // 8 + 50 * 8
    n, high = 50 * 33, (64 - bits) // 8
    expected = n * (2 * high + 8 + high + 3) + 50 * 11 + (n * high + 50 * 8 if op == "norm" else 0)
    assert dealer_bytes(requests) == expected


@pytest.mark.parametrize("bits", [24, 32])
def test_a_row_with_its_length(bits: int) -> None:
    x = integers(50, 33, bits=bits - 1)
    shares = split(x, bits)

    def owner(party: Party) -> torch.Tensor:
        mask = Mask(party.take(lifted.request("length", (50, 33), bits)), bits, "length")
        opened = Opened(party, mask, party.open([mask.half(shares[party.rank], party.rank)])[0])
        return torch.cat([opened.value(), opened.sum_of_squares()], dim=-1)

    results, counters, requests = run(owner)
    total = results[0] + results[1]
    assert torch.equal(total, torch.cat([x, (x * x).sum(-1, keepdim=True)], dim=-1))
    assert counters[0].bytes_sent == 50 * 33 * bits // 8
    assert dealer_bytes(requests) == 3 * 50 * 33 * (64 - bits) // 8 + 50 * 8


@pytest.mark.parametrize("bits", [40, 48, 64])
def test_matrix_product(bits: int) -> None:
    x, y = integers(2, 3, 5, 7, bits=40), integers(2, 3, 6, 7, bits=40)
    x_shares, y_shares = split(x, bits), split(y, bits)

    def owner(party: Party) -> torch.Tensor:
        masks = party.take(matmul.request(tuple(x.shape), tuple(y.shape), bits))
        mine = x_shares[party.rank], y_shares[party.rank]
        d, e = party.open([matmul.half(share, mask, bits) for share, mask in zip(mine, masks, strict=False)])
        return matmul.product(party, d, e, masks)

    results, counters, requests = run(owner)
    assert torch.equal(reduce(results[0] + results[1], bits), reduce(x @ y.transpose(-1, -2), bits))
    assert counters[0].bytes_sent == (x.numel() + y.numel()) * bits // 8
    assert dealer_bytes(requests) == 2 * 3 * 5 * 6 * bits // 8


@pytest.mark.parametrize("bits", [32, 56])
def test_owner_known_weights(bits: int) -> None:
    """A matrix and a diagonal of one input; the data owner's shares do not depend on the input."""
    x = integers(4, 6, bits=30)
    weights = {"w": integers(6, 5, bits=18), "g": integers(6, bits=18)}
    if bits == 32:
        weights = {name: weight.to(torch.int32) for name, weight in weights.items()}
    shapes = {name: tuple(weight.shape) for name, weight in weights.items()}
    shares = split(x, bits)

    def owner(party: Party) -> list[torch.Tensor]:
        key = party.store.weight_mask_key()  # type: ignore[attr-defined]
        tensors = party.take(linear.request(["w", "g"], 4, shapes, bits))
        if party.rank == 0:
            masked = unpack(party.receive([((4, 6), bits)]), (4, 6), bits)
            return linear.model_owner_share(shares[0], masked, list(weights.values()), tensors)
        hidden = [linear.masked_weight(weight, key, name, bits) for name, weight in weights.items()]
        party.send([(shares[1] - tensors[0], bits)])
        return linear.data_owner_share(hidden, tensors)

    results, counters, requests = run(owner)
    product, scaled = (reduce(a + b, bits) for a, b in zip(*results, strict=True))
    assert torch.equal(product, reduce(x @ weights["w"].long(), bits))
    assert torch.equal(scaled, reduce(x * weights["g"].long(), bits))
    assert counters[1].bytes_sent == 24 * bits // 8
    assert counters[1].bytes_received == 0
    assert dealer_bytes(requests) == (20 + 24) * bits // 8


def functions() -> list[tuple[str, Function, float, float, float]]:
    """name, tables, low, high, the argument's unit."""
    layer = LayerScales(0, 0, 0.05, None, None)  # type: ignore[arg-type]
    wide = LayerScales(0, 0, 0.003, None, None)  # type: ignore[arg-type]
    row = 2.0 ** -(28 + 5 + fp.KEY_FACTOR_BITS)
    bounds = {"narrow": (0.3, 2.0), "wide": (0.45, 2288.0)}
    found = {name: norms.norm(name, 384, 1e-12, {f"{name}.variance": bounds[name]}) for name in bounds}
    return [
        ("reciprocal", row_function(layer, 5), 0.05, 1.0, row),
        ("reciprocal, wide", row_function(wide, 5), 0.003, 1.0, row),
        *(
            (f"rsqrt, {name}", norm.function, low / 1.5, high * 1.5, 2.0 ** (-2 * norm.scale) / 384)
            for (name, norm), (low, high) in zip(found.items(), bounds.values(), strict=True)
        ),
    ]


def stated_error(function: Function) -> float:
    """The bound of correlations/table.py, for the bin that straddles a table's low end, plus 11 bits of place."""
    found = []
    for argument in (function.upper, function.lower):
        if argument is not None:
            spec = argument.spec
            width = spec.unit * 2.0**spec.bin_bits
            d = width / ((spec.split or spec.low) - width)
            found.append((2 if spec.function == "reciprocal" else 0.63) * (d / 4) ** 3 + d / 2**11)
    return max(found)


def look_up(function: Function, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, list[Counters], list[Request]]:
    shares = split(x)

    def owner(party: Party) -> tuple[torch.Tensor, torch.Tensor]:
        tables = [party.take(request) for request in Lookup.requests(function, x.numel())]
        lookup = Lookup(function, tables, party.rank)
        return lookup.evaluate(party, party.open(lookup.halves(shares[party.rank])))

    results, counters, requests = run(owner)
    value, mark = (a + b for a, b in zip(*results, strict=True))
    return value, reduce(mark, 32), counters, requests


@pytest.mark.parametrize(("name", "function", "low", "high", "unit"), functions(), ids=[c[0] for c in functions()])
def test_tables(name: str, function: Function, low: float, high: float, unit: float) -> None:
    real = torch.logspace(math.log10(low), math.log10(high), 3000, dtype=torch.float64)
    x = (real / unit).round().long()
    value, mark, counters, requests = look_up(function, x)
    expected = (x * unit).reciprocal() if name.startswith("reciprocal") else (x * unit).rsqrt()
    got = value.double() / 2.0**function.upper.spec.scale
    assert stated_error(function) < 0.01
    assert float((got / expected - 1).abs().max()) < stated_error(function)
    assert int(mark.count_nonzero()) == 0
    assert counters[0].rounds == (1 if function.lower is None else 2)
    tables = [request for request in requests if request.kind == "table"]
    stated = sum(3000 * (1 << int(r.params[0])) * (4 if r.op == "guard" else 36 if r.params[7] else 28) for r in tables)
    assert dealer_bytes(requests) == stated + (0 if function.lower is None else 3000 * 16)
    assert all(r.params[0] <= MAX_LOG_BINS for r in tables)


@pytest.mark.parametrize(("name", "function", "low", "high", "unit"), functions(), ids=[c[0] for c in functions()])
def test_every_number_out_of_range_is_marked(
    name: str, function: Function, low: float, high: float, unit: float
) -> None:
    """Each row alone: a little above, far above, where the tables wrap, and a thousand times above."""
    top = 2.0 ** (function.guard_bits + 1) * unit
    above = torch.cat([torch.linspace(1.17 * high, 0.999 * top, 500), torch.tensor([1.2 * high])]).double()
    _, mark, _, _ = look_up(function, (above / unit).long())
    assert int((mark == 0).sum()) == 0
    beyond = torch.tensor([top, 1.5 * top, 2.0 * top + 0.5 * high, 1000.3 * top, 2.0**61 * unit]) / unit
    assert all(marked(function, int(x)) for x in beyond.tolist())
    # Below the range lies less than one bin of slack, whose width is at most half of the low end; then marks.
    below = torch.cat([torch.linspace(0, 0.45 * low, 400), torch.tensor([0.0, unit])]).double() / unit
    _, mark, _, _ = look_up(function, below.long())
    assert int((mark == 0).sum()) == 0


@settings(max_examples=20, deadline=None)
@given(st.floats(0, 5), st.floats(-6, 3))
def test_whatever_the_range_what_is_too_small_is_marked(log_ratio: float, log_low: float) -> None:
    low, high = 10**log_low, 10 ** (log_low + log_ratio)
    try:
        norm = norms.norm("x", 384, 1e-12, {"x.variance": (low, high)})
    except RangeError:
        assert high / low > 1e4 or high > 2_500, "only what is very wide or large may be refused"
        return
    low = min(spec.low for spec in (norm.function.upper.spec, (norm.function.lower or norm.function.upper).spec))
    unit = 2.0 ** (-2 * norm.scale) / 384
    below = torch.linspace(0, 0.45 * low, 60).double() / unit
    _, mark, _, _ = look_up(norm.function, below.long())
    assert int((mark == 0).sum()) == 0


def marked(function: Function, x: int, real: int = 1) -> bool:
    values = torch.tensor([x, 1 << (function.guard_bits - 1), 0])
    shares = split(values)
    flags = torch.tensor([real, 1, 1])
    results, _, _ = run(lambda party: guard.mark(party, [(shares[party.rank], function.guard_bits, flags)]))
    return int(results[0] + results[1]) != 0


def test_the_guard_leaves_good_and_padding_rows_alone() -> None:
    function = functions()[0][1]
    assert not marked(function, (1 << function.guard_bits) - 1)
    assert not marked(function, 0)
    assert not marked(function, 1 << 61, real=0)


def test_the_guards_stated_cost() -> None:
    groups = [(integers(40, bits=20, signed=False), 30, torch.ones(40, dtype=torch.int64))] * 2
    _, counters, requests = run(lambda party: guard.mark(party, groups))
    assert counters[0].rounds == 3
    assert counters[0].bytes_sent == 80 * 24
    assert dealer_bytes(requests) == 80 * 32


def test_the_ring_carries_512_positions_and_says_when_it_does_not() -> None:
    layer = LayerScales(0, 5, 0.05, None, None)  # type: ignore[arg-type]
    assert row_function(layer, 9).upper.spec.function == "reciprocal"
    with pytest.raises(RangeError, match="1024 positions"):
        row_function(layer, 10)
