"""The matrix product modulo 2^64, on the processor or on a GPU.

On a processor torch multiplies int64 directly. A GPU has no such product, so numbers are cut into balanced limbs of 22
bits there; sums of 2048 products of such limbs are exact in float64. Six products of limbs make one product modulo
2^64. Three are enough if one factor is short, as weights in the clear are.
"""

import torch

from mpcformer.errors import UserInputError

DEVICES = ("cpu", "cuda")
LIMB_BITS, N_LIMBS = 22, 3
# A sum of so many products of 2^21 and 2^21 is 2^53, up to which float64 is exact.
EXACT_TERMS = 1 << 11

_device = torch.device("cpu")


def check_device(device: str) -> None:
    """Refuse a device that is unknown, or that this machine does not have.

    Raises:
        UserInputError: the device cannot be used.
    """
    if device not in DEVICES:
        raise UserInputError(f"--device: {device!r} is unknown", f"choose one of: {', '.join(DEVICES)}")
    if device == "cuda" and not torch.cuda.is_available():
        raise UserInputError("--device: there is no CUDA device here, or torch is a CPU build", "use --device cpu")


def use(device: str) -> None:
    """Multiply on this device from now on, in this process.

    Raises:
        UserInputError: as `check_device`.
    """
    global _device
    check_device(device)
    _device = torch.device(device)


def matmul(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Multiply int64 (m, n) by an int64 or int32 weight (n, p).

    Returns:
        int64 (m, p): the product modulo 2^64; if the weight is int32, the product modulo 2^32, in [-2^31, 2^31).
    """
    if _device.type == "cpu" or x.device.type == "meta":
        return (x.to(weight.dtype) @ weight).long()  # int32 is half as fast again as int64
    product = limb_matmul(x.to(_device), weight.to(_device).long()).cpu()
    return product if weight.dtype == torch.int64 else product.to(torch.int32).long()


def limb_matmul(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Multiply int64 (m, n) by int64 (n, p) modulo 2^64 through float64, on the device where the factors are."""
    total = torch.zeros(x.size(0), weight.size(1), dtype=torch.int64, device=x.device)
    for first in range(0, x.size(1), EXACT_TERMS):
        part = slice(first, first + EXACT_TERMS)
        left, right = limbs(x[:, part]), limbs(weight[part])
        for i, a in enumerate(left):
            for j, b in enumerate(right[: N_LIMBS - i]):
                total += (a @ b).to(torch.int64) << (LIMB_BITS * (i + j))
    return total


def limbs(x: torch.Tensor) -> list[torch.Tensor]:
    """Cut x into limbs.

    Returns:
        float64 tensors of at most 2^21 each; x is the sum of limb i times 2^(22 i). Zero limbs on top are left out.
    """
    half = 1 << (LIMB_BITS - 1)
    found, rest = [], x
    for _ in range(N_LIMBS):
        limb = ((rest + half) & ((1 << LIMB_BITS) - 1)) - half
        found.append(limb.to(torch.float64))
        # This is (rest - limb) / 2^22, computed without overflow.
        rest = (rest >> LIMB_BITS) + (((rest & ((1 << LIMB_BITS) - 1)) + half) >> LIMB_BITS)
        if not bool(rest.any()):
            break
    return found
