"""Open a value in a small ring, go on in the large one: lifting, squares and row products from a single opening.

A value x with -2^(k-2) <= x < 2^(k-2), shared over Z_2^k, is opened as c = x + 2^(k-2) + r mod 2^k. As x + 2^(k-2)
fits k - 1 bits, the sum wrapped exactly when r has its top bit m and c has not: x = C - rho with the public
C = c - 2^(k-2) and rho = r - 2^k m [msb c = 0]. The dealer shares r and m over Z_2^64, so x is lifted; with products of
r and m comes the square of x, or its product with another opened value. Which of rho's two values it is, c says in
public.
Source: Escudero, Ghosh, Keller, Rachuri, Scholl, CRYPTO 2020, section 5; the products are ours.
"""

from dataclasses import dataclass

import torch

from mpcformer.correlations import Request
from mpcformer.correlations.suite import GUARD_BITS
from mpcformer.protocols.party import Half, Party

WORD = 64


@dataclass
class Mask:
    """A lifted mask before its opening. Tensors as in `correlations.suite.Lifted`."""

    tensors: list[torch.Tensor]
    bits: int
    op: str

    def half(self, share: torch.Tensor, rank: int) -> Half:
        """This party's half of the opening of `share`, valid over Z_2^bits."""
        masked = share + self.tensors[0]
        return (masked + (1 << (self.bits - 2)) if rank == 0 else masked), self.bits

    def factor_half(self, factor: torch.Tensor, rank: int) -> Half:
        """This party's half of the opening of the rows' factor, which carries GUARD_BITS too many; op norm or scale."""
        masked = factor + self.tensors[1]
        return (masked + (1 << 62) if rank == 0 else masked), WORD


def request(op: str, shape: tuple[int, ...], bits: int) -> Request:
    """The correlation for values of `shape`: one of `Lifted.OPS`."""
    shapes = (shape, (*shape[:-1], 1)) if op in ("norm", "scale") else (shape,)
    return Request("lifted", shapes, op=op, bits=bits)


class Opened:
    """An opened value: public C, shared rho.

    Args:
        party: who computes.
        mask: its mask.
        c: the opened number, in [0, 2^bits).
    """

    def __init__(self, party: Party, mask: Mask, c: torch.Tensor) -> None:
        self._party, self._mask = party, mask
        bits = mask.bits
        self._no_msb = 1 - (c >> (bits - 1))
        self.public = c - (1 << (bits - 2))
        r, self._factor_masks = mask.tensors[0], mask.tensors[1:2] if mask.op in ("norm", "scale") else []
        carry, m, *self._rest = mask.tensors[1 + len(self._factor_masks) :]
        self._wrap = m * self._no_msb
        self._rho = r - ((carry + self._wrap) << bits)

    def value(self) -> torch.Tensor:
        """[x] over Z_2^64.

        Ideal function: the identity. Shapes: (...). Scale: unchanged.
        Range and error: |x| < 2^(bits - 2); exact.
        Cost for n elements: 1 round with its opening, bits / 8 n bytes each way, 2 (64 - bits) / 8 n dealer bytes.
        """
        return self._party.only(0, self.public) - self._rho

    def square(self, offset: int = 0) -> torch.Tensor:
        """[(x + offset)^2] over Z_2^64, for op square.

        Ideal function: elementwise square, no truncation. Shapes: (...). Scale: f -> 2 f.
        Range and error: |x| < 2^(bits - 2); exact.
        Cost for n elements: nothing beyond the opening; 8 + (64 - bits) / 8 more dealer bytes an element.
        """
        shifted = self.public + offset
        return (
            self._party.only(0, shifted * shifted) - 2 * shifted * self._rho + self._rest[1] + self._beyond_r_squared()
        )

    def sum_of_squares(self) -> torch.Tensor:
        """[sum x^2] over Z_2^64 along the last axis (kept), for op length and norm.

        Ideal function: the sum of squares. Shapes: (..., n) -> (..., 1). Scale: f -> 2 f.
        Range and error: |x| < 2^(bits - 2); exact.
        Cost for n elements in m rows: nothing beyond the opening; (64 - bits) / 8 n + 8 m more dealer bytes.
        """
        each = self._party.only(0, self.public * self.public) - 2 * self.public * self._rho
        return (each + self._beyond_r_squared()).sum(-1, keepdim=True) + self._rest[1]

    def _beyond_r_squared(self) -> torch.Tensor:
        """[rho^2] - [r^2] = -2^(k+1) r m [msb c = 0] + 2^(2k) m [msb c = 0]."""
        bits = self._mask.bits
        cross = (self._rest[0] * self._no_msb) << (bits + 1)
        return (self._wrap << (2 * bits)) - cross if 2 * bits < WORD else -cross

    def times(self, opened_factor: torch.Tensor) -> torch.Tensor:
        """[x y] over Z_2^64 for the rows' factor y, opened from `factor_half`; for op norm and scale.

        Ideal function: x floor(y / 2^GUARD_BITS), or that floor plus one.
        Shapes: x (..., n), y (..., 1). Scale: f and g + GUARD_BITS -> f + g.
        Range and error: |x| < 2^(bits - 2), |y| < 2^62; 1 ulp of y.
        Cost for n elements in m rows: 1 round with the factor's opening, 8 m bytes each way,
        (16 + 3 - bits / 8) n + 11 m dealer bytes.
        """
        b, n, r_b, m_b, r_n = self._rest[-5:]
        no_msb = (opened_factor >= 0).long()
        top = (opened_factor >> GUARD_BITS) & ((1 << (WORD - GUARD_BITS)) - 1)
        public = top - (1 << (62 - GUARD_BITS))
        high = WORD - GUARD_BITS
        eta = b - ((n * no_msb) << high)
        # rho eta = (r - 2^k m [..]) (b - 2^40 n [..]); the last product vanishes, as k >= GUARD_BITS.
        rho_eta = r_b - ((r_n * no_msb) << high) - ((m_b * self._no_msb) << self._mask.bits)
        return self._party.only(0, self.public * public) - self.public * eta - self._rho * public + rho_eta
