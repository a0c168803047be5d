"""CrypTen's protocols for products of shared values, from the dealer's correlations.

They are those of CrypTen's `beaver`, with the same messages, except that `wraps` is exact: CrypTen's is wrong with a
probability of |x| / 2^64. All of them open masked values alone, by `PartyState.open`.
"""

from typing import Any, NoReturn

import torch

from mpcformer.engines.crypten.compat.library import crypten
from mpcformer.engines.crypten.compat.party import current
from mpcformer.engines.crypten.compat.provider import PROVIDER, triple_spec
from mpcformer.errors import ProtocolError

Arithmetic: Any = crypten.mpc.primitives.ArithmeticSharedTensor
Binary: Any = crypten.mpc.primitives.BinarySharedTensor
SIGN_SHIFT = 63


def multiply(op: str, x: Any, y: Any, **options: Any) -> Any:
    """Return [x op y] at the product of both scales, as a tensor at scale 1.

    Ideal function: torch's function `op` over Z_2^64, no truncation.
    Cost for a, b and c elements of operands and result: 1 round, 8 (a + b) bytes each way, 8 c dealer bytes.
    Source: Beaver, CRYPTO 1991; Knott et al., CrypTen, NeurIPS 2021, section 4.

    Args:
        op: "mul", "matmul" or a convolution by torch's name.
        x, y: shared tensors; factors of a matrix product may be vectors.
        options: torch's keywords of a convolution.
    """
    if x.share.device != y.share.device:
        raise ValueError(f"x lives on device {x.share.device} but y on device {y.share.device}")
    if op == "matmul" and (x.share.dim() == 1 or y.share.dim() == 1):
        return _product_with_vectors(x, y)
    spec = triple_spec(op, x.share.size(), y.share.size(), **options)
    if not (x.share.numel() and y.share.numel()):
        return _at_scale_one(spec.multiply(x.share, y.share))
    a, b, c = PROVIDER.triple(spec)
    epsilon, delta = current().open([x.share - a, y.share - b])
    c += spec.multiply(epsilon, b)
    c += spec.multiply(a, delta)
    if current().rank == 0:
        c += spec.multiply(epsilon, delta)
    return _at_scale_one(c)


def _product_with_vectors(x: Any, y: Any) -> Any:
    """Return the matrix product where a factor is a vector: its missing dimension is 1 and is dropped, as in torch."""
    left = x.share.unsqueeze(0) if x.share.dim() == 1 else x.share
    right = y.share.unsqueeze(1) if y.share.dim() == 1 else y.share
    product = multiply("matmul", _at_scale_one(left), _at_scale_one(right)).share
    product = product.squeeze(-1) if y.share.dim() == 1 else product
    return _at_scale_one(product.squeeze(-1 if y.share.dim() == 1 else -2) if x.share.dim() == 1 else product)


def square(x: Any) -> Any:
    """Return [x^2] at the square of the scale. 1 round; half the bytes of a product."""
    if not x.share.numel():
        return _at_scale_one(x.share * x.share)
    r, r_squared = PROVIDER.take("square_pair", x.share.size())
    epsilon = current().open([x.share - r])[0]
    result = r_squared + 2 * r * epsilon
    return _at_scale_one(result + epsilon * epsilon if current().rank == 0 else result)


def bitwise_and(x: Any, y: Any) -> Any:
    """Return [x & y] from XOR shares of words. 1 round."""
    if not (x.share.numel() and y.share.numel()):
        return Binary.from_shares(x.share & y.share)
    a, b, c = PROVIDER.take("binary_triple", x.share.size(), y.share.size())
    epsilon, delta = current().open([x.share ^ a, y.share ^ b], xor=True)
    result = (b & epsilon) ^ (a & delta) ^ c
    return Binary.from_shares(result ^ (epsilon & delta) if current().rank == 0 else result)


def bit_to_arithmetic(x: Any) -> Any:
    """Return additive shares, at scale 1, of a bit with XOR shares. 1 round."""
    if not x.share.numel():
        return _at_scale_one(x.share.clone())
    bit, arithmetic = PROVIDER.take("bit_pair", x.share.size())
    opened = current().open([x.share ^ bit], xor=True)[0]
    result = arithmetic * (1 - 2 * opened)
    return _at_scale_one(result + opened if current().rank == 0 else result)


def wraps(x: Any) -> Any:
    """Return how often the sum of both signed shares wraps around 2^64: -1, 0 or 1, as a tensor at scale 1. Exact.

    With the shares' signs s and t and the value's sign v, it is v + v (2 s t - s - t) - s t. 10 rounds.
    """
    wrapped = crypten.mpc.MPCTensor.from_shares(x.share, precision=0)
    value_sign = _at_scale_one(wrapped._ltz().share)
    signs = [Arithmetic((x.share < 0).long(), precision=0, src=src) for src in range(2)]
    both = multiply("mul", *signs).share
    either = _at_scale_one(2 * both - signs[0].share - signs[1].share)
    return _at_scale_one(value_sign.share + multiply("mul", value_sign, either).share - both)


def truncate(x: Any, divisor: int) -> NoReturn:
    """Refuse CrypTen's division by wraps; tensors divide by a truncation that is exact."""
    raise ProtocolError("beaver.truncate is not used: `div` is exact")


def _at_scale_one(share: torch.Tensor) -> Any:
    return Arithmetic.from_shares(share, precision=0)


def _named(op: str) -> Any:
    def product(x: Any, y: Any, **options: Any) -> Any:
        return multiply(op, x, y, **options)

    return product


def patch() -> None:
    """Put these protocols in the place of CrypTen's."""
    beaver = crypten.mpc.primitives.beaver
    for op in ("mul", "matmul", "conv1d", "conv2d", "conv_transpose1d", "conv_transpose2d"):
        setattr(beaver, op, _named(op))
    beaver.square, beaver.AND, beaver.B2A_single_bit = square, bitwise_and, bit_to_arithmetic
    beaver.wraps, beaver.truncate = wraps, truncate
