"""A function with a window gives what its lines give in the clear, wherever the value is."""

import hashlib
import math

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from mpcformer.approximations import GELU_FORMS, piecewise_gelu
from mpcformer.approximations.gelu_exact import GELU_ERROR, LINES
from mpcformer.correlations import Request, validate
from mpcformer.correlations.kinds import KINDS
from mpcformer.correlations.window import BORROW, N_BINS, correct_by_torch, power
from mpcformer.engines.lift.scales.fixed_point import EXPONENTIAL as EXPONENTIAL_RINGS
from mpcformer.engines.lift.scales.fixed_point import WIDE
from mpcformer.engines.lift.scales.model import activation
from mpcformer.engines.lift.scales.rows import LayerScales, softmax_exponential
from mpcformer.errors import ProtocolError
from mpcformer.protocols.party import Party
from mpcformer.protocols.window import ExponentialFunction, Windowed, WindowFunction, _rotated
from mpcformer.ring.kernels import load
from mpcformer.ring.packing import reduce
from mpcformer.ring.random import Stream
from tests.pair import integers, run_protocol, share

GELU = activation(GELU_FORMS["gelu"])


def evaluated(function: Windowed, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the function's result modulo 2^lift, as signed numbers, and whether each value was in the window."""
    shares = share(x, function.bits)

    def owner(party: Party) -> tuple[torch.Tensor, torch.Tensor]:
        evaluation = function.evaluation(party.take(function.request(tuple(x.shape))), party.rank)
        result = evaluation.evaluate(party, party.open([evaluation.half(shares[party.rank])])[0])
        return result, evaluation.inside(party) if function.counted else torch.zeros_like(result)

    (one, other), *_ = run_protocol(owner)
    spare = 64 - function.lift
    return tuple(((a + b) << spare) >> spare for a, b in zip(one, other, strict=True))  # type: ignore[return-value]


def candidates(function: WindowFunction, x: torch.Tensor) -> torch.Tensor:
    """Return what may come out, in the clear: the line of the bin below, of the bin after it, and those outside."""
    width = 1 << function.log_width
    step = width // N_BINS
    at = x + width // 2
    index = at.div(step, rounding_mode="floor")
    values, slopes = torch.tensor(function.values), torch.tensor(function.slopes)
    found = []
    for n in (0, 1):
        bin_ = (index + n) % N_BINS
        found.append(values[bin_] + slopes[bin_] * (at - (index + n) * step) + function.below)
    constant, *slope = function.above
    above = constant + (slope[0] * x if slope else torch.zeros_like(x)) + function.below
    low, high = function.thresholds
    early = BORROW.early(function.bits)
    inside = torch.stack(found)
    outside = torch.stack([above, torch.full_like(x, function.below)])
    sure_in, sure_above = (x >= low) & (x < high - early), x >= high
    sure_below = x < low - early
    near_high, near_low = ~sure_in & ~sure_above & (x > 0), ~sure_in & ~sure_below & (x < 0)
    first = torch.where(sure_above, above, torch.where(sure_below, torch.full_like(x, function.below), inside[0]))
    second = torch.where(sure_above | sure_below, first, inside[1])
    third = torch.where(near_high, outside[0], torch.where(near_low, outside[1], first))
    return torch.stack([first, second, third])


def around(function: WindowFunction) -> torch.Tensor:
    """Return values around every place of the window, and far outside it."""
    low, high = -(1 << (function.log_width - 1)), 1 << (function.log_width - 1)
    places = torch.arange(low, high + 1, (high - low) // N_BINS)
    near = (places[:, None] + torch.arange(-70, 71)).flatten()
    reach = (1 << (function.bits - 2)) - 1
    return torch.cat([near, torch.tensor([-reach, reach, 0]), integers(2000, bits=function.bits - 1)])


@pytest.mark.parametrize("constant", [False, True])
@pytest.mark.parametrize(("bits", "lift"), [(24, 52), (20, 44), (28, 64)])
def test_every_value_gets_its_line(bits: int, lift: int, constant: bool) -> None:
    values = tuple(int(v) for v in integers(N_BINS, bits=19).tolist())
    slopes = tuple(int(s) for s in integers(N_BINS, bits=8).tolist())
    above = (12345,) if constant else (-77, 33)
    function = WindowFunction(bits, lift, 13, values, slopes, above, below=-4321, down=3, counted=True)
    x = around(function)
    result, inside = evaluated(function, x)
    near = (candidates(function, x) - result).abs() <= 1 << function.down
    assert bool(near.any(0).all())
    low, high = function.thresholds
    early = BORROW.early(bits)
    assert bool((inside[(x >= low) & (x < high - early)] == 1).all())
    assert bool((inside[(x < low - early) | (x >= high)] == 0).all())


def test_gelu_is_as_near_as_stated() -> None:
    function = GELU.function
    assert isinstance(function, WindowFunction)
    x = torch.cat([torch.arange(-5 << GELU.scale, 5 << GELU.scale, 2), integers(500, bits=function.bits - 1)])
    real = x.double() * 2.0**-GELU.scale
    expected = 0.5 * real * (1 + torch.erf(real / math.sqrt(2)))
    result = evaluated(function, x)[0].double() * 2.0**-LINES.value_scale
    assert float((result - expected).abs().max()) < GELU_ERROR
    assert float((piecewise_gelu(real) - expected).abs().max()) < GELU_ERROR


@pytest.mark.parametrize(
    ("bits", "limit", "exponent_scale"),
    [(24, 4 << 14, 14), (24, (1 << 22) * 31 // 32, 20), (24, 40_000, 15), (20, 5000, 12)],
)
def test_exponentials_are_exact_and_clamped(bits: int, limit: int, exponent_scale: int) -> None:
    function = ExponentialFunction(bits, limit, exponent_scale, 19)
    reach = (1 << (bits - 2)) - 1
    ends = torch.cat([end + torch.arange(-300, 300) for end in (-limit, 0, limit)]).clamp(-reach, reach)
    x = torch.cat([torch.linspace(-limit, limit, 5000).long(), ends, integers(2000, bits=bits - 1)])
    result, inside = evaluated(function, x)
    clamped = x.clamp(-limit, limit).double()
    expected = torch.exp(clamped * 2.0**-exponent_scale)
    error = (result.double() * 2.0**-function.result_scale - expected).abs()
    early = BORROW.early(bits)
    # A value that counts as having reached its end a little early has the end's value.
    allowed = expected * (
        2.0**-17 + early * 2.0**-exponent_scale * ((x + limit).abs().minimum((x - limit).abs()) <= early)
    )
    assert bool((error <= allowed + 3 * 2.0**-function.value_scale).all())
    assert bool((inside[(x >= -limit) & (x < limit - early)] == 1).all())
    assert bool((inside[(x < -limit - early) | (x >= limit)] == 0).all())


@pytest.mark.parametrize("shift", [0, 6])
def test_scores_within_the_stated_limits_are_never_outside(shift: int) -> None:
    layer = LayerScales(shift, 0, 0.0, None, None, squarings=4, score_limit=40_000, rings=EXPONENTIAL_RINGS)  # type: ignore[arg-type]
    low, high = (round(end * 2.0 ** (WIDE.score_scale - shift)) for end in layer.row_limits)
    x = torch.cat([torch.arange(low - 100, low + 100), torch.arange(high - 100, high + 100)])
    inside = torch.stack([evaluated(softmax_exponential(layer), x)[1] for _ in range(8)])
    assert bool((inside[:, (x >= low) & (x < high)] == 1).all())
    assert bool((inside[:, x >= high + BORROW.early(WIDE.score_bits)] == 0).all())


@pytest.mark.skipif(load()[0] is None, reason=f"no compiled functions here: {load()[1]}")
@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["lines", "line above", "exponential"]),
    st.sampled_from([20, 24, 28]),
    st.lists(st.integers(1, 9), min_size=1, max_size=2),
    st.integers(0, 1),
    st.integers(0, 2**32),
)
def test_compiled_functions_give_the_bits_of_torch(
    kind: str, bits: int, shape: list[int], rank: int, seed: int
) -> None:
    stream = Stream(seed.to_bytes(16, "little"))
    values, slopes = (tuple(int(v) >> by for v in stream.int64((N_BINS,)).tolist()) for by in (45, 56))
    above = (-77, 33) if kind == "line above" else (12345,)
    function: Windowed = WindowFunction(
        bits, 52, 13, values, slopes, above, below=-4321, down=3, counted=kind == "lines"
    )
    if kind == "exponential":
        function = ExponentialFunction(bits, 3 << 10, 11, 19)
    request = function.request(shape)
    draws = [KINDS["window"].draw(request, stream, rank) for rank in (0, 1)]
    corrections = correct_by_torch(request, *draws)
    assert all(map(torch.equal, KINDS["window"].correct(request, *draws), corrections))
    evaluation = function.evaluation(draws[0] + corrections if rank == 0 else draws[1], rank)
    c, opened = (reduce(stream.int64(shape), width) for width in (bits, 8))
    comparisons, party = evaluation.comparisons, Party(rank, None, None)  # type: ignore[arg-type]
    inputs, local = comparisons.inputs(c)
    assert all(map(torch.equal, (inputs, local), comparisons.inputs_by_torch(c)))
    assert torch.equal(comparisons.reached(opened, local), comparisons.reached_by_torch(opened, local))
    assert all(map(torch.equal, evaluation.picked(c), evaluation.picked_by_torch(c)))
    evaluation.chosen = reduce(stream.int64(shape), 2)
    numbers = [reduce(stream.int64(shape), width) for width in function.spec(shape).opened_bits]
    assert torch.equal(evaluation.combined(party, c, numbers), evaluation.combined_by_torch(party, c, numbers))


@pytest.mark.parametrize("sign", [-1, 1])
def test_powers_of_e(sign: int) -> None:
    spec = ExponentialFunction(24, 4 << 14, 14, 19).spec((1,))
    low = torch.arange(1 << spec.bin_bits)
    expected = torch.exp(sign * low.double() * 2.0**-14)
    assert float((power(low, spec, sign).double() * 2.0**-20 / expected - 1).abs().max()) < 2.0**-18


@settings(max_examples=30, phases=[Phase.explicit, Phase.generate])
@given(st.integers(-(2**63), 2**63 - 1), st.integers(-(2**63), 2**63 - 1), st.integers(0, 127))
def test_words_are_turned(low: int, high: int, turn: int) -> None:
    word = ((high % 2**64) << 64) | (low % 2**64)
    expected = ((word << turn) | (word >> (128 - turn))) % 2**128
    found = _rotated(*(torch.tensor([n]) for n in (low, high, turn)))
    assert [int(part) % 2**64 for part in found] == [expected % 2**64, expected >> 64]


def test_the_numbers_are_the_same_everywhere() -> None:
    """Another value would be another protocol: owners with different processors must compute the same integers."""
    function = ExponentialFunction(24, 40_000, 15, 19)
    powers = power(torch.arange(1 << 10), function.spec((1,)), -1).tolist()
    numbers = repr((LINES.fitted, function.values, function.below, function.above, powers))
    digest = hashlib.sha256(numbers.encode()).hexdigest()
    assert digest == "f77a56031ce381bfde2ff3736c1bef4c549f8365a209a96243daa78ac2ab9dcb"


LINES_REQUEST = (52, 14, 20, 12, 4, 0, 1, 0)
EXPONENTIAL_REQUEST = (64, 18, 28, 0, 0, 15, 0, 1)


@pytest.mark.parametrize(
    ("op", "bits", "params", "changed", "message"),
    [
        ("cubic", 24, LINES_REQUEST, {}, "parameters"),
        ("lines", 24, LINES_REQUEST[:-1], {}, "parameters"),
        ("lines", 24, LINES_REQUEST, {4: 4.5}, "parameters"),
        ("lines", 24, LINES_REQUEST, {0: float("inf")}, "parameters"),
        ("lines", 24, LINES_REQUEST, {0: 53}, "not defined"),
        ("lines", 24, LINES_REQUEST, {1: 24}, "not defined"),
        ("lines", 24, LINES_REQUEST, {1: 5}, "not defined"),
        ("lines", 24, LINES_REQUEST, {2: 21}, "not defined"),
        ("lines", 24, LINES_REQUEST, {3: 0}, "not defined"),
        ("lines", 24, LINES_REQUEST, {4: 40}, "not defined"),
        ("lines", 24, LINES_REQUEST, {4: -1}, "not defined"),
        ("lines", 24, LINES_REQUEST, {5: 3}, "not defined"),
        ("lines", 24, LINES_REQUEST, {6: 2}, "not defined"),
        ("lines", 24, LINES_REQUEST, {7: 2}, "not defined"),
        ("lines", 56, LINES_REQUEST, {}, "not defined"),
        ("lines", 23, LINES_REQUEST, {}, "does not pack"),
        ("exponential", 24, EXPONENTIAL_REQUEST, {3: 12}, "not defined"),
        ("exponential", 24, EXPONENTIAL_REQUEST, {4: 1}, "not defined"),
        ("exponential", 24, EXPONENTIAL_REQUEST, {5: 10}, "not defined"),
        ("exponential", 24, EXPONENTIAL_REQUEST, {5: 1000}, "not defined"),
        ("exponential", 40, EXPONENTIAL_REQUEST, {1: 30, 5: 30}, "not defined"),
    ],
)
def test_malformed_requests(
    op: str, bits: int, params: tuple[float, ...], changed: dict[int, float], message: str
) -> None:
    numbers = tuple(float(changed.get(n, number)) for n, number in enumerate(params))
    with pytest.raises(ProtocolError, match=message):
        validate(Request("window", ((3,),), op=op, bits=bits, params=numbers))


@pytest.mark.parametrize(("op", "params"), [("lines", LINES_REQUEST), ("exponential", EXPONENTIAL_REQUEST)])
def test_these_requests_are_well_formed_otherwise(op: str, params: tuple[int, ...]) -> None:
    validate(Request("window", ((3,),), op=op, bits=24, params=tuple(map(float, params))))
