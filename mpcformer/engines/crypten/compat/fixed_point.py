"""Fixed-point numbers: how they are encoded and decoded, truncated, and multiplied by public numbers.

CrypTen truncates fractions, encodes NaN and overflow silently, decodes some negative numbers one whole unit off, and
rounds a public factor such as 1 / n to 16 bits after the point, however small it is. Its truncation is local, and
destroys an element with probability |x| / 2^64. Here all of that is exact, to a unit or two in the last place.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from mpcformer.engines.crypten.compat.library import crypten
from mpcformer.engines.crypten.compat.party import current
from mpcformer.engines.crypten.compat.provider import PROVIDER
from mpcformer.errors import ProtocolError, RangeError

FRAC_BITS = 16
# Shared numbers, times their scale, lie below 2^62 in size: the range of the exact truncation.
RANGE_BITS = 62
MAX_ENCODED = float(2 ** (RANGE_BITS - FRAC_BITS))
# A truncation by more than this leaves nothing that counts.
MAX_SHIFT = 61
Multiply = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def truncate(share: torch.Tensor, bits: int) -> torch.Tensor:
    """Return shares of z >> bits from shares of z, exact to one unit in the last place, never worse.

    Ideal function: floor(z / 2^bits), or that plus one; elementwise over Z_2^64.
    Shapes: share (...), result (...).
    Scale: 2^g -> 2^(g - bits).
    Range and error: -2^62 <= z < 2^62; 1 ulp. Outside the range the result is wrong by 2^(64 - bits).
    Cost for n elements: 1 round, 8 n bytes each way, 16 n dealer bytes.
    Source: Escudero, Ghosh, Keller, Rachuri, Scholl, CRYPTO 2020, section 5, with a shared top bit against the wrap.
    """
    return truncate_all([(share, bits)])[0]


def truncate_all(parts: Sequence[tuple[torch.Tensor, int]]) -> list[torch.Tensor]:
    """Truncate several shares in one round, as `truncate` does; by 0 bits is free, and by more than 61 gives zero."""
    state = current()
    work = [(i, share, bits) for i, (share, bits) in enumerate(parts) if share.numel() and 0 < bits <= MAX_SHIFT]
    masks = [PROVIDER.truncation(share.shape, bits) for _, share, bits in work]
    masked = [share + r for (_, share, _), (r, _, _) in zip(work, masks, strict=True)]
    if state.rank == 0:
        masked = [part + (1 << RANGE_BITS) for part in masked]
    results = [torch.zeros_like(share) if bits > MAX_SHIFT else share for share, bits in parts]
    opened = state.open(masked) if work else []
    for (i, _, bits), (_, r_shifted, r_msb), value in zip(work, masks, opened, strict=True):
        # The sum z + 2^62 + r wrapped past 2^64 exactly when the top bit of r is set and that of the opened sum is not.
        may_wrap = (value >= 0).to(torch.int64)
        result: torch.Tensor = (r_msb * may_wrap << (64 - bits)) - r_shifted
        if state.rank == 0:
            result += (value >> bits) & ((1 << (64 - bits)) - 1)
            result -= 1 << (RANGE_BITS - bits)
        results[i] = result
    return results


def times_public(share: torch.Tensor, factor: torch.Tensor, multiply: Multiply, n_terms: int = 1) -> torch.Tensor:
    """Return shares of the product of z and public real numbers, which keep a scale of their own.

    With 1/2 <= |y| 2^d < 1 for the largest factor y and b = 30 for one term, z 2^-d = h 2^b + l is cut into two
    halves, and y 2^(d + b) is rounded to Y. The result is h Y + (l Y >> b). Whole factors need no cut, and one factor
    2^-k needs one truncation.

    Ideal function: multiply(z, y), which is linear in both and adds up `n_terms` products.
    Shapes: share and factor as `multiply` takes them.
    Scale: unchanged.
    Range and error: |z| < 2^62, and so the result; a few ulp, and 2^-b of the largest product. For matrices of n terms
        b is (61 - log2 n) / 2.
    Cost for n elements and m results: 0 rounds for whole factors; 1 for a power of two; else 2, with at most 16 n + 8 m
        bytes each way and 32 n + 16 m dealer bytes.

    Args:
        share: this party's, int64.
        factor: float64.
        multiply: the product of two int64 tensors.
        n_terms: how many products one element of the result adds up.

    Raises:
        RangeError: a factor is not finite, or 2^46 or more.
    """
    if factor.device.type == "meta":
        raise ProtocolError("a public factor without values cannot be planned with")
    if not bool(torch.isfinite(factor).all()):
        raise RangeError("a public factor is NaN or infinite", "check the program's constants, and what it divides by")
    largest = float(factor.abs().max()) if factor.numel() else 0.0
    if largest >= MAX_ENCODED:
        raise RangeError(f"a public factor of {largest:.6g} exceeds {MAX_ENCODED:.0f}", "fixed point cannot carry it")
    if not share.numel() or bool((factor == factor.round()).all()):
        return multiply(share, factor.round().long())
    mantissa, exponent = math.frexp(largest)
    down = -exponent
    if factor.numel() == 1 and mantissa == 0.5:
        return multiply(truncate(share, down + 1), factor.sign().long())
    bits = (61 - math.ceil(math.log2(max(n_terms, 1)))) // 2
    rounded = (factor * 2.0 ** (down + bits)).round().long()
    low, high = truncate_all([(share, max(down, 0)), (share, max(down, 0) + bits)])
    low = low - (high << bits)
    result, rest = multiply(high, rounded), multiply(low, rounded)
    if down < 0:
        result = result << -down
    shift = bits + min(down, 0)
    return result + (truncate(rest, shift) if shift > 0 else rest << -shift)


def encode(self: Any, x: Any, device: Any = None) -> Any:
    """Encode numbers to the nearest multiple of 1 / scale, and refuse what does not fit. Numbers of Python are float64.

    Raises:
        RangeError: a number is NaN, infinite or too large.
    """
    if isinstance(x, crypten.CrypTensor):
        return x
    scale: int = self._scale
    if not isinstance(x, torch.Tensor):
        is_float = isinstance(x, float) or (isinstance(x, list) and any(isinstance(number, float) for number in x))
        if isinstance(x, int) and not -(2**63) <= x < 2**63:
            raise RangeError("a whole number to be encoded exceeds 64 bits", "fixed point cannot carry it")
        x = torch.as_tensor(x, dtype=torch.float64 if is_float else None)
    tensor = x.detach() if device is None else x.detach().to(device)
    if tensor.is_complex():
        raise TypeError(f"cannot encode {tensor.dtype}")
    if tensor.device.type != "meta" and tensor.numel():
        _check_range(tensor, scale)
    if not tensor.is_floating_point():
        return tensor.to(torch.int64) * scale
    return (tensor.double() * scale).round().to(torch.int64)


def _check_range(tensor: torch.Tensor, scale: int) -> None:
    """Refuse numbers that leave the range. Whole numbers at scale 1 are ring elements, all of which fit."""
    if tensor.is_floating_point():
        if not bool(torch.isfinite(tensor).all()):
            raise RangeError("a tensor to be encoded holds NaN or infinity", "check the model's weights and inputs")
        limit = 2.0**RANGE_BITS / scale if scale > 1 else 2.0**63
        too_large = float(tensor.abs().max()) >= limit
    else:
        limit = 2.0**RANGE_BITS / scale
        low, high = int(tensor.min()), int(tensor.max())
        too_large = scale > 1 and max(high, -low) >= limit
    if too_large:
        raise RangeError(f"a tensor to be encoded exceeds {limit:.0f}", "fixed point cannot carry it")


def decode(self: Any, tensor: torch.Tensor | None) -> torch.Tensor | None:
    """Decode ring elements: whole numbers at scale 1 stay int64, all else becomes the nearest float32."""
    if tensor is None or self._scale == 1:
        return tensor
    scale: int = self._scale
    return (tensor.double() / scale).float()
