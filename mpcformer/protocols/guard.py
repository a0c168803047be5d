"""The range guard: tells by random marks whether any row's number lies above what its tables can see.

Its three openings need not be messages of their own: `Marking` lets other openings take them along.
"""

from collections.abc import Generator

import torch

from mpcformer.correlations import Request
from mpcformer.correlations.beaver import TripleSpec
from mpcformer.protocols.cost import ProtocolCost, dealt, opening
from mpcformer.protocols.party import Half, Party
from mpcformer.ring.packing import logical_shift


def requests(sizes: list[tuple[int, int]]) -> list[Request]:
    """Return the requests for groups of (rows, bits)."""
    total = sum(rows for rows, _ in sizes)
    truncations = [Request("truncation", ((rows,),), bits=bits) for rows, bits in sizes]
    return [*truncations, Request("square_pair", ((total,),)), TripleSpec("mul", (total,), (total,)).request()]


def cost(sizes: list[tuple[int, int]]) -> ProtocolCost:
    """Return the cost of a mark for groups of (rows, bits), as `mark` states it."""
    each = step_cost(sizes)
    return each + each + each + dealt(*requests(sizes))


def step_cost(sizes: list[tuple[int, int]]) -> ProtocolCost:
    """Return the cost of one of the three openings of a mark for groups of (rows, bits)."""
    return opening(((sum(rows for rows, _ in sizes),), 64))


def mark(party: Party, groups: list[tuple[torch.Tensor, int, torch.Tensor]], n_marks: int) -> torch.Tensor:
    """Compute shares of zero where every x is below 2^bits, and of random numbers where any is 2^(bits + 1) or more.

    Each group's rows are cut into `n_marks` equal runs, such as the sentences of a batch, and run i of every group goes
    into mark i.

    Ideal function: the sum over a mark's rows of t (t - 1) b `real`, where t = floor(x / 2^bits), or that plus one, and
        b is random.
    Shapes: each group is (x (rows,), bits, real (rows,)), where `real` is 1 for a row that counts and 0 for any other;
        result (n_marks,).
    Scale: none.
    Range and error: 0 <= x < 2^62. Between the two bounds the mark may or may not be set. A row with t = 2^k u, u odd,
        escapes with probability 2^(k - 64), k <= 62 - bits. The sums are not opened: `protocols.zero_test` tells
        whether they are zero.
    Cost for n rows of all groups: 3 rounds; 24 n bytes each way; 32 n dealer bytes.
    Source: the truncation is that of `engines.crypten.compat.truncate`. The mask b is the second factor of a Beaver
        triple, which is never opened.
    """
    marking = Marking(party, groups, n_marks)
    while halves := marking.halves:
        marking.take(party.open(halves))
    return marking.marks


class Marking:
    """A mark in progress: its next opening, and what was found in the end.

    The arguments are those of `mark`.

    Attributes:
        halves: this owner's halves of the next opening; empty if there is none left.
        marks: the shares of the marks, (n_marks,), after the last opening.
    """

    def __init__(self, party: Party, groups: list[tuple[torch.Tensor, int, torch.Tensor]], n_marks: int) -> None:
        self._steps = _steps(party, groups, n_marks)
        self.halves, self.marks = next(self._steps), torch.empty(0)

    def take(self, opened: list[torch.Tensor]) -> None:
        """Go on with the opened numbers of `halves`."""
        try:
            self.halves = self._steps.send(opened)
        except StopIteration as end:
            self.halves, self.marks = [], end.value


def _steps(
    party: Party, groups: list[tuple[torch.Tensor, int, torch.Tensor]], n_marks: int
) -> Generator[list[Half], list[torch.Tensor], torch.Tensor]:
    """Yield the halves of each opening, take what was opened, and return the marks."""
    sizes = [(x.numel(), bits) for x, bits, _ in groups]
    *truncations, (r, r_squared), (a, b, c) = [party.take(request) for request in requests(sizes)]
    halves: list[Half] = [
        (x + t[0] + party.only(0, 1 << 62), 64) for (x, _, _), t in zip(groups, truncations, strict=True)
    ]
    parts = []
    for opened, (_, shifted, top), (_, bits) in zip((yield halves), truncations, sizes, strict=True):
        wrapped = (top * (opened >= 0).long()) << (64 - bits)
        public = logical_shift(opened, bits) - (1 << (62 - bits))
        parts.append(party.only(0, public) + wrapped - shifted)
    t = torch.cat(parts)
    (d,) = yield [(t - r, 64)]
    product = party.only(0, d * d) + 2 * d * r + r_squared - t
    (e,) = yield [(product - a, 64)]
    marks = (e * b + c).split_with_sizes([rows for rows, _ in sizes])
    counted = [(own * real).view(n_marks, -1) for own, (_, _, real) in zip(marks, groups, strict=True)]
    return torch.cat(counted, dim=1).sum(1)
