"""Comparisons with public thresholds, and piecewise polynomials, of a value that is opened under a lifted mask.

The opened c = x + 2^(k-2) + r mod 2^k is public, so a comparison of x with a threshold is one of public numbers with
r: its top bit, and one borrow, which `correlations.piecewise` makes of words that the dealer shares. A comparison
costs six bits on the wire an element, not words of the ring; more thresholds share the dealer's words.
"""

from dataclasses import dataclass

import torch

from mpcformer.correlations import Request
from mpcformer.correlations.piecewise import (
    CHUNK_BITS,
    CHUNK_SIZE,
    CHUNKS,
    INPUT_BITS,
    N_INPUTS,
    PER_WORD,
    PRODUCT_BITS,
    low_bits,
    selectors,
)
from mpcformer.protocols.lifted import Mask, Opened
from mpcformer.protocols.party import Half, Party
from mpcformer.ring.packing import WIDTHS

N_MASKS = 3  # r, the inputs' masks, the bits' masks: before the lifted mask's dealt tensors
SELECTED, CONSTANT = selectors()


@dataclass(frozen=True)
class Piece:
    """A polynomial that counts where an odd number of thresholds is not above x: one is a half-line, two an interval.

    thresholds: integers at x's scale. coefficients: of 1, x, x^2, as many as the degree needs; integers.
    """

    thresholds: tuple[int, ...]
    coefficients: tuple[int, ...]


@dataclass(frozen=True)
class Function:
    """A constant, and pieces, of a value below 2^(bits - 2)."""

    bits: int
    pieces: tuple[Piece, ...]
    constant: int = 0

    @property
    def thresholds(self) -> list[int]:
        """All, once each, rising."""
        return sorted({t for piece in self.pieces for t in piece.thresholds})

    @property
    def op(self) -> str:
        """Of the lifted mask: are squares needed."""
        return "square" if any(len(piece.coefficients) > 2 for piece in self.pieces) else "plain"

    def request(self, shape: tuple[int, ...]) -> Request:
        """The correlation for values of `shape`."""
        sizes = [len(self.thresholds), *(len(piece.coefficients) - 1 for piece in self.pieces)]
        return Request("piecewise", (shape,), op=self.op, bits=self.bits, params=tuple(map(float, sizes)))


def relu(bits: int) -> Function:
    """max(x, 0) at x's own scale."""
    return Function(bits, (Piece((0,), (0, 1)),))


def clamp(bits: int, bound: int) -> Function:
    """max(-bound, min(x, bound)) at x's own scale."""
    upper, lower = Piece((bound,), (bound,)), Piece((-bound,), (bound,))
    return Function(bits, (Piece((-bound, bound), (0, 1)), upper, lower), -bound)


class Evaluation:
    """One function of one set of values, from before the opening to the result.

    Ideal function: constant + the sum of the pieces that count at x; a piece's polynomial is exact over Z_2^64.
    Shapes: x (...), result (...). Scale: f and the coefficients' (g, g - f, g - 2 f) -> g.
    Range and error: |x| < 2^(bits - 2), thresholds within; exact, but for x in [t - 2^max(0, bits - 25), t)
    a threshold t may count as reached.
    Cost for n elements, t thresholds: 1 round and bits / 8 n bytes each way with the opening; 2 rounds,
    (t padded to a packing width + 1) n bytes each way; dealer bytes as stated in `correlations.piecewise`.
    Source: the borrow of a masked comparison as in Damgard et al., TCC 2006, with a dealer; the tables of chunks, which
    all thresholds share, and the products with x are ours.
    """

    def __init__(self, function: Function, tensors: list[torch.Tensor], rank: int) -> None:
        self._function, self._rank = function, rank
        r, self._input_masks, self._bit_masks, *rest = tensors
        n_lifted = 4 if function.op == "square" else 2
        self._mask = Mask([r, *rest[:n_lifted]], function.bits, function.op)
        self._words, *rest = rest[n_lifted:]
        n_products = -(-len(function.thresholds) // PER_WORD)
        self._products, self._dealt = rest[:n_products], rest[n_products:]
        self._chosen = torch.empty(0)

    def half(self, share: torch.Tensor) -> Half:
        """This party's half of the opening of `share`, valid over Z_2^bits."""
        return self._mask.half(share, self._rank)

    def evaluate(self, party: Party, c: torch.Tensor) -> torch.Tensor:
        """[f(x)] over Z_2^64, from the opened c."""
        function = self._function
        inputs, local = self._inputs(c)
        width = next(w for w in WIDTHS if w >= INPUT_BITS * len(function.thresholds))
        opened = party.open_bits(inputs ^ self._input_masks, width)
        reached = [self._reached(opened, i) ^ bit for i, bit in enumerate(local)]

        word = torch.zeros_like(c)
        thresholds = function.thresholds
        for j, piece in enumerate(function.pieces):
            for t in piece.thresholds:
                word ^= reached[thresholds.index(t)] << j
        chosen = party.open_bits(word ^ self._bit_masks, WIDTHS[0])
        return self._combine(party, c, chosen)

    def bit(self, party: Party, j: int) -> torch.Tensor:
        """[does piece j count] over Z_2^64, as a number; after `evaluate`. No further message."""
        at = sum(1 + 2 * (len(piece.coefficients) - 1) for piece in self._function.pieces[:j])
        o = (self._chosen >> j) & 1
        return party.only(0, o) + (1 - 2 * o) * self._dealt[at]

    def _inputs(self, c: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Shares of the borrows' inputs, a byte a threshold; and what each bit is made of besides."""
        first, bits = int(self._rank == 0), self._function.bits
        top = self._mask.tensors[2] & 1  # an additive share's last bit is an XOR share
        shifted = [(word << 1) | first for word in self._words]
        inputs, local = torch.zeros_like(c), []
        for i, t in enumerate(self._function.thresholds):
            d = (c - (t + (1 << (bits - 2)))) & ((1 << bits) - 1)
            low = low_bits(d, bits)
            less, equal = [], []
            for j in range(CHUNKS):
                place = (low >> (CHUNK_BITS * j)) & (CHUNK_SIZE - 1)
                less.append((self._words[j] >> place) & 1)
                # [place = chunk] = [place - 1 < chunk] - [place < chunk]
                equal.append(((shifted[j] >> place) & 1) ^ less[j])
            for n, bit in enumerate((equal[3], equal[2], equal[1], less[2], less[1], less[0])):
                inputs |= bit << (INPUT_BITS * i + n)
            own = less[3] ^ top
            local.append(own ^ 1 ^ (d >> (bits - 1)) if first else own)
        return inputs, local

    def _reached(self, opened: torch.Tensor, i: int) -> torch.Tensor:
        """Share of the borrow's polynomial for threshold i."""
        value = (opened >> (INPUT_BITS * i)) & ((1 << N_INPUTS) - 1)
        masks = (self._input_masks >> (INPUT_BITS * i)) & ((1 << N_INPUTS) - 1)
        products = (self._products[i // PER_WORD] >> (PRODUCT_BITS * (i % PER_WORD))) & ((1 << PRODUCT_BITS) - 1)
        if value.device.type == "meta":
            return value
        word = (masks | (products << N_INPUTS)) & SELECTED[value]
        for shift in (16, 8, 4, 2, 1):
            word = word ^ (word >> shift)
        bit = word & 1
        return bit ^ CONSTANT[value] if self._rank == 0 else bit

    def _combine(self, party: Party, c: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
        """The pieces' sum: with o the opened bit and s its mask, a piece counts o + (1 - 2 o) s times."""
        self._chosen = chosen
        function, opened = self._function, Opened(party, self._mask, c)
        no_msb = 1 - (c >> (function.bits - 1))
        powers = [party.only(0, torch.ones_like(c)), opened.value()]
        if function.op == "square":
            powers.append(opened.square())
        total = torch.zeros_like(c) + party.only(0, function.constant)
        dealt = iter(self._dealt)
        for j, piece in enumerate(function.pieces):
            o = (chosen >> j) & 1
            s = next(dealt)
            value = piece.coefficients[0] * s
            if len(piece.coefficients) > 1:
                r_s, m_s = next(dealt), next(dealt) * no_msb
                rho_s = r_s - (m_s << function.bits)
                value = value + piece.coefficients[1] * (opened.public * s - rho_s)
            if len(piece.coefficients) > 2:
                r2_s, r_m_s = next(dealt), next(dealt) * no_msb
                rho2_s = r2_s - (r_m_s << (function.bits + 1))
                if 2 * function.bits < 64:
                    rho2_s = rho2_s + (m_s << (2 * function.bits))
                square = opened.public * opened.public * s - 2 * opened.public * rho_s + rho2_s
                value = value + piece.coefficients[2] * square
            plain = sum(
                (k * power for k, power in zip(piece.coefficients, powers, strict=False) if k), torch.zeros_like(c)
            )
            total += o * plain + (1 - 2 * o) * value
        return total
