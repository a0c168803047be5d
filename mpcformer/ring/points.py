"""The compiled functions of `points.c`: the trees of point functions, and the dealer's corrections of them.

`correlations.keys.point_function` computes the same with torch where `kernels.load` finds no compiled file, or the
processor has no AES instructions.
"""

import ctypes
from collections.abc import Sequence

import torch

from mpcformer.ring.random import BLOCK_WORDS, block_hash, hash_key

# Of points.c: blocks that are hashed side by side, the hash functions of a tree, and numbers of payload.
LANES, N_HASHES, MAX_PAYLOAD = 8, 4, 6
# The levels of a way, and those of a whole tree that still fits into memory.
MAX_WAY, MAX_TREE = 64, 40


class PointKernels:
    """The compiled functions.

    Args:
        library: the file, loaded.
    """

    def __init__(self, library: ctypes.CDLL) -> None:
        self._expand, self._correct = library.mpcformer_points_expand, library.mpcformer_points_correct
        self._expand.argtypes = [ctypes.c_char_p, *[ctypes.c_int64] * 4, *[ctypes.c_void_p] * 6]
        self._correct.argtypes = [ctypes.c_char_p, *[ctypes.c_int64] * 3, *[ctypes.c_void_p] * 5]
        self._expand.restype = self._correct.restype = None
        self.has_aes = bool(library.mpcformer_points_has_aes())

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
        parts = (root, levels, leaves)
        if (root.shape, levels.shape, leaves.shape) != shapes or n_numbers > 2 * BLOCK_WORDS:
            raise ValueError(f"no point function has parts of {[tuple(x.shape) for x in parts]}")
        _check(parts, rank, n, MAX_TREE)
        nodes = torch.zeros(((1 << n) + LANES) * BLOCK_WORDS, dtype=torch.int64)
        bits = torch.zeros((1 << n) + LANES, dtype=torch.uint8)
        out = torch.empty((n_numbers, rows, 1 << n), dtype=torch.int64)
        pointers = (x.data_ptr() for x in (root, levels, leaves, nodes, bits, out))
        # Two hashes make the tree, the others two numbers each.
        hashes = [0, 1, *(which + skipped // BLOCK_WORDS for which in range(2, N_HASHES))]
        self._expand(b"".join(map(hash_key, hashes)), rows, n, n_numbers, rank, *pointers)
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
        hashes = range(2 + MAX_PAYLOAD // BLOCK_WORDS)
        self._correct(b"".join(map(hash_key, hashes)), rows, n, n_numbers, *pointers)
        return levels, leaves

    def are_right(self) -> bool:
        """Return whether a tree of one level is made of the hashes of `random.block_hash`, and corrected for it."""
        root, leaves = torch.tensor([[5, 9]]), torch.tensor([[1, 2, 3]])
        found = self.expand(0, root, torch.zeros(1, 1, 2, dtype=torch.int64), leaves)
        lowest = torch.tensor([3, 0])
        children = torch.stack([block_hash(root & ~lowest, which)[0] for which in (0, 1)])
        numbers = torch.cat([block_hash(children & ~lowest, which) for which in (2, 3)], dim=1)[:, :3]
        if not torch.equal(found[:, 0].t(), numbers + leaves * (children[:, :1] & 1)):
            return False
        roots = root, torch.tensor([[-7, 11]])
        parts = self.correct(roots, torch.tensor([2]), leaves, 2)
        total = self.expand(0, roots[0], *parts) + self.expand(1, roots[1], *parts)
        return torch.equal(total, torch.tensor([0, 0, 1, 0]) * leaves.t()[..., None])


def _check(parts: Sequence[torch.Tensor], rank: int, n: int, most: int) -> None:
    if any(part.dtype != torch.int64 for part in parts) or rank not in (0, 1) or not 1 <= n <= most:
        types = [part.dtype for part in parts]
        raise ValueError(f"no point function of {n} levels has parts of {types} at rank {rank}")
