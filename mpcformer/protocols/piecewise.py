"""Comparisons with public thresholds, and piecewise polynomials, of a value that is opened under a lifted mask.

The opened c = x + 2^(k-2) + r mod 2^k is public. A comparison of x with a threshold therefore compares public numbers
with r: it needs the top bit of r and one borrow, which the dealer's words make cheap (see `correlations.piecewise`).
A comparison costs six bits on the wire for each element instead of words of the ring, and all thresholds share the
dealer's words.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from mpcformer.correlations import Request
from mpcformer.correlations.lifted import LiftedSpec
from mpcformer.correlations.piecewise import (
    CHUNK_BITS,
    CHUNK_SIZE,
    CHUNKS,
    INPUT_BITS,
    N_INPUTS,
    PER_WORD,
    PRODUCT_BITS,
    PiecewiseSpec,
    low_bits,
    selectors,
)
from mpcformer.protocols.cost import ProtocolCost, dealt, opening
from mpcformer.protocols.lifted import Mask, Opened
from mpcformer.protocols.party import Half, Party
from mpcformer.ring.packing import packing_width

SELECTED, CONSTANT = selectors()
# The bits of all pieces of an element travel in one byte.
CHOSEN_BITS = 8


@dataclass(frozen=True)
class Piece:
    """A polynomial that counts where an odd number of its thresholds is not above x.

    One threshold makes a half-line, two make an interval.

    Args:
        thresholds: integers at the scale of x.
        coefficients: integers, those of 1, x and x^2 as far as the degree needs them.
    """

    thresholds: tuple[int, ...]
    coefficients: tuple[int, ...]


@dataclass(frozen=True)
class PiecewiseFunction:
    """A constant and pieces, as a function of a value below 2^(bits - 2).

    Args:
        bits: the width k of the ring in which the value is opened.
        pieces: the pieces; where several count, they add up.
        constant: a number that is added everywhere.
    """

    bits: int
    pieces: tuple[Piece, ...]
    constant: int = 0

    @property
    def thresholds(self) -> list[int]:
        """The different thresholds of all pieces, in rising order."""
        return sorted({t for piece in self.pieces for t in piece.thresholds})

    @property
    def use(self) -> str:
        """The use of the lifted mask: square if a piece needs x^2, else plain."""
        return "square" if any(len(piece.coefficients) > 2 for piece in self.pieces) else "plain"

    @property
    def input_width(self) -> int:
        """The packing width, in bits, of the inputs of all borrows of one element."""
        return packing_width(INPUT_BITS * len(self.thresholds))

    def request(self, shape: tuple[int, ...]) -> Request:
        """Return the request for values of `shape`."""
        degrees = tuple(len(piece.coefficients) - 1 for piece in self.pieces)
        return PiecewiseSpec(LiftedSpec(self.use, shape, self.bits), len(self.thresholds), degrees).request()


def relu(bits: int) -> PiecewiseFunction:
    """Return max(x, 0), at the scale of x."""
    return PiecewiseFunction(bits, (Piece((0,), (0, 1)),))


def clamp(bits: int, bound: int) -> PiecewiseFunction:
    """Return max(-bound, min(x, bound)), at the scale of x."""
    upper, lower = Piece((bound,), (bound,)), Piece((-bound,), (bound,))
    return PiecewiseFunction(bits, (Piece((-bound, bound), (0, 1)), upper, lower), -bound)


def cost(function: PiecewiseFunction, shape: Sequence[int], *, ahead: bool = False) -> ProtocolCost:
    """Return the cost of a function with the opening of its argument, as `Evaluation` states it.

    `ahead` is that of `opening`, for the argument.
    """
    inputs, chosen = opening((shape, function.input_width)), opening((shape, CHOSEN_BITS))
    return opening((shape, function.bits), ahead=ahead) + inputs + chosen + dealt(function.request(tuple(shape)))


class Evaluation:
    """The evaluation of one function on one set of values, from before the opening to the result.

    Ideal function: the constant plus the sum of the pieces that count at x; polynomials are exact over Z_2^64.
    Shapes: x (...), result (...).
    Scale: f and the coefficients' (g, g - f, g - 2 f) -> g.
    Range and error: |x| < 2^(bits - 2), with the thresholds within; exact, except that for x in
        [t - 2^max(0, bits - 25), t) a threshold t may count as reached.
    Cost for n elements with the opening, t thresholds whose t bytes are padded to a packing width of w, p0, p1 and p2
        pieces of degree 0, 1 and 2, and s = 1 if p2 > 0, else 0: 3 rounds; (k / 8 + w + 1) n bytes each way;
        n (2 h + s (h + 8) + 32 + 2 t + 8 p0 + (16 + h) p1 + (24 + 2 h) p2) dealer bytes, where h is (64 - k) / 8.
    Source: the borrow of a masked comparison as in Damgard et al., TCC 2006, with a dealer; the tables of chunks, which
        all thresholds share, and the products with x are ours.
    """

    def __init__(self, function: PiecewiseFunction, tensors: list[torch.Tensor], rank: int) -> None:
        self._function, self._rank = function, rank
        r, self._input_masks, self._bit_masks, *rest = tensors
        n_lifted = 4 if function.use == "square" else 2
        self._mask = Mask([r, *rest[:n_lifted]], function.bits, function.use)
        self._words, *rest = rest[n_lifted:]
        n_products = -(-len(function.thresholds) // PER_WORD)
        self._products, self._dealt = rest[:n_products], rest[n_products:]
        self._chosen = torch.empty(0)

    def half(self, share: torch.Tensor) -> Half:
        """Return this owner's half of the opening of `share`, which is valid over Z_2^bits."""
        return self._mask.half(share, self._rank)

    def evaluate(self, party: Party, c: torch.Tensor) -> torch.Tensor:
        """Compute [f(x)] over Z_2^64 from the opened c."""
        function = self._function
        inputs, local = self._inputs(c)
        opened = party.open_bits(inputs ^ self._input_masks, function.input_width)
        reached = [self._reached(opened, i) ^ bit for i, bit in enumerate(local)]

        word = torch.zeros_like(c)
        thresholds = function.thresholds
        for j, piece in enumerate(function.pieces):
            for t in piece.thresholds:
                word ^= reached[thresholds.index(t)] << j
        chosen = party.open_bits(word ^ self._bit_masks, CHOSEN_BITS)
        return self._combine(party, c, chosen)

    def bit(self, party: Party, j: int) -> torch.Tensor:
        """Return [whether piece j counts] over Z_2^64, as a number; after `evaluate`. Local."""
        at = sum(1 + 2 * (len(piece.coefficients) - 1) for piece in self._function.pieces[:j])
        o = (self._chosen >> j) & 1
        return party.only(0, o) + (1 - 2 * o) * self._dealt[at]

    def _inputs(self, c: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Return shares of the borrows' inputs, a byte for each threshold, and each bit's local part."""
        first, bits = int(self._rank == 0), self._function.bits
        top = self._mask.tensors[2] & 1  # the last bit of an additive share is an XOR share
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
        """Compute this owner's share of the borrow's polynomial for threshold i."""
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
        """Add up the pieces. With the opened bit o and its mask s, a piece counts o + (1 - 2 o) s times."""
        self._chosen = chosen
        function, opened = self._function, Opened(party, self._mask, c)
        no_msb = 1 - (c >> (function.bits - 1))
        powers = [party.only(0, torch.ones_like(c)), opened.value()]
        if function.use == "square":
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
