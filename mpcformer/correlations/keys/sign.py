"""Keys of signs: short keys with which the owners get shares of a value's top bit from the value under a mask.

The mask r is uniform on 64 bits and known to the dealer alone. With c = x + r opened, the top bit of x is that of c,
turned where that of r is set, and turned once more where the lower 63 bits of c are below those of r. The last two are
a function of the lower bits of c: one number below a secret place, another from there on. Its keys are a distributed
comparison function. A tree of 2^63 leaves grows from each owner's root, as that of a point function does; each node
also gives two numbers, of which the owners add up those beside their way. The corrections, the same for both owners,
make these numbers cancel everywhere but where the way leaves that of the secret place to the left.

An owner's root and the corrections look like uniform bits, whatever mask they are for.
Source: Boyle, Chandran, Gilboa, Gupta, Ishai, Kumar, Rathee, Function Secret Sharing for Mixed-Mode and Fixed-Point
Secure Computation, EUROCRYPT 2021, figure 1 (comparison function) and section 4. The hash and the blocks are those of
`point_function`. Added here is the number that both sides of the place share, corrected at the root.

Shapes: R values.
"""

import math

import torch

from mpcformer.correlations.base import Kind
from mpcformer.correlations.keys.point_function import BITS, descend
from mpcformer.correlations.requests import Request, Shape
from mpcformer.ring.packing import logical_shift
from mpcformer.ring.random import BLOCK_WORDS, Stream, block_hash

N_BITS = 63
LOW_BITS = (1 << N_BITS) - 1
# The hash functions: of the children, of a node's two numbers, of a leaf's number and of a root's.
LEFT, RIGHT, BESIDE, LEAF, ROOT = 0, 1, 5, 6, 7


class MaskedKeys(Kind):
    """[r] for values of any shape, R in all, a root for each, and the corrections of a key for each: r is uniform.

    Tensors: r, of the shape asked for, on 64 bits; roots (R, 2); the corrections, which both owners get.
    """

    def is_shared(self, request: Request) -> bool:
        """Return that both owners need the corrections."""
        return True

    def draw(self, request: Request, stream: Stream, rank: int) -> list[torch.Tensor]:
        """Draw [r], and this owner's roots."""
        return [stream.int64(request.shapes[0]), stream.int64((math.prod(request.shapes[0]), BLOCK_WORDS))]


class Sign(MaskedKeys):
    """Keys of signs.

    Corrections: a block for each level (R, 63, 2), a number for each level (R, 63), and the numbers of root and leaf
    (R, 2).
    Dealer bytes: 1,528 for each value, which rank 0 passes on.
    """

    def layout(self, request: Request) -> list[tuple[Shape, int]]:
        """Return the layouts of the corrections."""
        n = math.prod(request.shapes[0])
        return [((n, N_BITS, BLOCK_WORDS), 64), ((n, N_BITS), 64), ((n, 2), 64)]

    def correct(self, request: Request, share_0: list[torch.Tensor], share_1: list[torch.Tensor]) -> list[torch.Tensor]:
        """Compute the corrections: below r's lower bits the other top bit than r's, from there on r's."""
        r = (share_0[0] + share_1[0]).view(-1)
        top = logical_shift(r, N_BITS)
        return list(corrections((share_0[1], share_1[1]), r & LOW_BITS, 1 - 2 * top, top))


def corrections(
    roots: tuple[torch.Tensor, torch.Tensor], places: torch.Tensor, below: torch.Tensor, everywhere: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Compute what both owners need beside their roots. Only the dealer can do this.

    Args:
        roots: the owners' roots, int64 (R, 2).
        places: int64 (R,) in [0, 2^63).
        below: what the function is below its place, less what it is from there on, int64 (R,).
        everywhere: what it is from its place on.

    Returns:
        int64 (R, 63, 2), (R, 63) and (R, 2).
    """
    # Both owners' nodes on the way to the place are hashed together: (2, R, 2).
    blocks = torch.stack([root & ~_lowest() for root in roots])
    bits = torch.stack([torch.zeros_like(places), torch.ones_like(places)])
    of_root = block_hash(blocks, ROOT)[..., 0]
    value, levels, numbers = torch.zeros_like(places), [], []
    for level in range(N_BITS):
        turn = (places >> (N_BITS - 1 - level)) & 1  # 1 where the way goes right
        goes_right, sign = turn == 1, 1 - 2 * bits[1]
        children = block_hash(blocks, LEFT), block_hash(blocks, RIGHT)
        kept, lost = (torch.where(goes_right[:, None], *pair) for pair in (children[::-1], children))
        own_left, own_right = (child[..., 0] & 1 for child in children)  # (2, R)
        beside = block_hash(blocks, BESIDE)
        kept_number = torch.where(goes_right, beside[..., 1], beside[..., 0])
        lost_number = torch.where(goes_right, beside[..., 0], beside[..., 1])
        # Who leaves the way to the left is below the place.
        number = sign * (lost_number[1] - lost_number[0] - value + turn * below)
        value = value - kept_number[1] + kept_number[0] + sign * number
        block = (lost[0] ^ lost[1]) & ~_lowest()
        left, right = own_left[0] ^ own_left[1] ^ turn ^ 1, own_right[0] ^ own_right[1] ^ turn
        block[:, 0] |= left | (right << 1)
        levels.append(block)
        numbers.append(number)
        corrected = torch.where(goes_right, right, left)
        blocks = (kept ^ (block & -bits[..., None])) & ~_lowest()
        bits = torch.where(goes_right, own_right, own_left) ^ (corrected & bits)
    of_leaf = block_hash(blocks, LEAF)[..., 0]
    ends = of_root[0] - of_root[1] - everywhere, (1 - 2 * bits[1]) * (of_leaf[1] - of_leaf[0] - value)
    return torch.stack(levels, dim=1), torch.stack(numbers, dim=1), torch.stack(ends, dim=1)


def evaluate(
    rank: int, root: torch.Tensor, levels: torch.Tensor, numbers: torch.Tensor, ends: torch.Tensor, at: torch.Tensor
) -> torch.Tensor:
    """Return an owner's shares of the functions, each at one number.

    Args:
        rank: of the owner.
        root: its roots, int64 (R, 2).
        levels, numbers, ends: from `corrections`.
        at: int64 (R,), of which the lower 63 bits count.

    Returns:
        int64 (R,).
    """
    block, bit = root & ~_lowest(), torch.full_like(at, rank)
    total = block_hash(block, ROOT)[:, 0] + bit * ends[:, 0]
    for level in range(N_BITS):
        goes_right = ((at >> (N_BITS - 1 - level)) & 1) == 1
        beside = block_hash(block, BESIDE)
        total += torch.where(goes_right, beside[:, 1], beside[:, 0]) + bit * numbers[:, level]
        block, bit = descend(block, bit, levels[:, level], goes_right)
    total += block_hash(block, LEAF)[:, 0] + bit * ends[:, 1]
    return -total if rank else total


def _lowest() -> torch.Tensor:
    return torch.tensor([BITS, 0])
