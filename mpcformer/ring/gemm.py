"""The matrix product modulo 2^64, on the processor or on a GPU.

On a processor torch multiplies int64 directly. A GPU has no such product: there numbers are cut into balanced limbs of
22 bits, whose products and sums of 2048 are exact in float64. Six products of limbs make one modulo 2^64, three where
one side is short, as weights in the clear are.
"""

import torch

from mpcformer.errors import UserInputError

DEVICES = ("cpu", "cuda")
LIMB_BITS, N_LIMBS = 22, 3
# 2^21 times 2^21 times this many is 2^53.
EXACT_TERMS = 1 << 11

_device = torch.device("cpu")


def use(device: str) -> None:
    """Where this process multiplies from now on.

    Raises:
        UserInputError: an unknown device, or none of the kind here.
    """
    global _device
    if device not in DEVICES:
        raise UserInputError(f"--device: {device!r} is unknown", f"choose one of: {', '.join(DEVICES)}")
    if device == "cuda" and not torch.cuda.is_available():
        raise UserInputError("--device: there is no CUDA device here, or torch is a CPU build", "use --device cpu")
    _device = torch.device(device)


def matmul(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """x @ weight modulo 2^64: int64 (m, n) and (n, p); or modulo 2^32, if weight is int32, with a result below 2^31."""
    if _device.type == "cpu" or x.device.type == "meta":
        return (x.to(weight.dtype) @ weight).long()  # int32 is half as fast again as int64
    product = limb_matmul(x.to(_device), weight.to(_device).long()).cpu()
    return product if weight.dtype == torch.int64 else product.to(torch.int32).long()


def limb_matmul(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """x @ weight modulo 2^64 in float64, on whatever device the int64 operands are."""
    total = torch.zeros(x.size(0), weight.size(1), dtype=torch.int64, device=x.device)
    for first in range(0, x.size(1), EXACT_TERMS):
        part = slice(first, first + EXACT_TERMS)
        left, right = limbs(x[:, part]), limbs(weight[part])
        for i, a in enumerate(left):
            for j, b in enumerate(right[: N_LIMBS - i]):
                total += (a @ b).to(torch.int64) << (LIMB_BITS * (i + j))
    return total


def limbs(x: torch.Tensor) -> list[torch.Tensor]:
    """Float64 numbers of at most 2^21 that add up to x, each 2^22 times the one before; no zero ones on top."""
    half = 1 << (LIMB_BITS - 1)
    found, rest = [], x
    for _ in range(N_LIMBS):
        limb = ((rest + half) & ((1 << LIMB_BITS) - 1)) - half
        found.append(limb.to(torch.float64))
        # Without overflow: (rest - limb) / 2^22, rounded to what the limb left.
        rest = (rest >> LIMB_BITS) + (((rest & ((1 << LIMB_BITS) - 1)) + half) >> LIMB_BITS)
        if not bool(rest.any()):
            break
    return found
