"""The generic kinds of correlation: Beaver triples, squares, truncation masks and shared bits.

CrypTen's protocols are built from these five kinds. `protocols.guard` and the two-table lookups of `protocols.table`
use triples, squares and truncation masks, too.
"""

from dataclasses import dataclass

import numpy as np
import torch

from mpcformer.correlations.base import MAX_ELEMENTS, Kind
from mpcformer.correlations.requests import Request, Shape
from mpcformer.errors import ProtocolError
from mpcformer.ring import gemm
from mpcformer.ring.convolution import CONVOLUTIONS, Convolution
from mpcformer.ring.packing import logical_shift
from mpcformer.ring.random import Stream

PRODUCTS = ("mul", "matmul")
SIGN_SHIFT = 63


@dataclass(frozen=True)
class TripleSpec:
    """An additive triple.

    Args:
        product: "mul" (elementwise, with broadcasting), "matmul", or a convolution by torch's name.
        left, right: the shapes of the two factors.
        convolution: the public numbers of a convolution.
    """

    product: str
    left: Shape
    right: Shape
    convolution: Convolution | None = None

    @property
    def result(self) -> Shape:
        """The shape of the product.

        Raises:
            ProtocolError: the factors do not fit.
        """
        if self.convolution is not None:
            return self.convolution.shape(self.left, self.right)
        return product_shape(self.product, self.left, self.right)

    def multiply(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Return the product of two int64 tensors modulo 2^64."""
        if self.convolution is not None:
            return self.convolution(x, y)
        return gemm.matmul(x, y) if self.product == "matmul" else torch.mul(x, y)

    def request(self) -> Request:
        """Return the request for the dealer."""
        params = () if self.convolution is None else self.convolution.params()
        return Request("additive_triple", (self.left, self.right), op=self.product, params=params)

    @staticmethod
    def of(request: Request) -> "TripleSpec":
        """Read a request.

        Raises:
            ProtocolError: the product is unknown.
        """
        left, right = request.shapes
        if request.op in CONVOLUTIONS:
            return TripleSpec(request.op, left, right, Convolution.of_params(request.op, request.params))
        if request.op not in PRODUCTS:
            known = ", ".join([*PRODUCTS, *CONVOLUTIONS])
            raise ProtocolError(f"triple op {request.op!r} is unknown; known: {known}")
        return TripleSpec(request.op, left, right)


def product_shape(product: str, left: Shape, right: Shape) -> Shape:
    """Return the shape of a product under torch's broadcasting.

    Raises:
        ProtocolError: the shapes do not fit.
    """
    try:
        if product == "matmul":
            if len(left) < 2 or len(right) < 2 or left[-1] != right[-2]:
                raise ValueError
            # torch's own function imports sympy, and half a second of other modules with it.
            return (*np.broadcast_shapes(left[:-2], right[:-2]), left[-2], right[-1])
        return tuple(np.broadcast_shapes(left, right))
    except ValueError:
        raise ProtocolError(f"{product or 'elementwise'} of shapes {left} and {right} is not defined") from None


class AdditiveTriple(Kind):
    """[a], [b], [c]* with c = a b over Z_2^64, for the product that `TripleSpec` names.

    Dealer bytes: 8 for each element of c.
    """

    n_operands = 2

    def check(self, request: Request) -> None:
        """Require two shapes and a known product, and a convolution whose windows fit memory."""
        super().check(request)
        spec = TripleSpec.of(request)
        if spec.convolution is not None:
            n = spec.convolution.n_working(spec.left, spec.right)
            if n > MAX_ELEMENTS:
                what = f"{request.op}: its windows exceed {MAX_ELEMENTS} elements, {n}"
                raise ProtocolError(what, "use smaller batches")

    def layout(self, request: Request) -> list[tuple[Shape, int]]:
        """Return the product's layout."""
        return [(TripleSpec.of(request).result, 64)]

    def draw(self, request: Request, stream: Stream, rank: int) -> list[torch.Tensor]:
        """Draw [a], [b] and, at rank 1, c."""
        return [stream.int64(shape) for shape in request.shapes] + self.draw_corrected(request, stream, rank)

    def correct(self, request: Request, share_0: list[torch.Tensor], share_1: list[torch.Tensor]) -> list[torch.Tensor]:
        """Compute c_0 = (a_0 + a_1) (b_0 + b_1) - c_1."""
        multiply = TripleSpec.of(request).multiply
        return [multiply(share_0[0] + share_1[0], share_0[1] + share_1[1]).sub_(share_1[2])]


class SquarePair(Kind):
    """[r], [r^2]* over Z_2^64. Dealer bytes: 8 for each element."""

    def layout(self, request: Request) -> list[tuple[Shape, int]]:
        """Return the square's layout."""
        return [(request.shapes[0], 64)]

    def draw(self, request: Request, stream: Stream, rank: int) -> list[torch.Tensor]:
        """Draw [r] and, at rank 1, r^2."""
        return [stream.int64(request.shapes[0]), *self.draw_corrected(request, stream, rank)]

    def correct(self, request: Request, share_0: list[torch.Tensor], share_1: list[torch.Tensor]) -> list[torch.Tensor]:
        """Compute (r_0 + r_1)^2 minus rank 1's share of it."""
        r = share_0[0] + share_1[0]
        return [(r * r).sub_(share_1[1])]


class Truncation(Kind):
    """[r], [r >> bits]*, [msb r]* with r uniform on 64 bits; the shifts are logical.

    Dealer bytes: 16 for each element.
    """

    def check(self, request: Request) -> None:
        """Require a shift that leaves bits on either side."""
        super().check(request)
        if not 1 <= request.bits <= 61:
            raise ProtocolError(f"truncation by {request.bits} bits must lie in 1..61")

    def layout(self, request: Request) -> list[tuple[Shape, int]]:
        """Return the layouts of the shifted mask and of its top bit."""
        return [(request.shapes[0], 64)] * 2

    def draw(self, request: Request, stream: Stream, rank: int) -> list[torch.Tensor]:
        """Draw [r] and, at rank 1, r >> bits and msb r."""
        return [stream.int64(request.shapes[0]), *self.draw_corrected(request, stream, rank)]

    def correct(self, request: Request, share_0: list[torch.Tensor], share_1: list[torch.Tensor]) -> list[torch.Tensor]:
        """Compute rank 0's shares of the shifted mask and of its top bit."""
        r = share_0[0] + share_1[0]
        return [
            logical_shift(r, request.bits).sub_(share_1[1]),
            logical_shift(r, SIGN_SHIFT).sub_(share_1[2]),
        ]


class BinaryTriple(Kind):
    """XOR-shared words a, b, c* = a & b, 64 bits each. Dealer bytes: 8 for each element of c."""

    n_operands = 2

    def check(self, request: Request) -> None:
        """Require two shapes; words have one product, so none may be named."""
        super().check(request)
        if request.op:
            raise ProtocolError(f"a binary triple takes no op, got {request.op!r}")

    def layout(self, request: Request) -> list[tuple[Shape, int]]:
        """Return the layout of a & b."""
        return [(product_shape("", *request.shapes), 64)]

    def draw(self, request: Request, stream: Stream, rank: int) -> list[torch.Tensor]:
        """Draw a, b and, at rank 1, c."""
        return [stream.int64(shape) for shape in request.shapes] + self.draw_corrected(request, stream, rank)

    def correct(self, request: Request, share_0: list[torch.Tensor], share_1: list[torch.Tensor]) -> list[torch.Tensor]:
        """Compute c_0 = (a & b) ^ c_1."""
        return [((share_0[0] ^ share_1[0]) & (share_0[1] ^ share_1[1])) ^ share_1[2]]


class BitPair(Kind):
    """A random bit, XOR-shared and shared* over Z_2^64. Dealer bytes: 8 for each element."""

    def layout(self, request: Request) -> list[tuple[Shape, int]]:
        """Return the layout of the bit over Z_2^64."""
        return [(request.shapes[0], 64)]

    def draw(self, request: Request, stream: Stream, rank: int) -> list[torch.Tensor]:
        """Draw the XOR share and, at rank 1, the arithmetic share."""
        return [stream.bits(request.shapes[0], 1), *self.draw_corrected(request, stream, rank)]

    def correct(self, request: Request, share_0: list[torch.Tensor], share_1: list[torch.Tensor]) -> list[torch.Tensor]:
        """Compute the bit minus rank 1's arithmetic share."""
        return [(share_0[0] ^ share_1[0]) - share_1[1]]
