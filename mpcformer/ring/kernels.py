"""Compiled matrix products of ring elements, where `kernels.c` was compiled and the processor has AVX2 or AVX-512.

The set-up compiles that file if it finds a C compiler. `mpcformer.ring.gemm` does the same with torch where there is no
compiled file, and wherever the environment variable MPCFORMER_KERNELS is `off`.
"""

import ctypes
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from math import prod
from pathlib import Path

import numpy as np
import torch

from mpcformer.ring.random import BLOCK_WORDS, block_hash, hash_key
from mpcformer.ring.windows import WindowKernels

SWITCH = "MPCFORMER_KERNELS"
OFF = f"{SWITCH} is off"
NO_FILE = "the set-up found no C compiler"
OTHER_FILE = "the compiled file is of another machine or version"
NO_LEVEL = "this processor has no AVX2"
WRONG = "the compiled products give wrong numbers on this processor"
LEVELS = {1: "AVX2", 2: "AVX-512"}
# A thread has to have so many multiplications, or waking it takes longer than it saves.
WORTH_A_THREAD = 1 << 22
# Columns are dealt out to threads by as many as the widest tile has.
TILE_COLUMNS = 48
# Of kernels.c: blocks that are hashed side by side, and hash functions of a tree.
LANES, N_HASHES = 8, 4


LIFT_USES = {"value": 0, "square": 1, "length": 2, "times": 3}
LIFT_ARRAYS = ("c", "r", "carry", "m", "rm", "squares", "rb", "mb", "rn", "factor", "eta", "wrapped")


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


class Lift(ctypes.Structure):
    """The arguments of `mpcformer_kernels_lifted`, as kernels.c declares them."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("rows", "width", "bits", "lift", "rank", "offset", "down")),
        *((name, ctypes.c_void_p) for name in LIFT_ARRAYS),
        ("out", ctypes.c_void_p),
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

        self._lifted = library.mpcformer_kernels_lifted
        self._lifted.argtypes = [ctypes.c_int, ctypes.POINTER(Lift)]
        self._expand = library.mpcformer_kernels_expand
        self._expand.argtypes = [ctypes.c_char_p, *[ctypes.c_int64] * 4, *[ctypes.c_void_p] * 6]
        self._expand.restype = None
        self.has_aes = bool(library.mpcformer_kernels_has_aes())
        self.windows = WindowKernels(library)

    @property
    def name(self) -> str:
        """What the functions are compiled for."""
        return LEVELS[self.level]

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
        work = out.numel() * left.size(2)
        parts = _parts(right.size(2), min(torch.get_num_threads(), work // WORTH_A_THREAD))

        def multiply(part: slice) -> None:
            self._multiply(left, right[:, :, part], out[:, :, part], bits)

        if len(parts) == 1:
            multiply(parts[0])
        else:
            with ThreadPoolExecutor(len(parts)) as pool:  # the compiled function does not hold Python's lock
                list(pool.map(multiply, parts))
        return out.view(shape)

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

    def lifted(self, use: str, *, arrays: dict[str, torch.Tensor], **numbers: int) -> torch.Tensor:
        """Compute what follows the opening of a lifted mask, as `protocols.lifted.Opened` does.

        Args:
            use: one of LIFT_USES.
            arrays: int64 tensors by the names in LIFT_ARRAYS; those of whole values are shaped like c (..., width).
            numbers: bits, lift, rank, offset and down, as `Lift` has them.

        Raises:
            ValueError: a tensor has another type or size.
        """
        c = arrays["c"]
        width = c.size(-1) if c.dim() else 1
        rows = c.numel() // width if width else 0
        of_rows = {"factor", "eta", "wrapped"} | ({"squares"} if use == "length" else set())
        whole = {name: tensor.contiguous() for name, tensor in arrays.items()}
        for name, tensor in whole.items():
            if tensor.dtype != torch.int64 or tensor.numel() != (rows if name in of_rows else rows * width):
                raise ValueError(f"{name} of {tensor.dtype} {tuple(tensor.shape)} does not fit c of {tuple(c.shape)}")
        out = torch.empty((*c.shape[:-1], 1) if use == "length" else c.shape, dtype=torch.int64)
        pointers = {name: tensor.data_ptr() for name, tensor in whole.items()}
        arguments = Lift(rows=rows, width=width, out=out.data_ptr(), **numbers, **pointers)
        if self._lifted(LIFT_USES[use], ctypes.byref(arguments)):
            raise ValueError(f"kernels.c has no {use}")
        return out

    def expand(
        self, rank: int, root: torch.Tensor, levels: torch.Tensor, leaves: torch.Tensor, skipped: int = 0
    ) -> torch.Tensor:
        """Do as `point_function.expand` does, on a processor that has AES instructions; see `has_aes`.

        Args:
            rank, root, levels, leaves: as there, for at most four numbers of the payload.
            skipped: how many numbers of the payload come before them, an even number.
        """
        root, levels, leaves = (x.contiguous() for x in (root, levels, leaves))
        (rows, n), n_numbers = levels.shape[:2], leaves.size(1)
        shapes = (rows, BLOCK_WORDS), (rows, n, BLOCK_WORDS), (rows, n_numbers)
        if (root.shape, levels.shape, leaves.shape) != shapes or n_numbers > 2 * BLOCK_WORDS:
            raise ValueError(f"no point function has parts of {[tuple(x.shape) for x in (root, levels, leaves)]}")
        nodes = torch.zeros(((1 << n) + LANES) * BLOCK_WORDS, dtype=torch.int64)
        bits = torch.zeros((1 << n) + LANES, dtype=torch.uint8)
        out = torch.empty((n_numbers, rows, 1 << n), dtype=torch.int64)
        pointers = (x.data_ptr() for x in (root, levels, leaves, nodes, bits, out))
        # Two hashes make the tree, the others two numbers each.
        hashes = [0, 1, *(which + skipped // BLOCK_WORDS for which in range(2, N_HASHES))]
        self._expand(b"".join(map(hash_key, hashes)), rows, n, n_numbers, rank, *pointers)
        return out

    def _hashes_right(self) -> bool:
        """Return whether a tree of one level is made of the hashes of `random.block_hash`."""
        root, leaves = torch.tensor([[5, 9]]), torch.tensor([[1, 2, 3]])
        found = self.expand(0, root, torch.zeros(1, 1, 2, dtype=torch.int64), leaves)
        lowest = torch.tensor([3, 0])
        children = torch.stack([block_hash(root & ~lowest, which)[0] for which in (0, 1)])
        numbers = torch.cat([block_hash(children & ~lowest, which) for which in (2, 3)], dim=1)[:, :3]
        return torch.equal(found[:, 0].t(), numbers + leaves * (children[:, :1] & 1))

    def are_right(self) -> bool:
        """Return whether products are torch's, with edges of all kinds; forget trees if a small one is not right."""
        numbers = torch.arange(11 * 301, dtype=torch.int64).view(11, 301) * 0x1E3779B97F4A7C15 + (1 << 63)
        x, y = numbers, numbers.t().contiguous().repeat(1, 5)[:, :53]
        short = y.to(torch.int32)
        cases = (y, 64, x @ y), (short, 64, x @ short.long()), (short, 32, (x.to(torch.int32) @ short).long())
        self.has_aes = self.has_aes and self._hashes_right()
        return all(torch.equal(self.matmul(x, right, bits), expected) for right, bits, expected in cases)


def _parts(n_columns: int, n_threads: int) -> Sequence[slice]:
    each = -(-n_columns // max(n_threads, 1))
    each = -(-each // TILE_COLUMNS) * TILE_COLUMNS
    return [slice(first, min(first + each, n_columns)) for first in range(0, n_columns, each)]


def compiled_file() -> Path | None:
    """Return the compiled file, if there is one."""
    found = (Path(__file__).with_name(f"_kernels{suffix}") for suffix in EXTENSION_SUFFIXES)
    return next((path for path in found if path.is_file()), None)


@cache
def load() -> tuple[Kernels | None, str]:
    """Return the compiled functions, or None and why there are none here."""
    if os.environ.get(SWITCH, "on") == "off":
        return None, OFF
    path = compiled_file()
    if path is None:
        return None, NO_FILE
    try:
        library = ctypes.CDLL(str(path))
        level = library.mpcformer_kernels_level()
        for usable in range(level, 0, -1):
            kernels = Kernels(library, usable)
            if kernels.are_right():
                return kernels, ""
    except (OSError, AttributeError):
        return None, OTHER_FILE
    return None, NO_LEVEL if level == 0 else WRONG
