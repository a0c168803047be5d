"""The product of two shared matrices, from openings that are made elsewhere."""

from collections.abc import Sequence

import torch

from mpcformer.correlations import Request
from mpcformer.protocols.cost import ProtocolCost, dealt, opening
from mpcformer.protocols.party import Half, Party, Share, fused
from mpcformer.ring import gemm
from mpcformer.ring.fused import Fused
from mpcformer.ring.packing import Operand, unpacked


def request(x: tuple[int, ...], y: tuple[int, ...], bits: int) -> Request:
    """Return the request for x (..., m, n) times the transpose of y (..., p, n), over Z_2^bits."""
    return Request("matmul_masks", (x, y), bits=bits)


def cost(x: tuple[int, ...], y: tuple[int, ...], bits: int, *, ahead: bool = False) -> ProtocolCost:
    """Return the cost of a product with its openings, as `product` states it. `ahead` is that of `opening`."""
    return opening((x, bits), (y, bits), ahead=ahead) + dealt(request(x, y, bits))


def half(share: Share, mask: Operand, bits: int) -> Half:
    """Return this owner's half of the opening of x - a."""
    return fused(share) - unpacked(mask), bits


def product(party: Party, d: torch.Tensor, e: torch.Tensor, masks: Sequence[Operand], bits: int) -> Fused:
    """Compute [x y^T] from the opened d = x - a and e = y - b.

    Ideal function: matrix product over Z_2^k, without truncation.
    Shapes: x (..., m, n), y (..., p, n), result (..., m, p).
    Scale: f and g -> f + g.
    Range and error: exact modulo 2^k, where k = bits is the width of the ring of the masks and of d and e.
    Cost for b products with both openings in one message: 1 round; k / 8 b (m n + n p) bytes each way;
        k / 8 b m p dealer bytes.
    Source: Beaver, CRYPTO 1991.
    """
    a, b, c = unpacked(masks[0]), unpacked(masks[1]), masks[2]
    own, width = e + b if party.rank == 0 else b, gemm.product_bits(bits)
    product_of_d = gemm.matmul(d, own.transpose(-1, -2), width)
    return Fused(product_of_d) + gemm.matmul(a, e.transpose(-1, -2), width) + c
