"""The compiled functions of `points.c`: the trees of point functions, and the dealer's corrections of them.

`correlations.keys.point_function` computes the same with torch where `kernels.load` finds no compiled file, or the
processor has no AES instructions.
"""

import ctypes
from collections.abc import Sequence

import torch

from mpcformer.ring.aes import AES, NONE
from mpcformer.ring.random import BLOCK_WORDS, block_hash, hash_key

# Of points.c: numbers of payload, the hash functions of a tree, rows that are expanded together in trees of at most so
# many levels, and for how many blocks there must be room beyond the tree's.
MAX_PAYLOAD = 6
N_HASHES, ROWS_TOGETHER, DEEP, SPARE_BLOCKS = 2 + MAX_PAYLOAD // BLOCK_WORDS, 16, 10, 32
# The levels of a way, and those of a whole tree that still fits into memory.
MAX_WAY, MAX_TREE = 64, 40


class _Expand(ctypes.Structure):
    """What the function that expands keys is told: the structure of the same name in points.c."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("rows", "n", "numbers", "rank")),
        *((name, ctypes.c_void_p) for name in ("roots", "levels", "leaves", "nodes", "bits", "out")),
    )


class PointKernels:
    """The compiled functions.

    Args:
        library: the file, loaded.
    """

    def __init__(self, library: ctypes.CDLL) -> None:
        self._expand, self._correct = library.mpcformer_points_expand, library.mpcformer_points_correct
        self._expand.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.POINTER(_Expand)]
        self._correct.argtypes = [ctypes.c_char_p, *[ctypes.c_int64] * 3, *[ctypes.c_void_p] * 5]
        self._expand.restype = self._correct.restype = None
        # The processor's instructions, as `ring.aes` numbers them, and whether the functions may be used.
        self.level = int(library.mpcformer_points_level())
        self.has_aes = self.level > NONE

    def expand(
        self, rank: int, root: torch.Tensor, levels: torch.Tensor, leaves: torch.Tensor, level: int | None = None
    ) -> torch.Tensor:
        """Do as `point_function.expand` does, on a processor that has AES instructions; see `has_aes`.

        Args:
            rank, root, levels, leaves: as there.
            level: the instructions to use, at most the processor's; None for these.
        """
        root, levels, leaves = (x.contiguous() for x in (root, levels, leaves))
        (rows, n), n_numbers = levels.shape[:2], leaves.size(1)
        shapes = (rows, BLOCK_WORDS), (rows, n, BLOCK_WORDS), (rows, n_numbers)
        parts = (root, levels, leaves)
        if (root.shape, levels.shape, leaves.shape) != shapes or n_numbers > MAX_PAYLOAD:
            raise ValueError(f"no point function has parts of {[tuple(x.shape) for x in parts]}")
        _check(parts, rank, n, MAX_TREE)
        together = 1 if n > DEEP else ROWS_TOGETHER
        nodes = torch.zeros(((together << n) + SPARE_BLOCKS) * BLOCK_WORDS, dtype=torch.int64)
        bits = torch.zeros((1 << n) + SPARE_BLOCKS, dtype=torch.uint8)
        out = torch.empty((n_numbers, rows, 1 << n), dtype=torch.int64)
        pointers = (x.data_ptr() for x in (root, levels, leaves, nodes, bits, out))
        told = _Expand(rows, n, n_numbers, rank, *pointers)
        self._expand(self.level if level is None else level, _hash_keys(), told)
        return out

    def correct(
        self, roots: tuple[torch.Tensor, torch.Tensor], places: torch.Tensor, payload: torch.Tensor, n: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Do as `point_function.corrections` does, on a processor that has AES instructions; see `has_aes`."""
        both, (rows, n_numbers) = torch.stack(roots), payload.shape
        places, payload = places.contiguous(), payload.contiguous()
        if both.shape != (2, rows, BLOCK_WORDS) or places.shape != (rows,) or n_numbers > MAX_PAYLOAD:
            raise ValueError(f"no point function has parts of {[tuple(x.shape) for x in (both, places, payload)]}")
        _check((both, places, payload), 0, n, MAX_WAY)
        levels = torch.empty((rows, n, BLOCK_WORDS), dtype=torch.int64)
        leaves = torch.empty((rows, n_numbers), dtype=torch.int64)
        pointers = (x.data_ptr() for x in (both, places, payload, levels, leaves))
        self._correct(_hash_keys(), rows, n, n_numbers, *pointers)
        return levels, leaves

    def are_right(self) -> bool:
        """Return whether a tree of one level is made of the hashes of `random.block_hash`, and corrected for it.

        Larger trees must hold the payload alone, by each of the processor's instructions: small ones, more rows than
        are expanded together, and rows so deep that each is expanded by itself.
        """
        root, leaves = torch.tensor([[5, 9]]), torch.tensor([[1, 2, 3]])
        found = self.expand(0, root, torch.zeros(1, 1, 2, dtype=torch.int64), leaves)
        lowest = torch.tensor([3, 0])
        children = torch.stack([block_hash(root & ~lowest, which)[0] for which in (0, 1)])
        numbers = torch.cat([block_hash(children & ~lowest, which) for which in (2, 3)], dim=1)[:, :3]
        if not torch.equal(found[:, 0].t(), numbers + leaves * (children[:, :1] & 1)):
            return False
        sizes = (1, 2, 3), (ROWS_TOGETHER + 1, 4, MAX_PAYLOAD), (2, DEEP + 1, 1)
        return all(self._holds(*size, level) for size in sizes for level in range(AES, self.level + 1))

    def _holds(self, rows: int, n: int, n_numbers: int, level: int) -> bool:
        """Return whether trees of 2^n places add up to their payload at its place, and to zero elsewhere."""
        numbers = torch.arange(1, 1 + rows * (4 + n_numbers)) * 0x1E3779B97F4A7C15
        first, second, payload = torch.split(numbers, [2 * rows, 2 * rows, n_numbers * rows])
        roots, payload = (first.view(rows, 2), second.view(rows, 2)), payload.view(rows, n_numbers)
        places = torch.arange(rows) * 5 % (1 << n)
        parts = self.correct(roots, places, payload, n)
        total = self.expand(0, roots[0], *parts, level=level) + self.expand(1, roots[1], *parts, level=level)
        expected = torch.zeros((n_numbers, rows, 1 << n), dtype=torch.int64)
        expected[:, torch.arange(rows), places] = payload.t()
        return torch.equal(total, expected)


def _hash_keys() -> bytes:
    """Return the keys of all hash functions: two make the tree, the others two numbers each."""
    return b"".join(map(hash_key, range(N_HASHES)))


def _check(parts: Sequence[torch.Tensor], rank: int, n: int, most: int) -> None:
    if any(part.dtype != torch.int64 for part in parts) or rank not in (0, 1) or not 1 <= n <= most:
        types = [part.dtype for part in parts]
        raise ValueError(f"no point function of {n} levels has parts of {types} at rank {rank}")
