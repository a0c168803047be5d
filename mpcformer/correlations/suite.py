"""The kinds of correlation of the `mpcformer` protocol suite; see kinds.py for how a kind works.

Shares of Z_2^k are int64 whose bits from k up mean nothing. Each class lists its tensors in order; those marked * are
corrected: party 1 draws them, party 0 receives them, packed to the ring's width.
"""

import torch

from mpcformer.correlations.kinds import KINDS, Kind
from mpcformer.correlations.requests import Request, Shape
from mpcformer.correlations.table import GUARD, TableSpec, fit
from mpcformer.errors import ProtocolError
from mpcformer.ring import gemm
from mpcformer.ring.packing import WIDTHS, reduce
from mpcformer.ring.random import Stream, derive_key

# Fraction bits that a row's factor carries beyond its scale until it is multiplied; see table.py.
GUARD_BITS = 24


def weight_mask(key: bytes, name: str, shape: Shape, bits: int) -> torch.Tensor:
    """The mask of one of the model owner's weights: uniform, the same for the whole session; int32 for 32 bits."""
    mask = Stream(derive_key(key, "weight", name)).int64(shape)
    return mask.to(torch.int32) if bits == 32 else mask


def times_weight(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """x @ weight, or x * weight where the weight is a diagonal (n,); int64. An int32 weight multiplies in Z_2^32."""
    return gemm.matmul(x, weight) if weight.dim() == 2 else (x.to(weight.dtype) * weight).long()


class Linear(Kind):
    """A (rows, in) at party 1, and c_i = A B_i * for each weight's mask B_i, which party 0 derives from its own key.

    shapes: (rows, in), then (in, out) per matrix or (in,) per diagonal; op: the weights' names, comma-separated.
    Dealer bytes: bits / 8 per element of the products.
    """

    def check(self, request: Request) -> None:
        """A name per weight, fitting shapes, a ring that packs."""
        _check_width(request)
        names, (x, *weights) = request.op.split(","), request.shapes
        fits = len(x) == 2 and all(len(w) in (1, 2) and w[0] == x[-1] for w in weights)
        if not weights or len(names) != len(weights) or not fits:
            raise ProtocolError(f"linear maps {request.op!r} of shapes {request.shapes} are not defined")

    def layout(self, request: Request) -> list[tuple[Shape, int]]:
        """(rows, out) per weight."""
        (rows, _), *weights = request.shapes
        return [((rows, w[-1]), request.bits) for w in weights]

    def weight_masks(self, request: Request, key: bytes) -> list[torch.Tensor]:
        """B_i."""
        names = request.op.split(",")
        return [
            weight_mask(key, name, shape, request.bits) for name, shape in zip(names, request.shapes[1:], strict=True)
        ]

    def draw(self, request: Request, stream: Stream, party: int) -> list[torch.Tensor]:
        """A and c_i at party 1, nothing at party 0."""
        return [stream.int64(request.shapes[0]), *self._last(request, stream, party)] if party == 1 else []

    def correct(self, request: Request, share_0: list[torch.Tensor], share_1: list[torch.Tensor]) -> list[torch.Tensor]:
        """A B_i - c_i."""
        a, *c = share_1
        return [times_weight(a, b).sub_(c_i) for b, c_i in zip(share_0, c, strict=True)]


class MatmulMasks(Kind):
    """[a], [b], [a b^T]* over Z_2^bits; shapes (..., m, n), (..., p, n). Dealer bytes: bits / 8 a product's element.

    The second factor is transposed because torch multiplies int64 batches several times faster so.
    """

    n_operands = 2

    def check(self, request: Request) -> None:
        """Two shapes that multiply."""
        super().check(request)
        _check_width(request)
        x, y = request.shapes
        if len(x) < 2 or len(x) != len(y) or x[:-2] != y[:-2] or x[-1] != y[-1]:
            raise ProtocolError(f"shapes {x} and {y} do not multiply as x y^T")

    def layout(self, request: Request) -> list[tuple[Shape, int]]:
        """The product."""
        x, y = request.shapes
        return [((*x[:-1], y[-2]), request.bits)]

    def draw(self, request: Request, stream: Stream, party: int) -> list[torch.Tensor]:
        """[a], [b] and, at party 1, its share of the product."""
        return [stream.int64(shape) for shape in request.shapes] + self._last(request, stream, party)

    def correct(self, request: Request, share_0: list[torch.Tensor], share_1: list[torch.Tensor]) -> list[torch.Tensor]:
        """The product minus party 1's share."""
        b = share_0[1] + share_1[1]
        return [torch.matmul(share_0[0] + share_1[0], b.transpose(-1, -2)).sub_(share_1[2])]


class Lifted(Kind):
    """A k-bit mask that can be lifted to 64 bits, and products with it, as `op` says: one of OPS.

    r = (r_0 + r_1) mod 2^k; carry = (r_0 + r_1) >> k; m = msb r.
    [r] (k bits), [carry]*, [m]*; with square, length or norm: [r m]* and [r^2]* (but for square summed over the last
    axis, kept);
    with norm or scale, for the rows' factor: beta (64 bits) [beta], [b = beta >> 24]*, [n = msb beta]*, [r b]*,
    [m b]*, [r n]*. shapes: x and, with norm or scale, the factor's, which broadcasts to it.
    Dealer bytes for k = 32 and n elements: 8 n plain, 12 n length, 20 n square, 27 n norm, 23 n scale, and 8 to 19 a
    row.
    """

    OPS = ("plain", "square", "length", "norm", "scale")

    def check(self, request: Request) -> None:
        """A known op, a factor that broadcasts along the last axis."""
        _check_width(request)
        with_factor = request.op in ("norm", "scale")
        if request.op not in self.OPS or len(request.shapes) != 1 + with_factor:
            raise ProtocolError(f"lifted mask {request.op!r} of shapes {request.shapes} is not defined")
        if not GUARD_BITS <= request.bits < 64:
            raise ProtocolError(f"a lifted mask has {GUARD_BITS}..56 bits, not {request.bits}")
        if request.op == "length" and not request.shapes[0]:
            raise ProtocolError("a number has no length: op length takes rows")
        if with_factor and (not request.shapes[0] or request.shapes[1] != (*request.shapes[0][:-1], 1)):
            raise ProtocolError(f"factors of shape {request.shapes[1]} do not scale the rows of {request.shapes[0]}")

    def layout(self, request: Request) -> list[tuple[Shape, int]]:
        """See the class."""
        x, high = request.shapes[0], 64 - request.bits
        layout = [(x, high), (x, high)]
        if request.op in ("square", "length", "norm"):
            layout += [(x, high), (x if request.op == "square" else (*x[:-1], 1), 64)]
        if request.op in ("norm", "scale"):
            rows = request.shapes[1]
            layout += [(rows, 64), (rows, GUARD_BITS), (x, 64), (x, high), (x, GUARD_BITS)]
        return layout

    def draw(self, request: Request, stream: Stream, party: int) -> list[torch.Tensor]:
        """[r], with a factor [beta], and at party 1 the rest."""
        drawn = [reduce(stream.int64(request.shapes[0]), request.bits)]
        drawn += [stream.int64(shape) for shape in request.shapes[1:]]
        return drawn + self._last(request, stream, party)

    def correct(self, request: Request, share_0: list[torch.Tensor], share_1: list[torch.Tensor]) -> list[torch.Tensor]:
        """Each product minus party 1's share of it."""
        bits, total = request.bits, share_0[0] + share_1[0]
        r = reduce(total, bits)
        m = r >> (bits - 1)
        values = [total >> bits, m]
        if request.op in ("square", "length", "norm"):
            squares = r * r
            values += [r * m, squares if request.op == "square" else squares.sum(-1, keepdim=True)]
        if request.op in ("norm", "scale"):
            beta = share_0[1] + share_1[1]
            b = (beta >> GUARD_BITS) & ((1 << (64 - GUARD_BITS)) - 1)
            n = (beta < 0).long()
            values += [b, n, r * b, m * b, r * n]
        return [value - share for value, share in zip(values, share_1[len(request.shapes) :], strict=True)]


class Table(Kind):
    """Piecewise quadratics of a function on rotated bins, for rows of shape (rows,); see table.py.

    [r] (24 bits), [coefficients]* (rows, bins, 3), [outside]* (rows, bins) over Z_2^32: zero in range, random outside;
    and, where the table is the upper one of two, [below]* (rows, bins): is the argument the lower table's.
    A guard has [outside]* alone. Dealer bytes: 28, 36 or 4 a row and bin.
    """

    def check(self, request: Request) -> None:
        """One shape of rows and a table that can be fitted."""
        super().check(request)
        if len(request.shapes[0]) != 1:
            raise ProtocolError(f"a table takes rows of shape (n,), not {request.shapes[0]}")
        TableSpec.of(request)

    def layout(self, request: Request) -> list[tuple[Shape, int]]:
        """See the class."""
        spec, (rows,) = TableSpec.of(request), request.shapes[0]
        if spec.function == GUARD:
            return [((rows, spec.n_bins), 32)]
        layout: list[tuple[Shape, int]] = [((rows, spec.n_bins, 3), 64), ((rows, spec.n_bins), 32)]
        return [*layout, ((rows, spec.n_bins), 64)] if spec.has_lower else layout

    def draw(self, request: Request, stream: Stream, party: int) -> list[torch.Tensor]:
        """[r] and at party 1 the tables."""
        drawn = [reduce(stream.int64(request.shapes[0]), TableSpec.BITS)]
        return drawn + self._last(request, stream, party)

    def correct(self, request: Request, share_0: list[torch.Tensor], share_1: list[torch.Tensor]) -> list[torch.Tensor]:
        """The fitted tables minus party 1's shares."""
        r = reduce(share_0[0] + share_1[0], TableSpec.BITS)
        values = fit(TableSpec.of(request), r)
        return [value - share for value, share in zip(values, share_1[1:], strict=True)]


def _check_width(request: Request) -> None:
    if request.bits not in WIDTHS:
        raise ProtocolError(f"{request.kind}: a ring of {request.bits} bits does not pack into bytes")


KINDS.update(linear=Linear(), matmul_masks=MatmulMasks(), lifted=Lifted(), table=Table())
