"""Comparisons and piecewise polynomials give what their plaintext twins give, at the stated cost."""

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from mpcformer.correlations import Request, validate
from mpcformer.correlations.comparison import Borrow
from mpcformer.correlations.piecewise import BORROW
from mpcformer.errors import ProtocolError
from mpcformer.protocols.party import Party
from mpcformer.protocols.piecewise import Evaluation, Piece, PiecewiseFunction, relu
from mpcformer.ring.packing import WIDTHS
from tests.pair import dealer_bytes, integers, run_protocol, share


def evaluated(function: PiecewiseFunction, x: torch.Tensor) -> tuple[torch.Tensor, int, int, list[Request]]:
    """Return the function's result, the rounds, the bytes in one direction, and the correlations."""
    shares = share(x, function.bits)

    def owner(party: Party) -> torch.Tensor:
        evaluation = Evaluation(function, party.take(function.request(tuple(x.shape))), party.rank)
        return evaluation.evaluate(party, party.open([evaluation.half(shares[party.rank])])[0])

    results, counters, requests = run_protocol(owner)
    assert counters[0].bytes_sent == counters[1].bytes_sent
    return results[0] + results[1], counters[0].rounds, counters[0].bytes_sent, requests


def twin(function: PiecewiseFunction, x: torch.Tensor, early: int = 0) -> torch.Tensor:
    """Evaluate the function in the clear, with every threshold lowered by `early`."""
    total = torch.full_like(x, function.constant)
    for piece in function.pieces:
        counts = sum(((x >= t - early).long() for t in piece.thresholds), torch.zeros_like(x)) % 2
        total += counts * sum((k * x**n for n, k in enumerate(piece.coefficients)), torch.zeros_like(x))
    return total


def steps(*degrees: int) -> PiecewiseFunction:
    """Make a function of pieces with these degrees, which begin at thresholds far apart."""
    thresholds = (-3000, -1000, -1, 0, 1, 7, 1000, 2000)
    pieces = [Piece((t,), (t + 3, 5, 2)[: d + 1]) for t, d in zip(thresholds, degrees, strict=False)]
    return PiecewiseFunction(24, tuple(pieces), 17)


def clamp(bits: int, bound: int) -> PiecewiseFunction:
    """Make max(-bound, min(x, bound)), which has an interval and a constant."""
    upper, lower = Piece((bound,), (bound,)), Piece((-bound,), (bound,))
    return PiecewiseFunction(bits, (Piece((-bound, bound), (0, 1)), upper, lower), -bound)


@pytest.mark.parametrize(
    ("function", "rounds"),
    [
        (relu(24), 3),
        (clamp(24, 1000), 3),
        (steps(0), 3),
        (steps(2, 2, 2, 2, 2, 2, 2, 2), 3),
        (steps(0, 1, 2, 0, 1), 3),
    ],
    ids=["relu", "clamp", "bit", "quadratics", "mixed"],
)
def test_pieces_are_exact_in_a_ring_of_24_bits(function: PiecewiseFunction, rounds: int) -> None:
    x = integers(9, 301, bits=23)
    for row, t in enumerate(function.thresholds):  # every number around every threshold
        x[row % 9] = torch.arange(-150, 151) + t
    result, n_rounds, n_bytes, requests = evaluated(function, x)
    assert torch.equal(result, twin(function, x))
    n, n_thresholds = x.numel(), len(function.thresholds)
    inputs = next(width // 8 for width in WIDTHS if width >= 8 * n_thresholds)
    assert (n_rounds, n_bytes) == (rounds, n * (3 + inputs + 1))
    lifted = 2 * 5 + (5 + 8 if function.use == "square" else 0)
    pieces = sum((8, 8 + 8 + 5, 8 + 8 + 5 + 8 + 5)[len(piece.coefficients) - 1] for piece in function.pieces)
    assert dealer_bytes(requests) == n * (lifted + 8 * BORROW.n_chunks + 2 * n_thresholds + pieces)


@settings(max_examples=25, phases=[Phase.explicit, Phase.generate])
@given(st.sampled_from([32, 40, 48]), st.integers(-(2**21), 2**21))
def test_wider_rings_may_reach_a_threshold_early_and_never_otherwise(bits: int, threshold: int) -> None:
    function = PiecewiseFunction(bits, (Piece((threshold,), (1,)),))
    early = BORROW.early(bits)
    x = torch.cat(
        [integers(200, bits=bits - 1), threshold + torch.arange(-300, 300), threshold - early - torch.arange(3)]
    )
    result, *_ = evaluated(function, x)
    latest, earliest = twin(function, x), twin(function, x, early)
    assert bool(((result == latest) | (result == earliest)).all())
    assert bool((result[x < threshold - early] == 0).all())


@pytest.mark.parametrize("n_chunks", [3, 4])
def test_the_borrows_polynomial(n_chunks: int) -> None:
    """For all inputs under all masks, the selected products of masks add up to the borrow of the unmasked inputs."""
    borrow, n = Borrow(n_chunks), 2 * (n_chunks - 1)
    selected, constant = borrow.selectors
    size = 1 << n
    opened, masks = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    word = (masks | (borrow.mask_products[masks] << n)) & selected[opened]
    parity = torch.tensor([int(w).bit_count() & 1 for w in word.flatten().tolist()]).view(size, size)
    bits = [((opened ^ masks) >> i) & 1 for i in range(n)]
    equal, less = bits[: n // 2], bits[n // 2 :]
    expected, all_equal = torch.zeros_like(opened), torch.ones_like(opened)
    for same, below in zip(equal, less, strict=True):
        all_equal = all_equal & same
        expected = expected ^ (all_equal & below)
    assert torch.equal(parity ^ constant[opened], expected)


@pytest.mark.parametrize(
    ("op", "bits", "params", "message"),
    [
        ("norm", 32, (1.0, 1.0), "op 'norm'"),
        ("plain", 32, (9.0, 1.0), "parameters"),
        ("plain", 32, (1.0,), "parameters"),
        ("plain", 32, (1.0, 3.0), "parameters"),
        ("plain", 32, (1.0, *[1.0] * 9), "parameters"),
        ("plain", 32, (1.0, 2.0), "needs op square"),
        ("square", 10, (1.0, 2.0), "10"),
    ],
)
def test_malformed_piecewise_requests(op: str, bits: int, params: tuple[float, ...], message: str) -> None:
    with pytest.raises(ProtocolError, match=message):
        validate(Request("piecewise", ((3,),), op=op, bits=bits, params=params))
