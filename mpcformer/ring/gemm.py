"""The matrix product of ring elements, on the processor or on a GPU.

On a processor the compiled products of `mpcformer.ring.kernels` do it. Where they are missing, torch does: it
multiplies int64 well if the processor has AVX-512, and many times slower than it could if not. A GPU has no such
product at all. In these two cases numbers are cut into balanced limbs of 22 bits; sums of 2048 products of such limbs
are exact in float64. Six products of limbs make one product modulo 2^64. Three are enough if one factor is short, as
weights in the clear are.
"""

from dataclasses import dataclass

import torch

from mpcformer.errors import UserInputError
from mpcformer.ring.kernels import IFMA_BITS, load
from mpcformer.ring.short import WRAPPING_BITS, has_exact_blocks

DEVICES = ("cpu", "cuda")
LIMB_BITS, N_LIMBS = 22, 3
# A sum of so many products of 2^21 and 2^21 is 2^53, up to which float64 is exact.
EXACT_TERMS = 1 << 11
# The size up to which float64 has every integer; columns that are converted at a time; the rows from which converting
# them takes less time than it saves; and the limbs up to which it does.
DOUBLE_BITS, PANEL, WORTH_DOUBLES, MAX_LIMBS = 53, 512, 8, 3
# Cutting numbers into limbs takes longer than it saves where they meet fewer rows or columns.
WORTH_LIMBS = 32

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


def matmul(x: torch.Tensor, y: torch.Tensor, bits: int = 64) -> torch.Tensor:
    """Multiply int64 (..., m, n) by int64 or int32 (..., n, p); the dimensions before the last two broadcast.

    Args:
        x, y: the factors; y may be int16 as well.
        bits: the width of the ring, 32, 52 or 64.

    Returns:
        int64 (..., m, p): the product, which is right modulo 2^bits. If `bits` is 32 it lies in [-2^31, 2^31).
    """
    if x.device.type == "meta":
        return torch.matmul(x, y.long())
    if _device.type != "cpu":
        product = limb_matmul(x.to(_device), y.to(_device).long()).cpu()
        return product.to(torch.int32).long() if bits == 32 else product
    if y.dtype == torch.int16:
        y = y.to(torch.int32)
    kernels, _ = load()
    return kernels.matmul(x, y, bits) if kernels is not None else matmul_by_torch(x, y, bits)


@dataclass(frozen=True, repr=False)
class ShortMatrix:
    """A matrix of small numbers, such as weights in the clear.

    Args:
        numbers: (n, p), int16 or int32.
        log_sum: the sizes of the numbers in a column add up to less than 2^log_sum.
        has_exact_blocks: whether the compiled products of short numbers may be used in every ring.
    """

    numbers: torch.Tensor
    log_sum: int
    has_exact_blocks: bool = False

    @classmethod
    def of(cls, numbers: torch.Tensor) -> "ShortMatrix":
        """Measure a matrix, and keep it as int16 if it fits."""
        starts = range(0, numbers.size(1), PANEL)
        sums = max((int(numbers[:, a : a + PANEL].long().abs().sum(0).max()) for a in starts), default=0)
        fits = int(numbers.min()) >= -(1 << 15) and int(numbers.max()) < 1 << 15
        kernels, _ = load()
        if kernels is not None and (fits or kernels.has_fast_words):
            kept = (numbers.to(torch.int16) if fits else numbers.to(torch.int32)).contiguous()
            return cls(kept, sums.bit_length(), fits and has_exact_blocks(kept))
        # Columns are converted some at a time, so that they lie together.
        kept = (numbers.to(torch.int16) if fits else numbers).t().contiguous().t()
        return cls(kept, sums.bit_length())


def product_bits(bits: int) -> int:
    """Return the smallest width of `matmul` that has room for a ring of `bits`."""
    return next(width for width in (32, IFMA_BITS, 64) if width >= bits)


def matmul_short(x: torch.Tensor, y: ShortMatrix, bits: int) -> torch.Tensor:
    """Multiply int64 (m, n) by a short matrix (n, p); the result, int64 (m, p), is right modulo 2^bits.

    The compiled products of short numbers take half the time of those modulo 2^32. Where they are not right, those of
    AVX-512 for any numbers are the fastest, and float64 is elsewhere.
    """
    kernels, _ = load()
    if kernels is None or _device.type != "cpu":
        return matmul_in_doubles(x, y, bits)
    if y.numbers.dtype == torch.int16 and (bits <= WRAPPING_BITS or y.has_exact_blocks):
        return kernels.matmul_short(x, y.numbers, bits)
    return matmul(x, y.numbers, product_bits(bits)) if kernels.has_fast_words else matmul_in_doubles(x, y, bits)


def matmul_in_doubles(x: torch.Tensor, y: ShortMatrix, bits: int) -> torch.Tensor:
    """Do as `matmul_short` does, without the compiled products of short numbers.

    In float64, sums of products up to 2^53 are exact, so numbers of `bits` bits are cut into as few limbs as that
    allows: usually one. Its products take a third of the time of those modulo 2^64.
    """
    n_limbs = next(n for n in range(1, bits + 1) if -(-bits // n) - 1 + y.log_sum <= DOUBLE_BITS)
    if _device.type != "cpu" or x.size(0) < WORTH_DOUBLES or n_limbs > MAX_LIMBS:
        return matmul(x, y.numbers, product_bits(bits))
    width = -(-bits // n_limbs)
    stacked = torch.empty((n_limbs, *x.shape), dtype=torch.float64)
    half, rest = 1 << (width - 1), x
    for i in range(n_limbs):
        limb = ((rest + half) & ((1 << width) - 1)) - half
        stacked[i] = limb
        if i < n_limbs - 1:
            rest = (rest - limb) >> width
    stacked = stacked.view(-1, x.size(1))
    out = torch.empty((x.size(0), y.numbers.size(1)), dtype=torch.int64)
    for first in range(0, out.size(1), PANEL):
        columns = slice(first, first + PANEL)
        parts = (stacked @ y.numbers[:, columns].double()).view(n_limbs, x.size(0), -1)
        out[:, columns] = parts[0]
        for i in range(1, n_limbs):
            out[:, columns] += parts[i].long() << (width * i)
    return out


def matmul_by_torch(x: torch.Tensor, y: torch.Tensor, bits: int = 64) -> torch.Tensor:
    """Do as `matmul` does on a processor, without the compiled products."""
    if bits == 32:
        return torch.matmul(x.to(torch.int32), y.to(torch.int32)).long()  # half as fast again as int64
    y = y.long()
    has_wide_products = torch.backends.cpu.get_cpu_capability() == "AVX512"
    is_small = min(x.size(-2), y.size(-1)) < WORTH_LIMBS
    return torch.matmul(x, y) if has_wide_products or is_small else limb_matmul(x, y)


def limb_matmul(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Multiply int64 (..., m, n) by int64 (..., n, p) modulo 2^64 through float64, on the device of the factors."""
    total = torch.zeros((*x.shape[:-1], y.size(-1)), dtype=torch.int64, device=x.device)
    for first in range(0, x.size(-1), EXACT_TERMS):
        part = slice(first, first + EXACT_TERMS)
        left, right = limbs(x[..., part]), limbs(y[..., part, :])
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
