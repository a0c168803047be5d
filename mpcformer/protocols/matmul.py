"""Product of two shared matrices, from openings made elsewhere."""

import torch

from mpcformer.correlations import Request
from mpcformer.protocols.party import Party


def product(party: Party, d: torch.Tensor, e: torch.Tensor, masks: list[torch.Tensor]) -> torch.Tensor:
    """[x y^T] from the opened d = x - a and e = y - b.

    Ideal function: matrix product over Z_2^k, no truncation.
    Shapes: x (..., m, n), y (..., p, n), result (..., m, p).
    Scale: f and g -> f + g.
    Range and error: exact modulo 2^k, where k is the ring of the masks and of d and e.
    Cost: 1 round with the openings, k / 8 (m n + n p) bytes each way, k / 8 m p dealer bytes.
    Source: Beaver, CRYPTO 1991.
    """
    a, b, c = masks
    own = e + b if party.rank == 0 else b
    # Two products as one: (d | a) (own | e)^T.
    return torch.matmul(torch.cat([d, a], dim=-1), torch.cat([own, e], dim=-1).transpose(-1, -2)) + c


def request(x: tuple[int, ...], y: tuple[int, ...], bits: int) -> Request:
    """The correlation for x (..., m, n) times the transpose of y (..., p, n), over Z_2^bits."""
    return Request("matmul_masks", (x, y), bits=bits)


def half(share: torch.Tensor, mask: torch.Tensor, bits: int) -> tuple[torch.Tensor, int]:
    """This party's half of the opening of x - a."""
    return share - mask, bits
