"""The correlation for piecewise polynomials of an opened value; see `protocols.piecewise`.

What the comparisons with the pieces' thresholds take from the dealer is in `comparison`.
"""

from dataclasses import dataclass

import torch

from mpcformer.correlations.comparison import Borrow
from mpcformer.correlations.lifted import Lifted, LiftedSpec
from mpcformer.correlations.requests import Request, Shape
from mpcformer.errors import ProtocolError
from mpcformer.ring.packing import reduce
from mpcformer.ring.random import Stream

BORROW = Borrow(4)
MAX_THRESHOLDS = MAX_PIECES = 8


@dataclass(frozen=True)
class PiecewiseSpec:
    """A piecewise polynomial, as far as the dealer must know it.

    Args:
        lift: the lifted mask of the value; its use is square if a piece has degree 2, else plain.
        n_thresholds: the number of different thresholds.
        degrees: the degree of each piece.
    """

    lift: LiftedSpec
    n_thresholds: int
    degrees: tuple[int, ...]

    def request(self) -> Request:
        """Return the request for the dealer."""
        params = (float(self.n_thresholds), *map(float, self.degrees))
        return Request("piecewise", (self.lift.shape,), op=self.lift.use, bits=self.lift.bits, params=params)

    @staticmethod
    def of(request: Request) -> "PiecewiseSpec":
        """Read a request.

        Raises:
            ProtocolError: the mask, the number of thresholds or a degree is not defined.
        """
        if request.op not in ("plain", "square"):
            raise ProtocolError(f"piecewise op {request.op!r} is unknown; known: plain, square")
        lift, params = LiftedSpec.of(request), request.params
        known = all(degree in (0, 1, 2) for degree in params[1:])
        if not (1 < len(params) <= 1 + MAX_PIECES and params[0] in range(1, MAX_THRESHOLDS + 1) and known):
            raise ProtocolError(f"piecewise parameters {params} are not defined")
        if request.op == "plain" and 2 in params[1:]:
            raise ProtocolError("a piece of degree 2 needs op square")
        return PiecewiseSpec(lift, int(params[0]), tuple(map(int, params[1:])))


class Piecewise(Lifted):
    """A lifted mask r as in `Lifted`, and what comparisons of c and products with their bits need.

    The tensors are: r, the masks of the inputs (a byte for each threshold), the masks of the pieces' bits; then * those
    of `Lifted`; four words of thermometer code; the products of masks (16 bits for each threshold, four thresholds
    to a word); and for each piece, with its mask bit s: [s], for degree 1 also [r s] and [m s], for degree 2 also
    [r^2 s] and [r m s]. The input masks, the bit masks and the two groups of words are XOR-shared.
    Dealer bytes for each element beyond those of `Lifted`: 32, 2 for each threshold, and 8, 20 or 32 for each piece of
    degree 0, 1 or 2 with k = 32.
    """

    def check(self, request: Request) -> None:
        """Require known degrees, and no more thresholds and pieces than their words have room for."""
        if request.op not in ("plain", "square"):
            raise ProtocolError(f"piecewise op {request.op!r} is unknown; known: plain, square")
        super().check(request)
        PiecewiseSpec.of(request)

    def layout(self, request: Request) -> list[tuple[Shape, int]]:
        """Return the layouts in the order that the class gives."""
        spec = PiecewiseSpec.of(request)
        x, high = spec.lift.shape, 64 - spec.lift.bits
        layout = super().layout(request)
        layout += [((BORROW.n_chunks, *x), 64)]
        layout += [(x, bits) for bits in BORROW.product_widths(spec.n_thresholds)]
        for degree in spec.degrees:
            layout += [(x, 64), *[(x, 64), (x, high)][: 2 * (degree > 0)], *[(x, 64), (x, high)][: 2 * (degree > 1)]]
        return layout

    def draw(self, request: Request, stream: Stream, rank: int) -> list[torch.Tensor]:
        """Draw [r], the masks and, at rank 1, the rest."""
        x = request.shapes[0]
        drawn = [stream.bits(x, request.bits), stream.int64(x), stream.int64(x)]
        return drawn + self.draw_corrected(request, stream, rank)

    def correct(self, request: Request, share_0: list[torch.Tensor], share_1: list[torch.Tensor]) -> list[torch.Tensor]:
        """Compute each value minus, or XOR, rank 1's share of it."""
        spec = PiecewiseSpec.of(request)
        bits = spec.lift.bits
        lifted = super().correct(request, share_0[:1], [share_1[0], *share_1[3 : 3 + len(super().layout(request))]])
        rest = share_1[3 + len(lifted) :]
        r = reduce(share_0[0] + share_1[0], bits)
        masks = share_0[1] ^ share_1[1]
        secret_words = [BORROW.words(r, bits), *BORROW.products(masks, spec.n_thresholds)]
        flips = [word ^ share for word, share in zip(secret_words, rest, strict=False)]

        bit_masks, m = share_0[2] ^ share_1[2], r >> (bits - 1)
        values = []
        for j, degree in enumerate(spec.degrees):
            s = (bit_masks >> j) & 1
            values += [s, *([r * s, m * s] if degree > 0 else []), *([r * r * s, r * m * s] if degree > 1 else [])]
        shares = rest[len(flips) :]
        return lifted + flips + [value - share for value, share in zip(values, shares, strict=True)]
