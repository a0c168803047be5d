"""A function that is given by lines, or by an exponential, in a window, and simply on either side of it.

The window is cut into bins; c and r are cut into a high part, which counts bins, and a low part. The number x lies
y = c_low - r_low from the start of bin c_high - r_high. If the low parts borrow, y is negative and x lies in the bin
before; the function is the same there, so that no carry is needed. Each owner holds a share of the secret word with a
bit at -r_high, turns it by the public c_high, and adds up the bins' numbers at the bits of its share. The difference of
the two owners' sums is the number of the bin, times the sign w (see `correlations.window`). It is opened under a mask,
and what the dealer shared takes w away again:

- a line A + B y: the owners open A + B c_low and B, and the dealer shared products with r_low;
- an exponential exp(A + y): the owners open exp(A) exp(c_low), and the dealer shared products with exp(-r_low).
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from decimal import ROUND_HALF_EVEN, Context, Decimal, localcontext
from functools import cached_property
from typing import Any

import torch

from mpcformer.correlations import Request
from mpcformer.correlations.window import (
    ABOVE,
    BORROW,
    DECIMALS,
    EXPONENTIAL,
    INSIDE,
    LINES,
    LOG_BINS,
    N_BINS,
    N_THRESHOLDS,
    POWER_SCALE,
    TOP,
    WindowSpec,
    power,
    power_tables,
)
from mpcformer.protocols.comparison import Comparisons
from mpcformer.protocols.cost import ProtocolCost, dealt, opening
from mpcformer.protocols.lifted import Mask, Opened
from mpcformer.protocols.party import Half, Party, Share, add_halves, shapes_of, shift, split
from mpcformer.ring.kernels import load
from mpcformer.ring.packing import WORD, Operand, packing_width, unpacked

INPUT_WIDTH = packing_width(N_THRESHOLDS * BORROW.input_bits)
# The bits of both pieces of an element.
CHOSEN_BITS = 4
# The number of values of a byte; words are looked up byte by byte.
BYTE = 256


class Windowed(ABC):
    """A function with a window: what lines and exponentials have in common.

    Attributes:
        function: LINES or EXPONENTIAL.
        bits: the width k of the ring in which the value is opened.
        lift: the width T of the ring of the result.
        counted: whether `Evaluation.inside` is wanted.
        below: the result below the window.
        above: what is added to it above the window: a constant and, for a line with a slope, the coefficient of x.
    """

    function: str
    bits: int
    lift: int
    counted: bool
    # A field or a property.
    below: Any
    above: Any

    @property
    @abstractmethod
    def thresholds(self) -> list[int]:
        """The window's ends, as integers at the scale of the value."""

    @abstractmethod
    def spec(self, shape: Sequence[int]) -> WindowSpec:
        """Return what the dealer must know, for values of `shape`."""

    @abstractmethod
    def tables(self) -> dict[str, torch.Tensor]:
        """Return the sums of the bins' numbers for each byte of a word, and what else is looked up."""

    @abstractmethod
    def picked(self, words: tuple[torch.Tensor, torch.Tensor], low: torch.Tensor, rank: int) -> list[torch.Tensor]:
        """Return an owner's shares of the bin's numbers, times w, from its share of the turned word and from c_low."""

    def request(self, shape: Sequence[int]) -> Request:
        """Return the request for values of `shape`."""
        return self.spec(shape).request()

    def evaluation(self, tensors: Sequence[Operand], rank: int) -> "Evaluation":
        """Return the evaluation of this function with an owner's part of the correlation."""
        return Evaluation(self, [unpacked(tensor) for tensor in tensors], rank)

    def cost(self, shape: Sequence[int], *, ahead: bool = False) -> ProtocolCost:
        """Return what the function `cost` of this module returns."""
        return cost(self, shape, ahead=ahead)


@dataclass(frozen=True)
class WindowFunction(Windowed):
    """A function of a value below 2^(bits - 2), by lines.

    Args:
        bits: the width k of the ring in which the value is opened.
        lift: the width T of the ring of the result.
        log_width: log2 of the window's width; the window is centred at zero.
        values, slopes: integers, the line of each bin at the bin's start, less `below`.
        above: the coefficients of 1 and, if the line has a slope, of x above the window, less `below`.
        below: the constant below the window.
        down: how many bits a line's value is shifted down before it is opened.
        counted: whether `Evaluation.inside` is wanted.
    """

    function: str = field(default=LINES, init=False)

    bits: int
    lift: int
    log_width: int
    values: tuple[int, ...]
    slopes: tuple[int, ...]
    above: tuple[int, ...]
    below: int = 0
    down: int = 0
    counted: bool = False

    @property
    def thresholds(self) -> list[int]:
        """The ends of the window. A little of the first and last bin is left out, because bins count modulo N_BINS."""
        half = 1 << (self.log_width - 1)
        return [BORROW.early(self.bits) - half, half - (1 << (self.log_width - LOG_BINS))]

    @property
    def reach(self) -> int:
        """A bound of what a line gives beside its bin."""
        width = 1 << (self.log_width - LOG_BINS)
        return max(abs(a) + abs(b) * width for a, b in zip(self.values, self.slopes, strict=True))

    def spec(self, shape: Sequence[int]) -> WindowSpec:
        """Return what the dealer must know, for values of `shape`."""
        value_bits = packing_width(((self.reach >> self.down) + 1).bit_length() + 2)
        slope_bits = packing_width(max(map(abs, self.slopes)).bit_length() + 2)
        opened = self.log_width, value_bits, slope_bits, self.down, 0
        return WindowSpec(LINES, tuple(shape), self.bits, self.lift, *opened, len(self.above) - 1, self.counted)

    @cached_property
    def _sums(self) -> tuple[torch.Tensor, torch.Tensor]:
        return _byte_sums(self.values), _byte_sums(self.slopes)

    def tables(self) -> dict[str, torch.Tensor]:
        """Return the sums of the bins' numbers for each byte of a word."""
        return dict(zip(("values", "slopes"), self._sums, strict=True))

    def picked(self, words: tuple[torch.Tensor, torch.Tensor], low: torch.Tensor, rank: int) -> list[torch.Tensor]:
        """Return an owner's shares of A + B c_low, shifted down, and of B, both times w."""
        values, slopes = (_picked(sums, words) for sums in self._sums)
        sign = -1 if rank else 1
        return [shift(sign * (values + slopes * low), self.down, rank), sign * slopes]


@dataclass(frozen=True)
class ExponentialFunction(Windowed):
    """The function exp(x / 2^exponent_scale) of x between -limit and limit, and its ends' values beyond. T is 64.

    Args:
        bits: the width k of the ring in which x is opened.
        limit: an integer at the scale of x.
        exponent_scale: the fraction bits of the exponent.
        value_scale: the fraction bits that the opened number has; the result has POWER_SCALE more.
    """

    function: str = field(default=EXPONENTIAL, init=False)
    lift: int = field(default=WORD, init=False)
    counted: bool = field(default=True, init=False)

    bits: int
    limit: int
    exponent_scale: int
    value_scale: int

    @property
    def log_width(self) -> int:
        """log2 of the window's width: a bin and a step of the comparison are left on either side."""
        return next(
            width
            for width in range(LOG_BINS, self.bits)
            if self.limit + BORROW.early(self.bits) + (1 << (width - LOG_BINS)) <= 1 << (width - 1)
        )

    @property
    def thresholds(self) -> list[int]:
        """Both ends."""
        return [-self.limit, self.limit]

    @property
    def result_scale(self) -> int:
        """The fraction bits of the result."""
        return self.value_scale + POWER_SCALE

    @cached_property
    def _ends(self) -> tuple[int, int]:
        low, high = self._powers([-self.limit, self.limit], self.result_scale)
        return low, high

    @property
    def below(self) -> int:
        """The result below the window."""
        return self._ends[0]

    @property
    def above(self) -> tuple[int, ...]:
        """What is added to it above the window."""
        return (self._ends[1] - self._ends[0],)

    @cached_property
    def values(self) -> tuple[int, ...]:
        """The value of each bin at its start, at value_scale; bins beyond the ends have the ends' values."""
        half, step = 1 << (self.log_width - 1), 1 << (self.log_width - LOG_BINS)
        reach = self.limit + BORROW.early(self.bits) + step
        starts = [min(reach, max(-reach, place)) for place in range(-half, half, step)]
        return tuple(self._powers(starts, self.value_scale))

    def _powers(self, places: list[int], scale: int) -> list[int]:
        with localcontext(Context(prec=DECIMALS, rounding=ROUND_HALF_EVEN)):
            powers = ((Decimal(place) / (1 << self.exponent_scale)).exp() * (1 << scale) for place in places)
            return [int(power.to_integral_value()) for power in powers]

    def spec(self, shape: Sequence[int]) -> WindowSpec:
        """Return what the dealer must know, for values of `shape`."""
        # The number of a bin is multiplied by the power of up to a bin's width.
        width = 1 << (self.log_width - LOG_BINS)
        (largest,) = self._powers([self.limit + BORROW.early(self.bits) + 2 * width], self.value_scale)
        opened = self.log_width, packing_width(largest.bit_length() + 2), 0, 0, self.exponent_scale
        return WindowSpec(EXPONENTIAL, tuple(shape), self.bits, WORD, *opened, 0, self.counted)

    @cached_property
    def _sums(self) -> torch.Tensor:
        return _byte_sums(self.values)

    def tables(self) -> dict[str, torch.Tensor]:
        """Return the sums of the bins' numbers for each byte of a word, and the powers of parts of c_low."""
        fine, coarse = power_tables(self.spec(()), 1)
        return {"values": self._sums, "fine": fine, "coarse": coarse}

    def picked(self, words: tuple[torch.Tensor, torch.Tensor], low: torch.Tensor, rank: int) -> list[torch.Tensor]:
        """Return an owner's share of exp(A) exp(c_low), times w."""
        values = _picked(self._sums, words) * power(low, self.spec(()), 1)
        return [shift(-values if rank else values, POWER_SCALE, rank)]


def cost(function: Windowed, shape: Sequence[int], *, ahead: bool = False) -> ProtocolCost:
    """Return the cost of a function with the opening of its argument, as `Evaluation` states it.

    `ahead` is that of `opening`, for the argument.
    """
    picked = [(shape, bits) for bits in function.spec(shape).opened_bits]
    second, third = opening(*picked, (shape, INPUT_WIDTH)), opening((shape, CHOSEN_BITS))
    return opening((shape, function.bits), ahead=ahead) + second + third + dealt(function.request(shape))


class Evaluation:
    """The evaluation of one function on one set of values, from before the opening to the result.

    Ideal function: in the window the line of the bin before or after the value, without truncation but for `down`, or
        the exponential; above and below the window, what the function says; over Z_2^T.
    Shapes: x (...), result (...).
    Scale: lines: f and the lines' (g, g - f) -> g; exponential: f -> `result_scale`.
    Range and error: |x| < 2^(bits - 2); lines: 2^down units in the last place; exponential: 2^-18 relative, and two
        units of `value_scale`. A value that is less than `BORROW.early` below an end of the window may count as having
        reached it.
    Widths: v and u are the spec's `value_bits` and `slope_bits`; a is T - down - v and b is T - u, both rounded up to a
        multiple of 4; c is T if `counted`, else 0; h is T + 3 (T - k) if the line above the window has a slope, else 0.
    Cost of lines for n elements with the opening: 3 rounds; (k + v + u + 12) / 8 n bytes each way;
        (42 + (7 T + 2 a + 2 b + c + h) / 8) n dealer bytes.
    Cost of an exponential for n elements with the opening: 3 rounds; (k + v + 12) / 8 n bytes each way;
        (42 + (6 T + 2 a) / 8) n dealer bytes.
    Source: see `correlations.window`.
    """

    def __init__(self, function: Windowed, tensors: list[torch.Tensor], rank: int) -> None:
        self._function, self._rank, self._spec = function, rank, function.spec(())
        n_opened, n_line = len(self._spec.opened_bits), 5 if function.function == LINES else 3
        r, input_masks, self._bit_masks, *rest = tensors
        self._masks, (words, products, self._word, *dealt) = rest[:n_opened], rest[n_opened:]
        self._products, dealt = (dealt[:n_line], dealt[n_line : 2 * n_line]), dealt[2 * n_line :]
        self._counted, dealt = (dealt[:1], dealt[1:]) if function.counted else ([], dealt)
        self._above, lifted = dealt[:3], dealt[3:]
        self._lifted = [r, *lifted]
        self._mask = Mask(self._lifted, function.bits, "plain", function.lift)
        self.comparisons = Comparisons(
            BORROW, function.thresholds, function.bits, rank, input_masks, words, [products], products >> TOP
        )
        self.chosen = torch.empty(0)

    def half(self, share: Share) -> Half:
        """Return this owner's half of the opening of `share`, which is valid over Z_2^bits."""
        return self._mask.half(share, self._rank)

    def evaluate(self, party: Party, c: torch.Tensor) -> torch.Tensor:
        """Compute [f(x)] over Z_2^T from the opened c."""
        inputs, local = self.comparisons.inputs(c)
        picked = zip(self.picked(c), self._masks, self._spec.opened_bits, strict=True)
        halves = [(share + mask + party.only(0, 1 << (bits - 2)), bits) for share, mask, bits in picked]
        party.send([*halves, (inputs, INPUT_WIDTH)])
        shapes = shapes_of([*halves, (inputs, INPUT_WIDTH)])
        *theirs, (other_inputs, _) = split(party.receive(shapes), shapes)
        opened = (inputs & ((1 << INPUT_WIDTH) - 1)) ^ other_inputs
        reached = self.comparisons.reached(opened, local)
        # A value is inside if it reaches the low end and not the high one, whose bit is that of what is above.
        bits = ((reached ^ (reached >> 1)) & (1 << INSIDE)) | (reached & (1 << ABOVE))
        self.chosen = party.open_bits(bits ^ self._bit_masks, CHOSEN_BITS)
        return self.combined(party, c, add_halves(halves, theirs))

    def inside(self, party: Party) -> torch.Tensor:
        """Return [whether x is in the window] over Z_2^T, as a number; after `evaluate`, if it is counted. Local."""
        if not self._counted:
            raise ValueError("a function that is not counted does not tell what is in its window")
        o = (self.chosen >> INSIDE) & 1
        return party.only(0, o) + (1 - 2 * o) * self._counted[0]

    def picked(self, c: torch.Tensor) -> list[torch.Tensor]:
        """Return this owner's shares of the bin's numbers, times w."""
        spec = self._spec
        kernels = load()[0] if c.device.type == "cpu" else None
        if kernels is not None:
            numbers = {"bits": spec.bits, "log_width": spec.log_width, "bin_bits": spec.bin_bits, "down": spec.down}
            return kernels.windows.pick(c, self._word, self._function.tables(), rank=self._rank, **numbers)
        return self.picked_by_torch(c)

    def picked_by_torch(self, c: torch.Tensor) -> list[torch.Tensor]:
        """Do as `picked` does, without the compiled functions."""
        spec = self._spec
        turned = (c - (1 << (spec.bits - 2)) + (1 << (spec.log_width - 1))) & ((1 << spec.log_width) - 1)
        low, turn = turned & ((1 << spec.bin_bits) - 1), turned >> spec.bin_bits
        if c.device.type == "meta":
            return [low] * len(spec.opened_bits)
        return self._function.picked(_rotated(self._word[0], self._word[1], turn), low, self._rank)

    def combined(self, party: Party, c: torch.Tensor, opened: list[torch.Tensor]) -> torch.Tensor:
        """Add up the pieces. With the opened bit o and its mask s, a piece counts o + (1 - 2 o) s times."""
        kernels = load()[0] if c.device.type == "cpu" else None
        if kernels is None:
            return self.combined_by_torch(party, c, opened)
        function, spec = self._function, self._spec
        constant, *factor = function.above
        arrays = {"c": c, "r": self._lifted[0], "chosen": self.chosen}
        arrays |= dict(zip(("value", "slope"), opened, strict=False))
        arrays |= dict(zip(("above", "r_above", "top_above"), self._above, strict=False))
        arrays |= dict(zip(("carry", "top"), self._lifted[1:], strict=False))
        if function.function == EXPONENTIAL:
            arrays["counted"] = self._counted[0]
        numbers = {"bits": spec.bits, "down": spec.down, "value_bits": spec.value_bits, "slope_bits": spec.slope_bits}
        numbers |= {"below": function.below, "constant": constant, "factor": factor[0] if factor else 0}
        return kernels.windows.sum(self._products, arrays, rank=self._rank, **numbers)

    def combined_by_torch(self, party: Party, c: torch.Tensor, opened: list[torch.Tensor]) -> torch.Tensor:
        """Do as `combined` does, without the compiled functions."""
        function, spec = self._function, self._spec
        wraps = [1 - (number >> (bits - 1)) for number, bits in zip(opened, spec.opened_bits, strict=True)]
        value, *slope = (number - (1 << (bits - 2)) for number, bits in zip(opened, spec.opened_bits, strict=True))

        def inner(tensors: list[torch.Tensor]) -> torch.Tensor:
            q, masks, high, *sloped = tensors
            found = (value << spec.down) * q - masks + ((wraps[0] * high) << (spec.down + spec.value_bits))
            if sloped:
                found = found - slope[0] * sloped[0] - ((wraps[1] * sloped[1]) << spec.slope_bits)
            return found

        o = (self.chosen >> INSIDE) & 1
        always, masked = self._products
        total = o * inner(always) + (1 - 2 * o) * inner(masked) + party.only(0, function.below)
        if function.function == EXPONENTIAL:
            total = total - function.below * self.inside(party)
        o = (self.chosen >> ABOVE) & 1
        constant, *factor = function.above
        s, *r_s = self._above
        if factor:
            argument = Opened(party, self._mask, c)
            rho_s = r_s[0] - ((r_s[1] * (1 - (c >> (function.bits - 1)))) << function.bits)
            total = total + factor[0] * (o * argument.value() + (1 - 2 * o) * (argument.public * s - rho_s))
        return total + constant * (party.only(0, o) + (1 - 2 * o) * s) if constant else total


def _byte_sums(numbers: Sequence[int]) -> torch.Tensor:
    """Return for each byte of a word, and each value of it, the sum of the numbers at its bits: (N_BINS / 8, 256)."""
    bits = (torch.arange(BYTE)[:, None] >> torch.arange(8)) & 1
    return (torch.tensor(numbers).view(-1, 1, 8) * bits).sum(-1)


def _picked(sums: torch.Tensor, words: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Return the sums of the numbers at the bits of words of N_BINS bits, given in two halves."""
    total = torch.zeros_like(words[0])
    for n in range(N_BINS // 8):
        total += sums[n][(words[n // 8] >> (8 * (n % 8))) & (BYTE - 1)]
    return total


def _rotated(low: torch.Tensor, high: torch.Tensor, turn: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the two halves of 128-bit words, turned left by `turn` bits."""
    swap = (turn >> 6) == 1
    low, high = torch.where(swap, high, low), torch.where(swap, low, high)
    by = turn & 63
    # A shift by 64 bits is not defined, so there are two; the mask takes away the copies of the sign.
    mask = torch.bitwise_left_shift(torch.ones_like(by), by) - 1
    from_low, from_high = (((word >> 1) >> (63 - by)) & mask for word in (low, high))
    return (low << by) | from_high, (high << by) | from_low
