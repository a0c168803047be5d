"""Distributed point functions: two short keys that expand to shares of a vector that is zero but for one secret place.

Each owner has a root, which is uniform and known to it and the dealer alone. A tree of 2^n leaves grows from it: each
node is a block of 126 bits and a bit. The dealer's corrections, the same for both owners, make the owners' nodes equal
everywhere but on the way to the secret place, where the blocks are independent and the bits differ. A node's children
are two fixed-key hashes of its block, corrected if its bit is set. A leaf becomes numbers of Z_2^64: equal ones, which
cancel, or such as add up to the payload.

An owner's root and the corrections look like uniform bits, whatever place and payload are.
Source: Boyle, Gilboa, Ishai, Function Secret Sharing: Improvements and Extensions, CCS 2016, figure 1; the hash is the
Matyas-Meyer-Oseas construction on AES, as there.

Shapes: R rows, n = log2 of the number of places, C numbers of payload at most `MAX_PAYLOAD`.
"""

import torch

from mpcformer.ring.kernels import load
from mpcformer.ring.random import BLOCK_WORDS, block_hash

MAX_PAYLOAD = 3 * BLOCK_WORDS
# The lowest bits of a block's first word: the children's bits in a correction; a child's own bit, before it is cleared.
BITS = 0b11


def corrections(
    roots: tuple[torch.Tensor, torch.Tensor], places: torch.Tensor, payload: torch.Tensor, n: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute what both owners need beside their roots. Only the dealer can do this.

    Args:
        roots: the owners' roots, int64 (R, 2).
        places: where the payload is, int64 (R,) in [0, 2^n).
        payload: int64 (R, C).
        n: log2 of the number of places.

    Returns:
        int64 (R, n, 2), a block for each level, and (R, C) for the leaves.

    Raises:
        ValueError: the payload has too many numbers.
    """
    if payload.size(1) > MAX_PAYLOAD:
        raise ValueError(f"a payload has at most {MAX_PAYLOAD} numbers, not {payload.size(1)}")
    kernels, _ = load()
    if kernels is not None and kernels.points.has_aes:
        return kernels.points.correct(roots, places, payload, n)
    return corrections_by_torch(roots, places, payload, n)


def corrections_by_torch(
    roots: tuple[torch.Tensor, torch.Tensor], places: torch.Tensor, payload: torch.Tensor, n: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Do as `corrections` does, without the compiled functions."""
    # Both owners' nodes on the way to the place are hashed together: (2, R, 2).
    blocks = torch.stack([root & ~_lowest() for root in roots])
    bits = torch.stack([torch.zeros_like(places), torch.ones_like(places)])
    levels = []
    for level in range(n):
        turn = (places >> (n - 1 - level)) & 1  # 1 where the way goes right
        children = _children(blocks)
        goes_right = turn == 1
        kept, lost = (torch.where(goes_right[:, None], *pair) for pair in (children[::-1], children))
        own_left, own_right = (child[..., 0] & 1 for child in children)  # (2, R)
        block = (lost[0] ^ lost[1]) & ~_lowest()
        left, right = own_left[0] ^ own_left[1] ^ turn ^ 1, own_right[0] ^ own_right[1] ^ turn
        block[:, 0] |= left | (right << 1)
        levels.append(block)
        corrected = torch.where(goes_right, right, left)
        blocks = (kept ^ (block & -bits[..., None])) & ~_lowest()
        bits = torch.where(goes_right, own_right, own_left) ^ (corrected & bits)
    numbers = _numbers(blocks, payload.size(1))
    difference = payload - numbers[0] + numbers[1]
    return torch.stack(levels, dim=1), torch.where(bits[1][:, None] == 1, -difference, difference)


def expand(rank: int, root: torch.Tensor, levels: torch.Tensor, leaves: torch.Tensor) -> torch.Tensor:
    """Expand an owner's key: its share of the payload at the secret place, and of zero elsewhere.

    Args:
        rank: of the owner.
        root: its root, int64 (R, 2).
        levels, leaves: from `corrections`.

    Returns:
        int64 (C, R, 2^n).
    """
    kernels, _ = load()
    if kernels is not None and kernels.points.has_aes:
        return kernels.points.expand(rank, root, levels, leaves)
    return expand_by_torch(rank, root, levels, leaves)


def evaluate(
    rank: int, root: torch.Tensor, levels: torch.Tensor, leaves: torch.Tensor, at: torch.Tensor
) -> torch.Tensor:
    """Return what `expand` would give at one place of each row, without the others: (C, R).

    Args:
        rank, root, levels, leaves: as for `expand`, with up to 64 levels.
        at: the places, int64 (R,), of which as many of the lowest bits count as there are levels.
    """
    block, bit = root & ~_lowest(), torch.full_like(at, rank)
    n = levels.size(1)
    for level in range(n):
        goes_right = ((at >> (n - 1 - level)) & 1) == 1
        block, bit = descend(block, bit, levels[:, level], goes_right)
    numbers = _numbers(block, leaves.size(1)) + leaves * bit[:, None]
    return (-numbers if rank == 1 else numbers).t()


def descend(
    block: torch.Tensor, bit: torch.Tensor, correction: torch.Tensor, goes_right: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the child of an owner's node in each row, corrected where the node's bit is set.

    Args:
        block, bit: the node, int64 (R, 2) and (R,).
        correction: of its level, int64 (R, 2).
        goes_right: bool (R,), which child is wanted.
    """
    child = torch.where(goes_right[:, None], *_children(block)[::-1])
    corrected = correction & -bit[:, None]
    both = corrected[:, 0] & BITS
    own = (child[:, 0] & 1) ^ torch.where(goes_right, both >> 1, both & 1)
    return (child ^ corrected) & ~_lowest(), own


def expand_by_torch(rank: int, root: torch.Tensor, levels: torch.Tensor, leaves: torch.Tensor) -> torch.Tensor:
    """Do as `expand` does, without the compiled functions."""
    rows, n = levels.shape[:2]
    block, bit = (root & ~_lowest())[:, None], torch.full((rows, 1), rank, dtype=torch.int64)
    for level in range(n):
        mask = -bit
        corrected = levels[:, level, None] & mask[..., None]  # (R, nodes, 2)
        both = corrected[..., 0] & BITS
        corrected = corrected & ~_lowest()
        children = torch.stack(_children(block), dim=2)  # (R, nodes, 2 children, 2)
        own = (children[..., 0] & 1) ^ torch.stack([both & 1, both >> 1], dim=2)
        block = ((children & ~_lowest()) ^ corrected[:, :, None]).view(rows, 2 << level, BLOCK_WORDS)
        bit = own.view(rows, 2 << level)
    numbers = _numbers(block, leaves.size(1)) + leaves[:, None] * bit[..., None]
    signed = -numbers if rank == 1 else numbers
    return signed.permute(2, 0, 1).contiguous()


def _lowest() -> torch.Tensor:
    return torch.tensor([BITS, 0])


def _children(block: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return block_hash(block, 0), block_hash(block, 1)


def _numbers(block: torch.Tensor, n_numbers: int) -> torch.Tensor:
    """Turn blocks (..., 2) into numbers (..., n_numbers), by other hashes than those of the tree."""
    parts = [block_hash(block, 2 + i) for i in range(-(-n_numbers // BLOCK_WORDS))]
    return torch.cat(parts, dim=-1)[..., :n_numbers]
