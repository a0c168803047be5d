"""Compiled matrix products of ring elements, where `kernels.c` was compiled and the processor has AVX2 or AVX-512.

`mpcformer.ring.gemm` does the same with torch where `mpcformer.ring.library` finds no compiled file.
"""

import ctypes
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from math import prod

import numpy as np
import torch

from mpcformer.ring.library import OTHER_FILE, load_library
from mpcformer.ring.lifting import LiftKernels
from mpcformer.ring.points import PointKernels
from mpcformer.ring.short import ShortKernels
from mpcformer.ring.tables import TableKernels
from mpcformer.ring.windows import WindowKernels

NO_LEVEL = "this processor has no AVX2"
WRONG = "the compiled products give wrong numbers on this processor"
LEVELS = {1: "AVX2", 2: "AVX-512", 3: "AVX-512 IFMA"}
# Of AVX-512 IFMA. Where there is none, such products are those of 64 bits.
IFMA_BITS = 52
# A thread has to have so many multiplications, or waking it takes longer than it saves.
WORTH_A_THREAD = 1 << 22
# Columns are dealt out to threads by as many as the widest tile has.
TILE_COLUMNS = 48


class Product(ctypes.Structure):
    """The arguments of a batch of products, as kernels.c declares them."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("batches", "m", "k", "n")),
        ("a", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("a_batch", "a_row")),
        ("b", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("b_batch", "b_row", "b_col")),
        ("c", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("c_batch", "c_row")),
    )


class Kernels:
    """The compiled functions.

    Args:
        library: the file, loaded.
        level: one of `LEVELS`.
    """

    def __init__(self, library: ctypes.CDLL, level: int) -> None:
        self._matmul = library.mpcformer_kernels_matmul
        self._matmul.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.POINTER(Product)]
        self.level = level
        self.lifting, self.points = LiftKernels(library), PointKernels(library)
        self.tables = TableKernels(library)
        self.windows = WindowKernels(library)
        self.short = ShortKernels(library, None if level == library.mpcformer_kernels_level() else level)

    @property
    def name(self) -> str:
        """What the functions are compiled for."""
        return LEVELS[self.level]

    @property
    def has_fast_words(self) -> bool:
        """Whether products modulo 2^52 or 2^64 are at least as fast as those in float64."""
        return self.level > min(LEVELS)

    def matmul(self, x: torch.Tensor, y: torch.Tensor, bits: int) -> torch.Tensor:
        """Do as `gemm.matmul` does.

        Raises:
            ValueError: the factors have other types, or do not fit.
        """
        if x.dtype != torch.int64 or y.dtype not in (torch.int32, torch.int64) or x.size(-1) != y.size(-2):
            raise ValueError(f"no product of {x.dtype} {tuple(x.shape)} by {y.dtype} {tuple(y.shape)}")
        if bits == 32 and y.dtype != torch.int32:
            y = y.to(torch.int32)
        batch = np.broadcast_shapes(x.shape[:-2], y.shape[:-2])
        shape = (*batch, x.size(-2), y.size(-1))
        left, right = (t.expand(*batch, *t.shape[-2:]).reshape(prod(batch), *t.shape[-2:]) for t in (x, y))
        if left.stride(2) != 1:
            left = left.contiguous()
        out = torch.empty((left.size(0), *shape[-2:]), dtype=torch.int64)
        if not out.numel() or not left.size(2):
            return out.zero_().view(shape)

        def multiply(part: slice) -> None:
            self._multiply(left, right[:, :, part], out[:, :, part], bits)

        _by_columns(multiply, right.size(2), out.numel() * left.size(2))
        return out.view(shape)

    def matmul_short(self, x: torch.Tensor, y: torch.Tensor, bits: int) -> torch.Tensor:
        """Do as `gemm.matmul_short` does, for numbers of 16 bits that `ShortKernels.matmul` allows."""
        out = torch.empty((x.size(0), y.size(1)), dtype=torch.int64)

        def multiply(part: slice) -> None:
            self.short.matmul(x, y[:, part], bits, out[:, part])

        _by_columns(multiply, y.size(1), out.numel() * x.size(1))
        return out

    def _multiply(self, x: torch.Tensor, y: torch.Tensor, out: torch.Tensor, bits: int) -> None:
        arguments = Product(
            x.size(0),
            x.size(1),
            x.size(2),
            y.size(2),
            x.data_ptr(),
            *x.stride()[:2],
            y.data_ptr(),
            *y.stride(),
            out.data_ptr(),
            *out.stride()[:2],
        )
        if self._matmul(self.level, bits, int(y.dtype == torch.int32), ctypes.byref(arguments)):
            raise ValueError(f"kernels.c has no product of level {self.level} for {bits} bits and {y.dtype}")

    def are_right(self) -> bool:
        """Return whether products are torch's, with edges of all kinds; forget trees if a small one is not right."""
        numbers = torch.arange(11 * 301, dtype=torch.int64).view(11, 301) * 0x1E3779B97F4A7C15 + (1 << 63)
        x, y = numbers, numbers.t().contiguous().repeat(1, 5)[:, :53]
        short = y.to(torch.int32)
        cases = (y, 64, x @ y), (short, 64, x @ short.long()), (short, 32, (x.to(torch.int32) @ short).long())
        if bool(((self.matmul(x, y, IFMA_BITS) - x @ y) << (64 - IFMA_BITS)).any()):
            return False
        self.points.has_aes = self.points.has_aes and self.points.are_right()
        products = all(torch.equal(self.matmul(x, right, bits), expected) for right, bits, expected in cases)
        return products and self.short.are_right()


def _by_columns(multiply: Callable[[slice], None], n_columns: int, work: int) -> None:
    """Let each of torch's threads multiply some columns, as far as the number of multiplications is worth it."""
    parts = _parts(n_columns, min(torch.get_num_threads(), work // WORTH_A_THREAD))
    if len(parts) < 2:
        for part in parts:
            multiply(part)
    else:
        with ThreadPoolExecutor(len(parts)) as pool:  # the compiled functions do not hold Python's lock
            list(pool.map(multiply, parts))


def _parts(n_columns: int, n_threads: int) -> Sequence[slice]:
    each = -(-n_columns // max(n_threads, 1))
    each = -(-each // TILE_COLUMNS) * TILE_COLUMNS
    return [slice(first, min(first + each, n_columns)) for first in range(0, n_columns, each)]


@cache
def load() -> tuple[Kernels | None, str]:
    """Return the compiled functions, or None and why there are none here."""
    library, why = load_library()
    if library is None:
        return None, why
    try:
        level = library.mpcformer_kernels_level()
        for usable in range(level, 0, -1):
            kernels = Kernels(library, usable)
            if kernels.are_right():
                return kernels, ""
    except AttributeError:
        return None, OTHER_FILE
    return None, NO_LEVEL if level == 0 else WRONG
