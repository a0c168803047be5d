"""What the dealer makes for comparisons and piecewise polynomials of an opened value; the protocol is
`mpcformer.protocols.piecewise`.

A comparison of the opened c with a threshold needs one borrow: is d below r, for a public d and the mask's low bits r?
Both are cut into CHUNKS chunks of CHUNK_BITS. For each chunk of r the dealer shares one word whose bit i says
i < chunk: an owner reads its shares of "less" and "equal" there at its public d, for any number of thresholds. Four
"less" and three "equal" make the borrow by one polynomial over GF(2), whose six shared inputs are opened under masks
and whose products of masks are dealt: MONOMIALS.
"""

from itertools import combinations

import torch

from mpcformer.correlations.kinds import KINDS
from mpcformer.correlations.requests import Request, Shape
from mpcformer.correlations.suite import Lifted
from mpcformer.errors import ProtocolError
from mpcformer.ring.packing import reduce
from mpcformer.ring.random import Stream

CHUNKS, CHUNK_BITS = 4, 6
CHUNK_SIZE = 1 << CHUNK_BITS
# Of a byte a threshold, six bits are used: the inputs equal_3, equal_2, equal_1, less_2, less_1, less_0.
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


# The products of input masks that the borrow needs; fifteen.
MONOMIALS = _monomials()


def _contains(value: int, part: frozenset[int]) -> bool:
    return all(value >> index & 1 for index in part)


def mask_products() -> torch.Tensor:
    """(64,): for each value of the six masks, its monomials as bits."""
    return torch.tensor(
        [sum(_contains(value, part) << n for n, part in enumerate(MONOMIALS)) for value in range(1 << N_INPUTS)]
    )


def selectors() -> tuple[torch.Tensor, torch.Tensor]:
    """What the opened inputs choose: (64,) of which masks (low bits) and monomials count, and (64,) the constant."""
    parts = [frozenset({index}) for index in range(N_INPUTS)] + MONOMIALS
    chosen, constant = [], []
    for opened in range(1 << N_INPUTS):
        word = 0
        for n, part in enumerate(parts):
            # The coefficient of a monomial: the sum, over the terms that hold it, of the other factors' opened bits.
            word |= (sum(_contains(opened, term - part) for term in TERMS if part <= term) & 1) << n
        chosen.append(word)
        constant.append(sum(_contains(opened, term) for term in TERMS) & 1)
    return torch.tensor(chosen), torch.tensor(constant)


def low_bits(x: torch.Tensor, bits: int) -> torch.Tensor:
    """The bits below the top one of Z_2^bits, cut or filled to the chunks' 24."""
    spare = bits - 1 - CHUNKS * CHUNK_BITS
    low = x & ((1 << (bits - 1)) - 1)
    return low >> spare if spare >= 0 else low << -spare


class Piecewise(Lifted):
    """A lifted mask r as in `Lifted`; what comparisons of c with public thresholds, and products with their bits, take.

    op: plain or square; params: the number of thresholds, then each piece's degree.
    Tensors: r, masks of inputs (a byte a threshold), masks of the pieces' bits; then * those of Lifted; CHUNKS words of
    thermometer code; products of masks (16 bits a threshold, four to a word); and for each piece, with its mask bit s:
    [s], with degree 1 [r s], [m s], with degree 2 [r^2 s], [r m s]. The first three groups of words are XOR-shared.
    Dealer bytes an element beyond Lifted's: 32, 2 a threshold, and 8, 20 or 32 a piece for k = 32.
    """

    def check(self, request: Request) -> None:
        """Known degrees, no more thresholds and pieces than fit their words."""
        if request.op not in ("plain", "square"):
            raise ProtocolError(f"piecewise op {request.op!r} is unknown; known: plain, square")
        super().check(request)
        params = request.params
        known = all(degree in (0, 1, 2) for degree in params[1:])
        if not (1 < len(params) <= 1 + MAX_PIECES and params[0] in range(1, MAX_THRESHOLDS + 1) and known):
            raise ProtocolError(f"piecewise parameters {params} are not defined")
        if request.op == "plain" and 2 in params[1:]:
            raise ProtocolError("a piece of degree 2 needs op square")

    @staticmethod
    def degrees(request: Request) -> list[int]:
        """Of the pieces."""
        return [int(degree) for degree in request.params[1:]]

    @staticmethod
    def product_words(request: Request) -> list[int]:
        """The width of each word of products."""
        n = int(request.params[0])
        return [PRODUCT_BITS * min(PER_WORD, n - first) for first in range(0, n, PER_WORD)]

    def layout(self, request: Request) -> list[tuple[Shape, int]]:
        """See the class."""
        x, high = request.shapes[0], 64 - request.bits
        layout = super().layout(request)
        layout += [((CHUNKS, *x), 64)]
        layout += [(x, bits) for bits in self.product_words(request)]
        for degree in self.degrees(request):
            layout += [(x, 64), *[(x, 64), (x, high)][: 2 * (degree > 0)], *[(x, 64), (x, high)][: 2 * (degree > 1)]]
        return layout

    def draw(self, request: Request, stream: Stream, party: int) -> list[torch.Tensor]:
        """[r], the masks, and at party 1 the rest."""
        x = request.shapes[0]
        drawn = [reduce(stream.int64(x), request.bits), stream.int64(x), stream.int64(x)]
        return drawn + self._last(request, stream, party)

    def correct(self, request: Request, share_0: list[torch.Tensor], share_1: list[torch.Tensor]) -> list[torch.Tensor]:
        """Each value minus, or XOR, party 1's share of it."""
        bits = request.bits
        lifted = super().correct(request, share_0[:1], [share_1[0], *share_1[3 : 3 + len(super().layout(request))]])
        rest = share_1[3 + len(lifted) :]
        r = reduce(share_0[0] + share_1[0], bits)
        low = low_bits(r, bits)
        chunks = torch.stack([(low >> (CHUNK_BITS * j)) & (CHUNK_SIZE - 1) for j in range(CHUNKS)])
        secret_words = [torch.bitwise_left_shift(torch.ones_like(chunks), chunks) - 1]
        masks, table = share_0[1] ^ share_1[1], mask_products()
        for first in range(0, int(request.params[0]), PER_WORD):
            word = torch.zeros_like(r)
            for i in range(first, min(first + PER_WORD, int(request.params[0]))):
                inputs = (masks >> (INPUT_BITS * i)) & ((1 << N_INPUTS) - 1)
                word |= table[inputs] << (PRODUCT_BITS * (i - first))
            secret_words.append(word)
        flips = [word ^ share for word, share in zip(secret_words, rest, strict=False)]

        bit_masks, m = share_0[2] ^ share_1[2], r >> (bits - 1)
        values = []
        for j, degree in enumerate(self.degrees(request)):
            s = (bit_masks >> j) & 1
            values += [s, *([r * s, m * s] if degree > 0 else []), *([r * r * s, r * m * s] if degree > 1 else [])]
        shares = rest[len(flips) :]
        return lifted + flips + [value - share for value, share in zip(values, shares, strict=True)]


KINDS["piecewise"] = Piecewise()
