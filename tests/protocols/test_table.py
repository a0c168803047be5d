"""Tables are as exact as stated, and tables and range guard mark every number out of range."""

import hashlib
import math
import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mpcformer.channel import Counters
from mpcformer.correlations import Request
from mpcformer.correlations.table import MAX_LOG_BINS, pieces
from mpcformer.engines.lift.scales import fixed_point as fp
from mpcformer.engines.lift.scales import norms
from mpcformer.engines.lift.scales.head import TANH_ERROR, TANH_WIDTH
from mpcformer.engines.lift.scales.rows import LayerScales, row_bits, row_function, softmax_functions
from mpcformer.engines.lift.scales.tables import table
from mpcformer.errors import RangeError
from mpcformer.protocols import guard
from mpcformer.protocols.party import Party
from mpcformer.protocols.table import Lookup, TableFunction, look_up_by_torch
from mpcformer.ring import kernels
from mpcformer.ring.packing import reduce
from mpcformer.ring.random import Stream, derive_key
from tests.pair import dealer_bytes, integers, run_protocol, share

# SHA-256 of the coefficients that `test_every_processor_has_the_same_coefficients` makes.
COEFFICIENTS = "da79bd825a79133df99ebc54b6c332e43e466a868e8895eb037f7846556be5b3"


def functions() -> list[tuple[str, TableFunction, float, float, float]]:
    """Return for each function its name, its tables, the ends of its range, and the unit of its argument."""
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


def stated_error(function: TableFunction) -> float:
    """Compute the bound of correlations/table.py for the bins at the low end, plus the error of 11-bit positions."""
    found = []
    for argument in (function.upper, function.lower):
        if argument is not None:
            spec = argument.spec
            width = 2 * spec.unit * 2.0**spec.bin_bits
            d = width / ((spec.split or spec.low) - width)
            found.append((2 if spec.function == "reciprocal" else 0.63) * (d / 4) ** 3 + d / 2**11)
    return max(found)


def look_up(
    function: TableFunction, x: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, list[Counters], list[Request]]:
    shares = share(x)

    def owner(party: Party) -> tuple[torch.Tensor, torch.Tensor]:
        tables = [party.take(request) for request in Lookup.requests(function, x.numel())]
        lookup = Lookup(function, tables, party.rank)
        return lookup.evaluate(party, party.open(lookup.halves(shares[party.rank])))

    results, counters, requests = run_protocol(owner)
    value, mark = (a + b for a, b in zip(*results, strict=True))
    return value, reduce(mark, 32), counters, requests


@pytest.mark.parametrize(("name", "function", "low", "high", "unit"), functions(), ids=[c[0] for c in functions()])
def test_tables(name: str, function: TableFunction, low: float, high: float, unit: float) -> None:
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
    stated = sum(3000 * (16 * int(r.params[0]) + (8 if r.op == "guard" else 24)) for r in tables)
    assert dealer_bytes(requests) == stated + (0 if function.lower is None else 3000 * 16)
    assert all(r.params[0] <= MAX_LOG_BINS for r in tables)


@pytest.mark.parametrize(("name", "function", "low", "high", "unit"), functions(), ids=[c[0] for c in functions()])
def test_every_number_out_of_range_is_marked(
    name: str, function: TableFunction, low: float, high: float, unit: float
) -> None:
    """Each row is tested alone: a little above the range, far above, where tables wrap, and a thousand times above."""
    top = 2.0 ** (function.guard_bits + 1) * unit
    above = torch.cat([torch.linspace(1.17 * high, 0.999 * top, 500), torch.tensor([1.2 * high])]).double()
    _, mark, _, _ = look_up(function, (above / unit).long())
    assert int((mark == 0).sum()) == 0
    beyond = torch.tensor([top, 1.5 * top, 2.0 * top + 0.5 * high, 1000.3 * top, 2.0**61 * unit]) / unit
    assert all(marked(function, int(x)) for x in beyond.tolist())
    # Less than one bin below the range is not marked; a bin is at most half of the low end wide.
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


def test_the_ring_carries_512_positions_and_says_when_it_does_not() -> None:
    layer = LayerScales(0, 5, 0.05, None, None)  # type: ignore[arg-type]
    assert row_function(layer, 9).upper.spec.function == "reciprocal"
    with pytest.raises(RangeError, match="1024 positions"):
        row_function(layer, 10)


@pytest.mark.parametrize("log_keys", range(1, 10))
@pytest.mark.parametrize(("squarings", "limit"), [(1, 4.0), (1, 8.0), (2, 16.0), (4, 54.7), (6, 248.0)])
def test_softmax_tables_hold_every_row_that_can_be(log_keys: int, squarings: int, limit: float) -> None:
    """Reciprocals of row means are exact enough and set no mark, for all lengths and clamps."""
    numbers = LayerScales(2, 0, 0.0, None, None, squarings=squarings, score_limit=int(limit * 2.0**12))  # type: ignore[arg-type]
    layer = replace(numbers, rings=fp.EXPONENTIAL)
    unit = 2.0 ** -(2 * fp.POWER_SCALE + log_keys + fp.KEY_FACTOR_BITS)
    y = limit / 2**squarings
    ranges = [(0.875 * math.exp(-y), 1.125 * math.exp(y)), (0.8, 1.2 * 2**log_keys)]
    tables = [(*each, 0.02, unit) for each in zip(softmax_functions(layer, log_keys), ranges, strict=True)]
    part = 0.5 ** (log_keys + 1)
    last = (row_function(layer, log_keys), (0.8 * part, 1.2 * 2**log_keys * part), 0.003)
    for function, (low, high), error, unit in (*tables, (*last, 2.0 ** -row_bits(layer, log_keys))):
        real = torch.logspace(math.log10(low), math.log10(high), 300, dtype=torch.float64)
        x = (real / unit).round().long()
        value, mark, _, _ = look_up(function, x)
        relative = value.double() * 2.0**-function.upper.spec.scale * real - 1
        assert float(relative.abs().max()) < error
        assert int(mark.count_nonzero()) == 0


def test_softmax_tables_are_the_same_everywhere() -> None:
    """Their ranges are powers of e, of which C libraries do not agree on the last bit."""
    specs = []
    for limit in (24_576, 61_440, 100_001, 3_999_999):
        layer = LayerScales(0, 0, 0.0, None, None, squarings=6, score_limit=limit, rings=fp.EXPONENTIAL)  # type: ignore[arg-type]
        specs += [part.spec for function in softmax_functions(layer, 7) for part in function.parts]
    assert (
        hashlib.sha256(repr(specs).encode()).hexdigest()
        == "d5200ed73648c07d7ce1d3b7ca74b67b490f6a6f22d8aa18c78601095bdd0f95"
    )


def marked(function: TableFunction, x: int, real: int = 1) -> bool:
    values = torch.tensor([x, 1 << (function.guard_bits - 1), 0])
    shares = share(values)
    flags = torch.tensor([real, 1, 1])
    results, _, _ = run_protocol(lambda party: guard.mark(party, [(shares[party.rank], function.guard_bits, flags)], 1))
    return int(results[0] + results[1]) != 0


def test_the_guard_leaves_good_and_padding_rows_alone() -> None:
    function = functions()[0][1]
    assert not marked(function, (1 << function.guard_bits) - 1)
    assert not marked(function, 0)
    assert not marked(function, 1 << 61, real=0)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 4), st.lists(st.integers(1, 3), min_size=1, max_size=3), st.data())
def test_the_guard_marks_each_run_of_rows_by_itself(n_marks: int, sizes: list[int], data: st.DataObject) -> None:
    """Several groups, each with so many rows for a mark: a mark is set exactly if a row of its own is too large."""
    bits, expected, groups = 20, torch.zeros(n_marks, dtype=torch.bool), []
    for size in sizes:
        flags = st.lists(st.booleans(), min_size=n_marks * size, max_size=n_marks * size)
        large, real = (torch.tensor(data.draw(flags)).view(n_marks, size) for _ in range(2))
        expected |= (large & real).any(1)
        # From 2^(bits + 1) on a row is always marked, below 2^bits never.
        x = torch.where(large, 5 << bits, (1 << bits) - 1)
        groups.append((share(x.view(-1)), bits, real.long().view(-1)))

    def owner(party: Party) -> torch.Tensor:
        return guard.mark(party, [(shares[party.rank], bits, real) for shares, bits, real in groups], n_marks)

    results, _, _ = run_protocol(owner)
    assert torch.equal(results[0] + results[1] != 0, expected)


def test_the_guards_stated_cost() -> None:
    groups = [(integers(40, bits=20, signed=False), 30, torch.ones(40, dtype=torch.int64))] * 2
    _, counters, requests = run_protocol(lambda party: guard.mark(party, groups, 4))
    assert counters[0].rounds == 3
    assert counters[0].bytes_sent == 80 * 24
    assert dealer_bytes(requests) == 80 * 32


@pytest.mark.parametrize(("name", "function", "low", "high", "unit"), functions(), ids=[c[0] for c in functions()])
def test_coefficients_are_the_functions_own(
    name: str, function: TableFunction, low: float, high: float, unit: float
) -> None:
    for argument in (function.upper, function.lower):
        if argument is None:
            continue
        spec, public = argument.spec, pieces(argument.spec)
        inside = (public.outside == 0) & (public.below == 0)
        starts = torch.arange(spec.n_bins)[inside].double() * 2.0**spec.bin_bits
        real = ((starts + spec.base) * spec.unit).clamp(min=spec.low / 4) + spec.epsilon
        expected = real.reciprocal() if name.startswith("reciprocal") else real.rsqrt()
        found = public.coefficients[0, inside].double() * 2.0**-spec.scale
        # The first coefficient makes up for half of what rounding the last one takes from a bin's ends.
        moved = 2.0 ** (2 * spec.log_steps - 2 - spec.scale)
        assert bool(((found - expected).abs() < 1e-6 * expected + moved).all())


@pytest.mark.parametrize("reach", [1.0, 4.0, 8.0, 32.0, 64.0])
def test_tanh_is_off_by_no_more_than_is_stated(reach: float) -> None:
    """In both bins that a quadratic is fitted to, at all arguments of any text."""
    unit, ring = 2.0**-fp.TANH_SCALE, 36
    spec = table("tanh", -reach, reach, unit, fp.POOLED_SCALE, TANH_WIDTH, max_log_bins=13, ring=ring).upper.spec
    public, width = pieces(spec), 1 << spec.log_steps
    y = torch.arange(-width, width + 1, 16).double()
    k0, k1, k2 = (each[:, None] for each in public.coefficients.double() * 2.0**-spec.scale)
    starts = torch.arange(spec.n_bins).double() * 2.0**spec.bin_bits + spec.base
    x = (starts[:, None] + y * 2.0 ** (spec.bin_bits - spec.log_steps)) * spec.unit
    off = (k0 + k1 * y + k2 * y**2 - torch.tanh(x)).abs()
    is_met = (x.abs() <= reach) & (public.outside == 0)[:, None]
    assert bool((x[is_met].min() < -0.999 * reach) & (x[is_met].max() > 0.999 * reach))
    assert float(off[is_met].max()) < TANH_ERROR


def test_every_processor_has_the_same_coefficients() -> None:
    # Each owner computes them, and a difference of one in a single coefficient would make its results random.
    code = """
import hashlib, torch
from tests.protocols.test_table import functions
from mpcformer.correlations.table import pieces
from mpcformer.engines.lift.scales.tables import table
made = [function for _, function, *_ in functions()]
made.append(table("tanh", -6.0, 6.0, 2.0**-16, 14, 0.12, max_log_bins=9))
digest = hashlib.sha256()
for function in made:
    for part in function.parts:
        digest.update(pieces(part.spec).coefficients.numpy().tobytes())
print(digest.hexdigest())
"""
    found = {
        subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"ATEN_CPU_CAPABILITY": level},
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        ).stdout
        for level in ("default", "avx2")
    }
    assert len(found) == 1
    assert found == {f"{COEFFICIENTS}\n"}, "the numbers have changed: owners of two releases would not agree"


FOUND, WHY_NOT = kernels.load()


@pytest.mark.skipif(FOUND is None, reason=WHY_NOT)
@settings(max_examples=100, deadline=None)
@given(st.integers(1, 9), st.integers(0, 7), st.integers(1, 2), st.sampled_from([1, 3, 6]), st.integers(0, 2**40))
def test_the_compiled_look_up_gives_the_twins_numbers(
    rows: int, log_n: int, n_marks: int, count: int, seed: int
) -> None:
    assert FOUND is not None
    stream, n = Stream(derive_key(bytes(16), seed)), 1 << log_n
    vectors, first = stream.int64((count, rows, n)), stream.bits((rows,), 20) % n
    marks, coefficients = list(stream.int64((n_marks, n))), stream.int64((3, n))
    rest = (coefficients, stream.int64((rows,))) if count > 1 else ()
    found, twin = (look_up(vectors, first, marks, *rest) for look_up in (FOUND.tables.look_up, look_up_by_torch))
    assert len(found) == len(twin) == n_marks + (0, 1, 2)[count // 3]
    assert all(torch.equal(a, b) for a, b in zip(found, twin, strict=True))


@pytest.mark.skipif(FOUND is None, reason=WHY_NOT)
def test_what_does_not_fit_a_look_up_is_refused() -> None:
    assert FOUND is not None
    vectors, first = torch.zeros(3, 2, 4, dtype=torch.int64), torch.zeros(2, dtype=torch.int64)
    for marks, begins in (([first], first), ([torch.zeros(4, dtype=torch.int64)], first[:1])):
        with pytest.raises(ValueError, match="does not fit"):
            FOUND.tables.look_up(vectors, begins, marks)
