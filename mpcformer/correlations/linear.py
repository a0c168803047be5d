"""The correlation for linear maps with weights of the model owner; see `protocols.linear`."""

from dataclasses import dataclass

import torch

from mpcformer.correlations.base import Kind, check_width
from mpcformer.correlations.requests import MaskKeys, Request, Shape
from mpcformer.errors import ProtocolError
from mpcformer.ring import gemm
from mpcformer.ring.filed import FiledTable
from mpcformer.ring.packing import WIDTHS, PackedMatrix
from mpcformer.ring.random import Stream, derive_key

# A weight as an owner keeps it: in the clear, masked, or as the mask.
Weight = torch.Tensor | PackedMatrix | FiledTable | gemm.ShortMatrix
# Masks of such rings are kept as int32.
SHORT = 32
# The name of the keys of tags. They are a weight whose mask is the key itself, see `protocols.linear.tag`. No other
# weight's mask is a batch's own.
TAGS = "tags"


@dataclass(frozen=True)
class LinearSpec:
    """Linear maps of one input.

    Args:
        names: the name of each weight.
        n_rows: the rows of the input.
        weights: the shape of each weight: (in, out) of a matrix or (in,) of a diagonal.
        widths: the width of the ring of each weight and its result. The input lies in the widest ring.
    """

    names: tuple[str, ...]
    n_rows: int
    weights: tuple[Shape, ...]
    widths: tuple[int, ...]

    @property
    def bits(self) -> int:
        """The width of the ring of the input."""
        return max(self.widths)

    def request(self) -> Request:
        """Return the request for the dealer."""
        shapes = ((self.n_rows, self.weights[0][0]), *self.weights)
        params = tuple(map(float, self.widths)) if len(set(self.widths)) > 1 else ()
        return Request("linear", shapes, op=",".join(self.names), bits=self.bits, params=params)

    @staticmethod
    def of(request: Request) -> "LinearSpec":
        """Read a request.

        Raises:
            ProtocolError: a weight has no name, no width or an unknown one, or does not fit the input.
        """
        bits, n_weights = request.bits, len(request.shapes) - 1
        # The numbers may be a stranger's, and infinite.
        widths = tuple(int(w) if w in WIDTHS else 0 for w in request.params) or (bits,) * n_weights
        if not widths or len(widths) != n_weights or not {*widths} <= {*WIDTHS} or max(widths) != bits:
            raise ProtocolError(f"linear maps of {bits} bits have no rings of {request.params} bits")
        names, (x, *weights) = request.op.split(","), request.shapes
        fits = len(x) == 2 and all(len(w) in (1, 2) and w[0] == x[-1] for w in weights)
        if not weights or len(names) != len(weights) or not fits:
            raise ProtocolError(f"linear maps {request.op!r} of shapes {request.shapes} are not defined")
        return LinearSpec(tuple(names), x[0], tuple(weights), widths)


def weight_mask(key: bytes, name: str, shape: Shape, bits: int) -> torch.Tensor:
    """Derive the mask of one of the model owner's weights.

    Returns:
        Uniform numbers of `shape`: int32 if the ring has 32 bits or fewer, else int64.
    """
    stream = Stream(derive_key(key, "weight", name))
    return stream.int32(shape) if bits <= SHORT else stream.int64(shape)


def input_mask(request: Request, key: bytes) -> torch.Tensor:
    """Derive A alone, (rows, in) as int64, from rank 1's key of a request."""
    return Stream(key).int64(request.shapes[0])


def times_weight(x: torch.Tensor, weight: Weight, bits: int) -> torch.Tensor:
    """Return x @ weight, or x * weight if the weight is a diagonal (n,), as int64 that is right modulo 2^bits."""
    if isinstance(weight, PackedMatrix | FiledTable):
        weight = weight.unpacked()
    if isinstance(weight, gemm.ShortMatrix):
        return gemm.matmul_short(x, weight, bits)
    return gemm.matmul(x, weight, gemm.product_bits(bits)) if weight.dim() == 2 else x * weight


class Linear(Kind):
    """A (rows, in) at rank 1, and c_i* with c_i0 + c_i1 = A B_i for the mask B_i of each weight.

    Rank 0 derives B_i from its own key. The shapes of the request are (rows, in), then (in, out) for each matrix or
    (in,) for each diagonal; `op` has the names of the weights, separated by commas.
    Dealer bytes: bits / 8 for each element of the products, by the width of the weight's ring.
    """

    stays_packed = True

    def check(self, request: Request) -> None:
        """Require a name for each weight, shapes that fit, and a ring that packs into bytes."""
        check_width(request)
        LinearSpec.of(request)

    def layout(self, request: Request) -> list[tuple[Shape, int]]:
        """Return (rows, out) for each weight."""
        spec = LinearSpec.of(request)
        return [((spec.n_rows, weight[-1]), bits) for weight, bits in zip(spec.weights, spec.widths, strict=True)]

    def weight_masks(self, request: Request, keys: MaskKeys) -> list[torch.Tensor]:
        """Derive B_i."""
        spec = LinearSpec.of(request)
        named = zip(spec.names, spec.weights, spec.widths, strict=True)
        return [
            weight_mask(keys.batch if name == TAGS else keys.weights, name, shape, bits) for name, shape, bits in named
        ]

    def draw(self, request: Request, stream: Stream, rank: int) -> list[torch.Tensor]:
        """Draw A and c_i at rank 1; rank 0 draws nothing."""
        return [stream.int64(request.shapes[0]), *self.draw_corrected(request, stream, rank)] if rank == 1 else []

    def correct(self, request: Request, share_0: list[torch.Tensor], share_1: list[torch.Tensor]) -> list[torch.Tensor]:
        """Compute A B_i - c_i."""
        a, *c = share_1
        products = zip(share_0, c, LinearSpec.of(request).widths, strict=True)
        return [times_weight(a, b, bits).sub_(c_i) for b, c_i, bits in products]
