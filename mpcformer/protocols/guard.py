"""Whether any row's number left what its tables can see, told by one more random mark."""

import torch

from mpcformer.correlations import Request
from mpcformer.correlations.kinds import logical_shift
from mpcformer.protocols.party import Party


def requests(sizes: list[tuple[int, int]]) -> list[Request]:
    """The correlations for groups of (rows, bits)."""
    total = sum(rows for rows, _ in sizes)
    truncations = [Request("truncation", ((rows,),), bits=bits) for rows, bits in sizes]
    return [
        *truncations,
        Request("square_pair", ((total,),)),
        Request("additive_triple", ((total,), (total,)), op="mul"),
    ]


def mark(party: Party, groups: list[tuple[torch.Tensor, int, torch.Tensor]]) -> torch.Tensor:
    """A share of zero if every x is below 2^bits, of a random number if any is 2^(bits + 1) or more.

    Ideal function: t = floor(x / 2^bits) or that plus one; the sum over rows of t (t - 1) b, b random, times `real`.
    Shapes: each group is (x (rows,), bits, real (rows,)), real 1 where a row counts and 0 where not; result ().
    Scale: none.
    Range and error: 0 <= x < 2^62. Between the two bounds it may or may not mark; t = 2^k u, u odd, escapes with
    probability 2^(k - 64), k <= 62 - bits. The sum is not opened: `protocols.zero_test` tells whether it is zero.
    Cost for n rows: 3 rounds, 24 n bytes each way, 32 n dealer bytes.
    Source: truncation as in `crypten_compat.truncate`; a Beaver triple whose second factor is never opened is the mask.
    """
    sizes = [(x.numel(), bits) for x, bits, _ in groups]
    *truncations, (r, r_squared), (a, b, c) = [party.take(request) for request in requests(sizes)]
    halves = [(x + t[0] + party.only(0, 1 << 62), 64) for (x, _, _), t in zip(groups, truncations, strict=True)]
    parts = []
    for opened, (_, shifted, top), (_, bits) in zip(party.open(halves), truncations, sizes, strict=True):
        wrapped = (top * (opened >= 0).long()) << (64 - bits)
        public = logical_shift(opened, bits) - (1 << (62 - bits))
        parts.append(party.only(0, public) + wrapped - shifted)
    t = torch.cat(parts)
    d = party.open([(t - r, 64)])[0]
    product = party.only(0, d * d) + 2 * d * r + r_squared - t
    e = party.open([(product - a, 64)])[0]
    real = torch.cat([flags for _, _, flags in groups])
    return ((e * b + c) * real).sum()
