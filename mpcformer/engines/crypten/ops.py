"""Fixed-point operations on CrypTen's arithmetic shares: products with a chosen rescaling, Newton iterations, exp, max.

Shares are CrypTen's ArithmeticSharedTensor at 16 fraction bits (scale f), and all products go through CrypTen's Beaver
protocol. Each operation has a plaintext twin in tests/engines/test_crypten_ops.py.
"""

import math
from typing import Any

import torch

from mpcformer.engines.crypten.compat import FRAC_BITS, crypten, current, truncate
from mpcformer.engines.crypten.newton import NewtonPlan, reciprocal_plan

Shared = crypten.mpc.primitives.ArithmeticSharedTensor
beaver = crypten.mpc.primitives.beaver
SIGNIFICANT_BITS = 16


def wrap(share: torch.Tensor) -> Any:
    """Return this party's share, at scale f, as CrypTen's tensor."""
    return Shared.from_shares(share)


def rescale(product: Any, shift: int = 0) -> Any:
    """Bring a product from scale 2 f back to scale f and divide it by 2^shift, with one truncation for both."""
    return wrap(truncate(product.share, FRAC_BITS + shift))


def matmul(x: Any, y: Any, *, shift: int = 0) -> Any:
    """Return x @ y / 2^shift, with shapes as in torch.matmul. Two rounds; 8 (|x| + |y| + |x y|) bytes each way."""
    return rescale(beaver.matmul(x, y), shift)


def multiply(x: Any, y: Any, *, shift: int = 0) -> Any:
    """Return x * y / 2^shift, with broadcasting. Two rounds."""
    return rescale(beaver.mul(x, y), shift)


def square(x: Any, *, shift: int = 0) -> Any:
    """Return x^2 / 2^shift. Two rounds, and half the bytes of a product."""
    return rescale(beaver.square(x), shift)


def square_sum(x: Any, *, dim: int) -> Any:
    """Return the sum of x^2 over `dim`, which is kept. The truncation comes last, so |sum| < 2^(62 - 2 f)."""
    product = beaver.square(x)
    return wrap(truncate(product.share.sum(dim, keepdim=True), FRAC_BITS))


def add_public(x: Any, constant: float | torch.Tensor) -> Any:
    """Return x + constant. Local."""
    return wrap(x.share + x.encoder.encode(constant, device=x.share.device)) if current().rank == 0 else x


def only_first(value: torch.Tensor) -> torch.Tensor:
    """Return this party's share of a public number: the number at rank 0, and zeros at rank 1. Local."""
    return value if current().rank == 0 else torch.zeros_like(value)


def times_public(x: Any, constant: float) -> Any:
    """Return x * constant, with 16 significant bits of the constant however small it is. One round; |x| < 2^30."""
    if constant == 0.0:
        return wrap(torch.zeros_like(x.share))
    mantissa, exponent = math.frexp(constant)
    multiplier, bits = round(mantissa * 2**SIGNIFICANT_BITS), SIGNIFICANT_BITS - exponent
    if bits <= 0:
        return wrap(x.share * (multiplier << -bits))
    return wrap(truncate(x.share * multiplier, bits))


def times_fractions(x: Any, fractions: torch.Tensor, small: int = 0) -> Any:
    """Return x * fractions; fractions are public float64, at most 2^(1 - small), broadcast. One round; |x| < 2^29.

    Fractions are rounded to 16 + small bits behind the point.
    """
    bits = SIGNIFICANT_BITS + small
    if fractions.device.type == "meta":
        return wrap(truncate(x.share, bits))
    return wrap(truncate(x.share * (fractions * 2**bits).round().long(), bits))


def times_power_of_two(x: Any, exponent: int) -> Any:
    """Return x * 2^exponent. Local if the exponent is not negative, else one round."""
    if exponent >= 0:
        return wrap(x.share << exponent)
    return wrap(truncate(x.share, -exponent))


def times_integers(x: Any, integers: torch.Tensor) -> Any:
    """Return x * integers, for public int64 integers that are broadcast, such as a mask of 0 and 1. Local."""
    return wrap(x.share * integers.to(x.share.device))


def less_than_zero(x: Any) -> torch.Tensor:
    """Return this party's share, at scale 1, of the bit [x < 0], by CrypTen's binary adder. 9 rounds."""
    tensor = crypten.mpc.MPCTensor.from_shares(x.share)
    bit: torch.Tensor = tensor._ltz().share
    return bit


def of_bits(bit_share: torch.Tensor) -> Any:
    """Return bits, or a sum of bits, as numbers at scale f. Local."""
    return wrap(bit_share << FRAC_BITS)


def select(bit_share: torch.Tensor, x: Any) -> Any:
    """Return bit * x, for a bit at scale 1. One round and no truncation."""
    product = beaver.mul(Shared.from_shares(bit_share, precision=0), x)
    return wrap(product.share)


def relu(x: Any) -> Any:
    """Return max(x, 0). 10 rounds."""
    return wrap(x.share - select(less_than_zero(x), x).share)


def maximum(x: Any, *, dim: int) -> Any:
    """Return the largest element along `dim`, which is kept, by a tree of comparisons. ceil(log2 n) times 10 rounds."""
    while x.share.size(dim) > 1:
        half = x.share.size(dim) // 2
        left, right, rest = x.share.split([half, half, x.share.size(dim) - 2 * half], dim=dim)
        larger = wrap(right + relu(wrap(left - right)).share)
        x = wrap(torch.cat([larger.share, rest], dim=dim))
    return x


def reciprocal(x: Any, plan: NewtonPlan) -> Any:
    """Return 1 / x for plan.low <= x <= plan.high. 1 round, and 4 an iteration."""
    y = add_public(times_public(x, -plan.c1), plan.c0)
    for _ in range(plan.iterations):
        y = multiply(y, _subtract_from(2.0, multiply(x, y)))
    return y


def rsqrt(x: Any, plan: NewtonPlan) -> Any:
    """Return x^(-1/2) for plan.low <= x <= plan.high. 1 round, and 6 an iteration."""
    y = add_public(times_public(x, -plan.c1), plan.c0)
    for _ in range(plan.iterations):
        y = multiply(y, _subtract_from(3.0, multiply(x, square(y))), shift=1)
    return y


def exp_negative(x: Any, *, bound: float) -> Any:
    """Return exp(x) for -bound <= x <= 0, to about 5e-4, as (1 + y + y^2 / 2)^(2^k) with y = x / 2^k in [-1, 0].

    Fixed point loses 2^k units in the last place, and CrypTen's own (1 + x / 2^k)^(2^k) needs a larger k.
    """
    doublings = max(5, math.ceil(math.log2(bound)))
    y = times_power_of_two(x, -doublings)
    result = add_public(wrap(y.share + square(y, shift=1).share), 1.0)
    for _ in range(doublings):
        result = square(result)
    return result


def tanh(x: Any, *, bound: float) -> Any:
    """Return tanh(x) for |x| <= bound, to about 5e-4, as sign(x) (2 / (1 + exp(-2 |x|)) - 1)."""
    negative = less_than_zero(x)
    magnitude = wrap(x.share - 2 * select(negative, x).share)
    denominator = add_public(exp_negative(wrap(-2 * magnitude.share), bound=2 * bound), 1.0)
    positive = add_public(wrap(2 * reciprocal(denominator, reciprocal_plan(0.98, 2.02)).share), -1.0)
    return wrap(positive.share - 2 * select(negative, positive).share)


def _subtract_from(constant: float, x: Any) -> Any:
    return add_public(wrap(-x.share), constant)


# Chebyshev coefficients of x erf(x / sqrt 2) / 2 in u = x^2 / 8 - 1 on |x| <= 4; largest error 2.0e-4.
GELU_EVEN_PART = (1.231145, 0.915845, -0.201202, 0.074402, -0.027219, 0.008974, -0.002623, 0.000681)
GELU_BOUND = 4.0


def gelu(x: Any) -> Any:
    """Return x Phi(x) to 5e-4, as x / 2 plus an even function: a Chebyshev sum for |x| <= 4, and |x| / 2 beyond."""
    stacked = wrap(torch.stack([add_public(x, GELU_BOUND).share, add_public(wrap(-x.share), GELU_BOUND).share]))
    outside = less_than_zero(stacked)
    below, above = outside[0], outside[1]
    u = add_public(square(x, shift=3), -1.0)
    older = newer = wrap(torch.zeros_like(u.share))
    for coefficient in reversed(GELU_EVEN_PART[1:]):
        product = multiply(u, newer, shift=-1)
        older, newer = newer, add_public(wrap(product.share - older.share), coefficient)
    even = add_public(wrap(multiply(u, newer).share - older.share), GELU_EVEN_PART[0])
    one = 1 if current().rank == 0 else 0
    half = times_power_of_two(x, -1)
    parts = select(
        torch.stack([one - below - above, above - below]),
        wrap(torch.stack([even.share, half.share])),
    )
    return wrap(half.share + parts.share.sum(0))
