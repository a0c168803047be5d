"""The compiled products of `short.c`: ring elements by a matrix of numbers of 16 bits, such as weights in the clear."""

import ctypes

import torch

LEVELS = {1: "AVX2", 2: "AVX-512", 3: "AVX-512 VNNI"}
# Of short.c: the rows of a block, and the bits of a limb. A sum of products of a limb and a number over a block is
# exact if the numbers add up, by size, to less than 2^LIMB_BITS.
BLOCK, LIMB_BITS = 256, 16
# A ring of so many bits needs no exact sums: two limbs, whose sums are right modulo 2^32, are enough.
WRAPPING_BITS = 32


class ShortProduct(ctypes.Structure):
    """The arguments of a product, as short.c declares them."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("m", "k", "n", "limbs")),
        ("a", ctypes.c_void_p),
        ("a_row", ctypes.c_int64),
        ("b", ctypes.c_void_p),
        ("b_row", ctypes.c_int64),
        ("b_col", ctypes.c_int64),
        ("c", ctypes.c_void_p),
        ("c_row", ctypes.c_int64),
    )


class ShortKernels:
    """The compiled function.

    Args:
        library: the compiled file, loaded.
        level: one of `LEVELS`; None: the highest that the processor has.
    """

    def __init__(self, library: ctypes.CDLL, level: int | None = None) -> None:
        self._matmul = library.mpcformer_short_matmul
        self._matmul.argtypes = [ctypes.c_int, ctypes.POINTER(ShortProduct)]
        self.level = int(library.mpcformer_short_level()) if level is None else level

    @property
    def name(self) -> str:
        """The processor's instructions that are used."""
        return LEVELS[self.level]

    def matmul(self, x: torch.Tensor, y: torch.Tensor, bits: int, out: torch.Tensor) -> None:
        """Multiply int64 (m, n) by int16 (n, p) into int64 (m, p); the result is right modulo 2^bits.

        Args:
            x, y: the factors. If `bits` is above WRAPPING_BITS, `has_exact_blocks(y)` has to hold.
            bits: the width of the ring.
            out: where the result goes.

        Raises:
            ValueError: the tensors have other types, or do not fit.
        """
        types, shape = (x.dtype, y.dtype, out.dtype), (x.size(0), y.size(1))
        if types != (torch.int64, torch.int16, torch.int64) or x.size(1) != y.size(0) or out.shape != shape:
            raise ValueError(f"no product of {x.dtype} {tuple(x.shape)} by {y.dtype} {tuple(y.shape)}")
        if not out.numel() or not x.size(1):
            out.zero_()
            return
        if x.stride(1) != 1:
            x = x.contiguous()
        arguments = ShortProduct(
            *x.shape,
            y.size(1),
            -(-max(bits, WRAPPING_BITS) // LIMB_BITS),
            x.data_ptr(),
            x.stride(0),
            y.data_ptr(),
            *y.stride(),
            out.data_ptr(),
            out.stride(0),
        )
        if out.stride(1) != 1 or self._matmul(self.level, ctypes.byref(arguments)):
            raise ValueError(f"short.c has no product of level {self.level} into strides {out.stride()}")

    def are_right(self) -> bool:
        """Return whether small products are torch's, with blocks that are whole and not."""
        x = torch.arange(3 * 300, dtype=torch.int64).view(3, 300) * 0x1E3779B97F4A7C15 + (1 << 63)
        y = (torch.arange(300 * 53).view(300, 53) * 40_503 % 499 - 249).to(torch.int16)
        out, expected = torch.empty(3, 53, dtype=torch.int64), x @ y.long()
        for bits in (32, 48, 64):
            self.matmul(x, y, bits, out)
            if bool(((out - expected) << (64 - bits)).any()):
                return False
        return True


def has_exact_blocks(y: torch.Tensor) -> bool:
    """Return whether sums of a limb times the numbers of a column of y (n, p), block by block, are always exact."""
    blocks = (y[first : first + BLOCK] for first in range(0, y.size(0), BLOCK))
    return all(int(block.long().abs().sum(0).max()) < 1 << LIMB_BITS for block in blocks)
