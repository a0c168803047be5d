"""The correlation for comparisons and piecewise polynomials of an opened value; see `protocols.piecewise`.

A comparison of the opened c with a threshold needs one borrow: whether a public d is below the low bits of the mask r.
Both are cut into CHUNKS chunks of CHUNK_BITS bits. For each chunk of r the dealer shares one word whose bit i tells
whether i < chunk. At its public d an owner reads its shares of "less" and "equal" from these words, for any number of
thresholds. Four "less" and three "equal" bits give the borrow by one polynomial over GF(2). Its six shared inputs are
opened under masks, and the dealer shares the products of these masks that the polynomial needs, MONOMIALS.
"""

from dataclasses import dataclass
from itertools import combinations

import torch

from mpcformer.correlations.lifted import Lifted, LiftedSpec
from mpcformer.correlations.requests import Request, Shape
from mpcformer.errors import ProtocolError
from mpcformer.ring.packing import reduce
from mpcformer.ring.random import Stream

CHUNKS, CHUNK_BITS = 4, 6
CHUNK_SIZE = 1 << CHUNK_BITS
# Each threshold has a byte of inputs. Six of its bits are used: equal_3, equal_2, equal_1, less_2, less_1, less_0.
INPUT_BITS, PRODUCT_BITS, PER_WORD = 8, 16, 4
N_INPUTS = 6
MAX_THRESHOLDS = MAX_PIECES = 8
# borrow = less_3 + equal_3 less_2 + equal_3 equal_2 less_1 + equal_3 equal_2 equal_1 less_0, over GF(2).
TERMS: tuple[frozenset[int], ...] = (frozenset({0, 3}), frozenset({0, 1, 4}), frozenset({0, 1, 2, 5}))


def _monomials() -> list[frozenset[int]]:
    found = {
        frozenset(part)
        for term in TERMS
        for size in range(2, len(term) + 1)
        for part in combinations(sorted(term), size)
    }
    return sorted(found, key=lambda part: (len(part), sorted(part)))


# The fifteen products of input masks that the borrow needs.
MONOMIALS = _monomials()


def _contains(value: int, part: frozenset[int]) -> bool:
    return all(value >> index & 1 for index in part)


def mask_products() -> torch.Tensor:
    """Return the monomials, as bits, of each value of the six masks: (64,)."""
    return torch.tensor(
        [sum(_contains(value, part) << n for n, part in enumerate(MONOMIALS)) for value in range(1 << N_INPUTS)]
    )


def selectors() -> tuple[torch.Tensor, torch.Tensor]:
    """Return what each value of the six opened inputs selects.

    Returns:
        (64,), with a bit for each mask (low bits) and each monomial that counts, and (64,), the constant.
    """
    parts = [frozenset({index}) for index in range(N_INPUTS)] + MONOMIALS
    chosen, constant = [], []
    for opened in range(1 << N_INPUTS):
        word = 0
        for n, part in enumerate(parts):
            # A monomial's coefficient is the sum, over the terms that contain it, of the other factors' opened bits.
            word |= (sum(_contains(opened, term - part) for term in TERMS if part <= term) & 1) << n
        chosen.append(word)
        constant.append(sum(_contains(opened, term) for term in TERMS) & 1)
    return torch.tensor(chosen), torch.tensor(constant)


def low_bits(x: torch.Tensor, bits: int) -> torch.Tensor:
    """Return the bits of x below the top bit of Z_2^bits, cut or filled up to the 24 bits of the chunks."""
    spare = bits - 1 - CHUNKS * CHUNK_BITS
    low = x & ((1 << (bits - 1)) - 1)
    return low >> spare if spare >= 0 else low << -spare


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

    @property
    def product_widths(self) -> list[int]:
        """The width in bits of each word of products of masks."""
        n = self.n_thresholds
        return [PRODUCT_BITS * min(PER_WORD, n - first) for first in range(0, n, PER_WORD)]

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
    of `Lifted`; CHUNKS words of thermometer code; the products of masks (16 bits for each threshold, four thresholds
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
        layout += [((CHUNKS, *x), 64)]
        layout += [(x, bits) for bits in spec.product_widths]
        for degree in spec.degrees:
            layout += [(x, 64), *[(x, 64), (x, high)][: 2 * (degree > 0)], *[(x, 64), (x, high)][: 2 * (degree > 1)]]
        return layout

    def draw(self, request: Request, stream: Stream, rank: int) -> list[torch.Tensor]:
        """Draw [r], the masks and, at rank 1, the rest."""
        x = request.shapes[0]
        drawn = [reduce(stream.int64(x), request.bits), stream.int64(x), stream.int64(x)]
        return drawn + self.draw_corrected(request, stream, rank)

    def correct(self, request: Request, share_0: list[torch.Tensor], share_1: list[torch.Tensor]) -> list[torch.Tensor]:
        """Compute each value minus, or XOR, rank 1's share of it."""
        spec = PiecewiseSpec.of(request)
        bits = spec.lift.bits
        lifted = super().correct(request, share_0[:1], [share_1[0], *share_1[3 : 3 + len(super().layout(request))]])
        rest = share_1[3 + len(lifted) :]
        r = reduce(share_0[0] + share_1[0], bits)
        low = low_bits(r, bits)
        chunks = torch.stack([(low >> (CHUNK_BITS * j)) & (CHUNK_SIZE - 1) for j in range(CHUNKS)])
        secret_words = [torch.bitwise_left_shift(torch.ones_like(chunks), chunks) - 1]
        masks, table = share_0[1] ^ share_1[1], mask_products()
        for first in range(0, spec.n_thresholds, PER_WORD):
            word = torch.zeros_like(r)
            for i in range(first, min(first + PER_WORD, spec.n_thresholds)):
                inputs = (masks >> (INPUT_BITS * i)) & ((1 << N_INPUTS) - 1)
                word |= table[inputs] << (PRODUCT_BITS * (i - first))
            secret_words.append(word)
        flips = [word ^ share for word, share in zip(secret_words, rest, strict=False)]

        bit_masks, m = share_0[2] ^ share_1[2], r >> (bits - 1)
        values = []
        for j, degree in enumerate(spec.degrees):
            s = (bit_masks >> j) & 1
            values += [s, *([r * s, m * s] if degree > 0 else []), *([r * r * s, r * m * s] if degree > 1 else [])]
        shares = rest[len(flips) :]
        return lifted + flips + [value - share for value, share in zip(values, shares, strict=True)]
