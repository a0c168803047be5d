"""The correlation for the product of two shared matrices; see `protocols.matmul`."""

import torch

from mpcformer.correlations.base import Kind, check_width
from mpcformer.correlations.requests import Request, Shape
from mpcformer.errors import ProtocolError
from mpcformer.ring import gemm
from mpcformer.ring.random import Stream


class MatmulMasks(Kind):
    """[a], [b], [a b^T]* over Z_2^bits, for shapes (..., m, n) and (..., p, n).

    The second factor is transposed, because torch multiplies batches of int64 matrices several times faster that way.
    Dealer bytes: bits / 8 for each element of the product.
    """

    n_operands = 2
    stays_packed = True

    def check(self, request: Request) -> None:
        """Require two shapes that multiply, and a ring that packs into bytes."""
        super().check(request)
        check_width(request)
        x, y = request.shapes
        if len(x) < 2 or len(x) != len(y) or x[:-2] != y[:-2] or x[-1] != y[-1]:
            raise ProtocolError(f"shapes {x} and {y} do not multiply as x y^T")

    def layout(self, request: Request) -> list[tuple[Shape, int]]:
        """Return the product's layout."""
        x, y = request.shapes
        return [((*x[:-1], y[-2]), request.bits)]

    def draw(self, request: Request, stream: Stream, rank: int) -> list[torch.Tensor]:
        """Draw [a], [b] and, at rank 1, its share of the product."""
        return [stream.int64(shape) for shape in request.shapes] + self.draw_corrected(request, stream, rank)

    def correct(self, request: Request, share_0: list[torch.Tensor], share_1: list[torch.Tensor]) -> list[torch.Tensor]:
        """Compute the product minus rank 1's share of it."""
        b = share_0[1] + share_1[1]
        bits = gemm.product_bits(request.bits)
        return [gemm.matmul(share_0[0] + share_1[0], b.transpose(-1, -2), bits).sub_(share_1[2])]
