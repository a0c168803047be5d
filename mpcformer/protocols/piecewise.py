"""Piecewise polynomials of a value that is opened under a lifted mask.

`comparison` tells both owners' shares of whether the value reaches each of the pieces' thresholds. The bits of the
pieces are opened under masks, and the dealer shares the products of these masks with powers of the value's mask.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from mpcformer.correlations import Request
from mpcformer.correlations.lifted import LiftedSpec
from mpcformer.correlations.piecewise import BORROW, PiecewiseSpec
from mpcformer.protocols.comparison import Comparisons
from mpcformer.protocols.cost import ProtocolCost, dealt, opening
from mpcformer.protocols.lifted import Mask, Opened
from mpcformer.protocols.party import Half, Party, Share
from mpcformer.ring.packing import Operand, packing_width, unpacked

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
        return packing_width(BORROW.input_bits * len(self.thresholds))

    def request(self, shape: tuple[int, ...]) -> Request:
        """Return the request for values of `shape`."""
        degrees = tuple(len(piece.coefficients) - 1 for piece in self.pieces)
        return PiecewiseSpec(LiftedSpec(self.use, shape, self.bits), len(self.thresholds), degrees).request()

    def evaluation(self, tensors: Sequence[Operand], rank: int) -> "Evaluation":
        """Return the evaluation of this function with an owner's part of the correlation."""
        return Evaluation(self, [unpacked(tensor) for tensor in tensors], rank)

    def cost(self, shape: Sequence[int], *, ahead: bool = False) -> ProtocolCost:
        """Return what the function `cost` of this module returns."""
        return cost(self, shape, ahead=ahead)


def relu(bits: int) -> PiecewiseFunction:
    """Return max(x, 0), at the scale of x."""
    return PiecewiseFunction(bits, (Piece((0,), (0, 1)),))


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
    Source: the comparisons are those of `comparison`; the products with x are ours.
    """

    def __init__(self, function: PiecewiseFunction, tensors: list[torch.Tensor], rank: int) -> None:
        self._function, self._rank = function, rank
        r, input_masks, self._bit_masks, *rest = tensors
        n_lifted = 4 if function.use == "square" else 2
        lifted = [r, *rest[:n_lifted]]
        self._mask = Mask(lifted, function.bits, function.use)
        words, *rest = rest[n_lifted:]
        thresholds = function.thresholds
        n_products = len(BORROW.product_widths(len(thresholds)))
        top = lifted[2]  # the last bit of an additive share is an XOR share
        self._comparisons = Comparisons(
            BORROW, thresholds, function.bits, rank, input_masks, words, rest[:n_products], top
        )
        self._dealt = rest[n_products:]
        self._chosen = torch.empty(0)

    def half(self, share: Share) -> Half:
        """Return this owner's half of the opening of `share`, which is valid over Z_2^bits."""
        return self._mask.half(share, self._rank)

    def evaluate(self, party: Party, c: torch.Tensor) -> torch.Tensor:
        """Compute [f(x)] over Z_2^64 from the opened c."""
        function = self._function
        inputs, local = self._comparisons.inputs(c)
        reached = self._comparisons.reached(party.open_bits(inputs, function.input_width), local)

        word = torch.zeros_like(c)
        thresholds = function.thresholds
        for j, piece in enumerate(function.pieces):
            for t in piece.thresholds:
                word ^= ((reached >> thresholds.index(t)) & 1) << j
        chosen = party.open_bits(word ^ self._bit_masks, CHOSEN_BITS)
        return self._combine(party, c, chosen)

    def bit(self, party: Party, j: int) -> torch.Tensor:
        """Return [whether piece j counts] over Z_2^64, as a number; after `evaluate`. Local."""
        at = sum(1 + 2 * (len(piece.coefficients) - 1) for piece in self._function.pieces[:j])
        o = (self._chosen >> j) & 1
        return party.only(0, o) + (1 - 2 * o) * self._dealt[at]

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
