"""Every operation on CrypTen's shares against its plaintext twin: one table, run by two parties in memory."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import gelu

from mpcformer.engines.crypten import compat as compat
from mpcformer.engines.crypten import ops as ops
from mpcformer.engines.crypten.newton import reciprocal_plan, rsqrt_plan
from mpcformer.errors import ProtocolError, RangeError
from tests.pair import run_pair, shared

ULP = 2.0**-16
X = torch.linspace(-9.0, 9.0, 60).view(3, 20)
Y = torch.linspace(0.4, 7.0, 60).view(3, 20)
Z = torch.linspace(-20.0, 0.0, 60).view(3, 20)
MASK = torch.tensor([1, 0] * 10)

# name, private, plaintext twin, operands, largest error, rounds
CASES: list[tuple[str, Callable[..., Any], Callable[..., torch.Tensor], tuple[torch.Tensor, ...], float, int]] = [
    ("matmul", lambda a, b: ops.matmul(a, b), lambda a, b: a @ b, (X, Y.t().contiguous()), 70 * ULP * 9, 2),
    (
        "matmul shifted",
        lambda a, b: ops.matmul(a, b, shift=5),
        lambda a, b: a @ b / 32,
        (X, Y.t().contiguous()),
        30 * ULP,
        2,
    ),
    ("multiply", ops.multiply, torch.mul, (X, Y), 12 * ULP, 2),
    ("multiply broadcast", ops.multiply, torch.mul, (X, Y[:, :1].contiguous()), 12 * ULP, 2),
    ("square", ops.square, torch.square, (X,), 12 * ULP, 2),
    ("quad", lambda a: ops.square(ops.add_public(a, 1.0), shift=3), lambda a: (a + 1) ** 2 / 8, (X,), 5 * ULP, 2),
    ("square_sum", lambda a: ops.square_sum(a, dim=-1), lambda a: (a * a).sum(-1, keepdim=True), (X,), 200 * ULP, 2),
    ("times_public", lambda a: ops.times_public(a, 1 / 384), lambda a: a / 384, (X,), 2 * ULP, 1),
    ("times_public large", lambda a: ops.times_public(a, 3e5), lambda a: a * 3e5, (X,), 3e5 * 10 * ULP, 0),
    ("times_public zero", lambda a: ops.times_public(a, 0.0), lambda a: a * 0, (X,), 0.0, 0),
    ("times 2^-3", lambda a: ops.times_power_of_two(a, -3), lambda a: a / 8, (X,), 2 * ULP, 1),
    ("times 2^3", lambda a: ops.times_power_of_two(a, 3), lambda a: a * 8, (X,), 8 * ULP, 0),
    ("times_integers", lambda a: ops.times_integers(a, MASK), lambda a: a * MASK, (X,), ULP, 0),
    ("times_fractions", lambda a: ops.times_fractions(a, Z / -10), lambda a: a * Z / -10, (X,), 12 * ULP, 1),
    ("relu", ops.relu, torch.relu, (X,), 2 * ULP, 10),
    ("maximum", lambda a: ops.maximum(a, dim=-1), lambda a: a.amax(-1, keepdim=True), (X,), 2 * ULP, 50),
    ("reciprocal", lambda a: ops.reciprocal(a, reciprocal_plan(0.3, 8.0)), torch.reciprocal, (Y,), 8 * ULP, 25),
    ("rsqrt", lambda a: ops.rsqrt(a, rsqrt_plan(0.3, 8.0)), torch.rsqrt, (Y,), 8 * ULP, 31),
    ("exp_negative", lambda a: ops.exp_negative(a, bound=20.0), torch.exp, (Z,), 1e-3, 13),
    ("tanh", lambda a: ops.tanh(a, bound=9.0), torch.tanh, (X,), 1e-3, 45),
    ("gelu", ops.gelu, gelu, (X,), 1e-3, 28),
]


@pytest.mark.parametrize(("name", "private", "plain", "operands", "error", "rounds"), CASES, ids=[c[0] for c in CASES])
def test_private_equals_plain(
    name: str,
    private: Callable[..., Any],
    plain: Callable[..., torch.Tensor],
    operands: tuple[torch.Tensor, ...],
    error: float,
    rounds: int,
) -> None:
    # Each party owns every second operand, as in an inference.
    def run(party: int) -> torch.Tensor:
        mine = [shared(operand, owner=1 - i % 2) for i, operand in enumerate(operands)]
        result: torch.Tensor = private(*mine).get_plain_text()
        return result

    (left, right), counters, _ = run_pair(run)
    assert torch.equal(left, right)
    assert float((left - plain(*operands)).abs().max()) <= error
    assert counters.rounds <= rounds + 1, "the last round opens the result"


@settings(max_examples=40)
@given(st.integers(-(2**62), 2**62 - 1), st.integers(1, 60))
def test_truncation_is_floor_or_one_more_on_the_whole_range(z: int, bits: int) -> None:
    values = torch.full((64,), z)

    def run(party: int) -> torch.Tensor:
        share = shared(torch.zeros(64)).share + (values if party == 0 else 0)
        opened: torch.Tensor = compat.current().communicator.all_reduce(compat.truncate(share, bits))
        return opened

    (result, _), counters, requests = run_pair(run)
    assert set(result.tolist()) <= {z >> bits, (z >> bits) + 1}
    assert counters.bytes_sent == 2 * 64 * 8  # the docstring's 8 n, and the opening
    assert [request.kind for request in requests] == ["truncation"]


def test_truncation_shares_are_fresh() -> None:
    """The result's shares do not repeat when the same input shares are truncated twice."""

    def run(party: int) -> tuple[torch.Tensor, torch.Tensor]:
        share = shared(X).share
        return compat.truncate(share, 4), compat.truncate(share, 4)

    (first, _), _, _ = run_pair(run)
    assert not bool((first[0] == first[1]).any())


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -1e300, 2.0**47])
def test_numbers_that_do_not_fit_are_refused(bad: float) -> None:
    with pytest.raises(RangeError):
        compat.crypten.encoder.FixedPointEncoder(16).encode(torch.tensor([1.0, bad], dtype=torch.float64))


@given(st.floats(-1e6, 1e6))
def test_encoding_is_to_the_nearest_and_decodes_back(value: float) -> None:
    encoder = compat.crypten.encoder.FixedPointEncoder(16)
    encoded = encoder.encode(torch.tensor([value], dtype=torch.float64))
    assert abs(int(encoded) / 2**16 - value) <= ULP / 2
    assert abs(float(encoder.decode(encoded)) - value) <= ULP / 2 + abs(value) * 2.0**-24


@pytest.mark.parametrize("divisor", ["2", None, [2.0]])
def test_division_by_other_than_public_numbers_is_refused(divisor: object) -> None:
    with pytest.raises(ProtocolError, match="division"):
        run_pair(lambda party: shared(X).div(divisor))
