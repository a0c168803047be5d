"""The correlation for opening a value in a small ring and going on in the large one; see `protocols.lifted`."""

from dataclasses import dataclass
from functools import lru_cache

import torch

from mpcformer.correlations.base import Kind, check_width
from mpcformer.correlations.requests import KEPT_REQUESTS, Request, Shape
from mpcformer.errors import ProtocolError
from mpcformer.ring.kernels import load
from mpcformer.ring.packing import WIDTHS, WORD, logical_shift, reduce
from mpcformer.ring.random import Stream

# The fraction bits that a row's factor carries beyond its scale until it is multiplied.
FACTOR_EXTRA_BITS = 24
# What is left of a factor's mask without them.
FACTOR_BITS = WORD - FACTOR_EXTRA_BITS
LEAST_BITS = 12
# The uses of a lifted mask besides the lift; `Lifted` explains them.
USES = ("plain", "square", "length", "norm", "scale")


@dataclass(frozen=True)
class LiftedSpec:
    """A lifted mask.

    Args:
        use: one of USES.
        shape: the shape of the value; its last axis is a row.
        bits: the width k of the small ring.
        lift: the width T of the large ring. What follows the opening is right modulo 2^T.
    """

    use: str
    shape: Shape
    bits: int
    lift: int = WORD

    @property
    def has_factor(self) -> bool:
        """Whether rows are multiplied by a factor, which is opened under a mask of its own."""
        return self.use in ("norm", "scale")

    @property
    def has_squares(self) -> bool:
        """Whether the dealer shares squares of the mask, or sums of them."""
        return self.use in ("square", "length", "norm")

    @property
    def row_shape(self) -> Shape:
        """The shape of one number a row."""
        return (*self.shape[:-1], 1)

    def request(self) -> Request:
        """Return the request for the dealer."""
        shapes = (self.shape, self.row_shape) if self.has_factor else (self.shape,)
        params = () if self.lift == WORD else (float(self.lift),)
        return Request("lifted", shapes, op=self.use, bits=self.bits, params=params)

    @staticmethod
    @lru_cache(KEPT_REQUESTS)
    def of(request: Request) -> "LiftedSpec":
        """Read a request.

        Raises:
            ProtocolError: the use is unknown, the factors do not fit the rows, or the ring is too small or too large.
        """
        params = request.params if request.kind == "lifted" else ()  # other kinds have a mask that is lifted to a word
        lift = params[0] if params else WORD
        if len(params) > 1 or lift not in WIDTHS:
            raise ProtocolError(f"lifted mask: a large ring of {params} bits is not defined")
        spec = LiftedSpec(request.op, request.shapes[0], request.bits, int(lift))
        if spec.use not in USES or len(request.shapes) != 1 + spec.has_factor:
            raise ProtocolError(f"lifted mask {request.op!r} of shapes {request.shapes} is not defined")
        # A factor's correction leaves out a product of two top bits, which must vanish in the large ring.
        least = max(LEAST_BITS, spec.lift - FACTOR_BITS if spec.has_factor else 0)
        if not least <= spec.bits < spec.lift:
            raise ProtocolError(f"a mask that is lifted to {spec.lift} bits has {least} or more, not {spec.bits}")
        if spec.use == "length" and not spec.shape:
            raise ProtocolError("a number has no length: op length takes rows")
        if spec.has_factor and (not spec.shape or request.shapes[1] != spec.row_shape):
            raise ProtocolError(f"factors of shape {request.shapes[1]} do not scale the rows of {spec.shape}")
        return spec


class Lifted(Kind):
    """A k-bit mask that can be lifted to T bits, and products with it for the given use.

    With r = (r_0 + r_1) mod 2^k, carry = (r_0 + r_1) >> k and m = msb r, the tensors are:
    - for every use: [r] (k bits), with norm or scale the factor's mask [beta] (64 bits), then [carry]* and [m]*;
    - for square, length and norm: [r m]* and [r^2]*, which for length and norm is summed over the last axis (kept);
    - for norm and scale: [b = beta >> 24]*, [n = msb beta]*, [r b]*, [m b]*, and if T > 40 [r n]*.
    The shapes of the request are the value's and, with norm or scale, the factor's, which broadcasts to it.
    Dealer bytes for k = 32, T = 64 and n elements: 8 n for plain, 12 n for length, 20 n for square, 27 n for norm and
    23 n for scale, and 8 to 19 a row.
    """

    stays_packed = True

    def check(self, request: Request) -> None:
        """Require a known use, a factor that broadcasts along the last axis, and a ring that packs into bytes."""
        check_width(request)
        LiftedSpec.of(request)

    def layout(self, request: Request) -> list[tuple[Shape, int]]:
        """Return the layouts in the order that the class gives."""
        spec = LiftedSpec.of(request)
        x, rows, high = spec.shape, spec.row_shape, spec.lift - spec.bits
        layout = [(x, high), (x, high)]
        if spec.has_squares:
            layout += [(x, high), (x if spec.use == "square" else rows, spec.lift)]
        if spec.has_factor:
            layout += [(rows, WORD), (rows, FACTOR_EXTRA_BITS), (x, spec.lift), (x, high)]
            layout += [(x, spec.lift - FACTOR_BITS)] * (spec.lift > FACTOR_BITS)
        return layout

    def draw(self, request: Request, stream: Stream, rank: int) -> list[torch.Tensor]:
        """Draw [r], with a factor [beta], and at rank 1 the rest."""
        drawn = [stream.bits(request.shapes[0], request.bits)]
        drawn += [stream.int64(shape) for shape in request.shapes[1:]]
        return drawn + self.draw_corrected(request, stream, rank)

    def correct(self, request: Request, share_0: list[torch.Tensor], share_1: list[torch.Tensor]) -> list[torch.Tensor]:
        """Compute each product minus rank 1's share of it."""
        spec, n_masks = LiftedSpec.of(request), len(request.shapes)
        kernels, _ = load()
        if kernels is None:
            return correct_by_torch(spec, share_0, share_1)
        names = ["carry", "m", *(["rm", "square"] if spec.has_squares else [])]
        names += ["b", "n", "rb", "mb", *(["rn"] if spec.lift > FACTOR_BITS else [])] if spec.has_factor else []
        masks = [share for pair in zip(share_0, share_1[:n_masks], strict=True) for share in pair]
        squares = ("elements" if spec.use == "square" else "rows") if spec.has_squares else ""
        shares = dict(zip(names, share_1[n_masks:], strict=True))
        return kernels.lifting.correct(masks, shares, bits=spec.bits, squares=squares)


def correct_by_torch(spec: LiftedSpec, share_0: list[torch.Tensor], share_1: list[torch.Tensor]) -> list[torch.Tensor]:
    """Do as `Lifted.correct` does, without the compiled functions."""
    bits, total = spec.bits, share_0[0] + share_1[0]
    r = reduce(total, bits)
    m = r >> (bits - 1)
    values = [total >> bits, m]
    if spec.has_squares:
        squares = r * r
        values += [r * m, squares if spec.use == "square" else squares.sum(-1, keepdim=True)]
    if spec.has_factor:
        beta = share_0[1] + share_1[1]
        b = logical_shift(beta, FACTOR_EXTRA_BITS)
        n = (beta < 0).long()
        values += [b, n, r * b, m * b, *([r * n] * (spec.lift > FACTOR_BITS))]
    return [value - share for value, share in zip(values, share_1[1 + spec.has_factor :], strict=True)]
