"""The correlation for a function that is given by lines or by an exponential in a window, and simply on either side.

`protocols.window` explains how it is used. The window is cut into N_BINS bins. A secret word of N_BINS bits, one of
them set, picks the bin: each owner adds up the public numbers of the bins at the bits of its XOR share of the word. The
two sums differ by the bin's number, times a sign w that only the dealer knows. The owners open it under a mask, and the
dealer shares the products of this mask, of the value's mask and of w that take w away again.

A line takes two such numbers, its value and its slope. An exponential takes one: exp(y) for y = c_low - r_low is the
public exp(c_low) times exp(-r_low), which the dealer knows.
Source: the sign as in Wagh, Pika, PoPETs 2022, section 4, where the bits come from a point function. The word in place
of the point function, the lines and the exponential are ours.
"""

from dataclasses import dataclass
from decimal import ROUND_HALF_EVEN, Context, Decimal, localcontext
from functools import lru_cache

import torch

from mpcformer.correlations.base import Kind, check_width
from mpcformer.correlations.comparison import Borrow
from mpcformer.correlations.requests import Request, Shape
from mpcformer.errors import ProtocolError
from mpcformer.ring.kernels import load
from mpcformer.ring.packing import WIDTHS, WORD, packing_width, reduce
from mpcformer.ring.random import Stream

LINES, EXPONENTIAL = "lines", "exponential"
LOG_BINS = 7
N_BINS = 1 << LOG_BINS
BORROW = Borrow(3)
# The window's two ends.
N_THRESHOLDS = 2
# The bits of the pieces: inside the window; above it.
INSIDE, ABOVE = 0, 1
# The word of products has the top bit of the mask at this place, which the products leave free.
TOP = BORROW.product_bits - 1
LEAST_BITS = 12
# Powers of e are computed with so many fraction bits, from tables for parts of so many bits of the exponent.
POWER_SCALE, PART_BITS, DECIMALS = 20, 8, 60


@dataclass(frozen=True)
class WindowSpec:
    """A function with a window, as far as the dealer must know it.

    Args:
        function: LINES or EXPONENTIAL.
        shape: the shape of the value.
        bits: the width k of the ring in which the value is opened.
        lift: the width T of the ring of the result.
        log_width: log2 of the width of the window, in units of the value.
        value_bits, slope_bits: the widths of the rings in which the bin's value and slope are opened; an exponential
            has no slope, and 0 for its width.
        down: how many bits a line's value is shifted down before it is opened; 0 for an exponential.
        exponent_scale: the fraction bits of the value as an exponent; 0 for lines.
        degree: that of the line above the window, 0 or 1.
        counted: whether the owners also want shares of whether the value is in the window.
    """

    function: str
    shape: Shape
    bits: int
    lift: int
    log_width: int
    value_bits: int
    slope_bits: int
    down: int
    exponent_scale: int
    degree: int
    counted: bool = False

    @property
    def bin_bits(self) -> int:
        """log2 of the width of a bin."""
        return self.log_width - LOG_BINS

    @property
    def high_bits(self) -> int:
        """The width of shares that are multiplied by 2^bits."""
        return packing_width(self.lift - self.bits)

    @property
    def value_high_bits(self) -> int:
        """The width of the shares that make up for the wrap of the opened value."""
        return packing_width(self.lift - self.down - self.value_bits)

    @property
    def slope_high_bits(self) -> int:
        """The width of the shares that make up for the wrap of the opened slope."""
        return packing_width(self.lift - self.slope_bits)

    @property
    def opened_bits(self) -> list[int]:
        """The widths of what is opened of a bin."""
        return [self.value_bits, self.slope_bits] if self.slope_bits else [self.value_bits]

    def request(self) -> Request:
        """Return the request for the dealer."""
        widths = self.lift, self.log_width, self.value_bits, self.slope_bits
        params = *widths, self.down, self.exponent_scale, self.degree, self.counted
        return Request("window", (self.shape,), op=self.function, bits=self.bits, params=tuple(map(float, params)))

    @staticmethod
    def of(request: Request) -> "WindowSpec":
        """Read a request.

        Raises:
            ProtocolError: the request describes no function with a window.
        """
        op, params = request.op, request.params
        if op not in (LINES, EXPONENTIAL) or len(params) != 8 or any(not float(n).is_integer() for n in params):
            raise ProtocolError(f"window {op[:40]!r} with parameters {params} is not defined")
        lift, log_width, value_bits, slope_bits, down, exponent_scale, degree, counted = map(int, params)
        widths = lift, log_width, value_bits, slope_bits
        spec = WindowSpec(op, request.shapes[0], request.bits, *widths, down, exponent_scale, degree, counted == 1)
        if op == LINES:
            kind = slope_bits in WIDTHS and slope_bits < lift and down >= 0 and exponent_scale == 0
        else:
            # A bin's power of e is below e.
            kind = slope_bits == 0 and down == 0 and spec.bin_bits <= min(exponent_scale, 2 * PART_BITS)
            kind = kind and exponent_scale <= WORD
        opened = value_bits in WIDTHS and down + value_bits < lift and lift in WIDTHS
        # The window's ends are a few of the smallest steps of a comparison away from those of its bins.
        wide = LOG_BINS <= log_width < spec.bits and 2 * BORROW.early(spec.bits) <= 1 << log_width
        known = degree in (0, 1) and counted in (0, 1) and LEAST_BITS <= spec.bits < lift
        if not (kind and opened and wide and known):
            raise ProtocolError(f"window {spec} is not defined")
        return spec


@lru_cache(maxsize=64)
def _powers(step: int, size: int, scale: int) -> torch.Tensor:
    """Return exp(n step / 2^scale) for n below `size`, at POWER_SCALE.

    Both owners, and whoever checks the dealer, must compute the same integers, so that there is no floating point here.
    """
    with localcontext(Context(prec=DECIMALS, rounding=ROUND_HALF_EVEN)):
        powers = ((Decimal(n * step) / (1 << scale)).exp() * (1 << POWER_SCALE) for n in range(size))
        return torch.tensor([int(power.to_integral_value()) for power in powers])


def power(low: torch.Tensor, spec: WindowSpec, sign: int) -> torch.Tensor:
    """Return exp(sign low / 2^exponent_scale) at POWER_SCALE, for the low parts of an exponential's values."""
    fine, coarse = power_tables(spec, sign)
    product = fine[low & ((1 << PART_BITS) - 1)] * coarse[low >> PART_BITS]
    return (product + (1 << (POWER_SCALE - 1))) >> POWER_SCALE


def power_tables(spec: WindowSpec, sign: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return exp(sign n / 2^exponent_scale) for the lowest PART_BITS of n, and for the others."""
    part, size = 1 << PART_BITS, 1 << max(0, spec.bin_bits - PART_BITS)
    scale = spec.exponent_scale
    return _powers(sign, part, scale), _powers(sign * part, size, scale)


class Window(Kind):
    """A mask r for the value, and what comparisons with the window's ends, a bin's numbers and the line above need.

    Tensors: [r] (k bits), the masks of the comparisons' inputs and of the pieces' bits, [a], which masks the bin's
    value, and for lines [b], which masks its slope; then *:
    - the words of the comparisons' chunks, and the products of their masks, which XOR to these numbers; the highest bit
      of a threshold's products is the top bit of r;
    - two words of 64 bits that XOR to the one with a bit at -r_high;
    - for lines, for q = w and q = w s, where s is the mask of the first piece's bit and r_low the low part of r: [q],
      [2^down q a - q r_low b], [q msb a], [q r_low] and [q r_low msb b];
    - for an exponential, for q = w exp(-r_low) and q = w s exp(-r_low): [q], [q a] and [q msb a];
    - [s], if it is wanted;
    - for the line above, with its mask bit s': [s'] and, for degree 1, [r s'], [msb r s'], [carry r] and [msb r].
    Dealer bytes for each element: see `protocols.window`.
    """

    def check(self, request: Request) -> None:
        """Require a window that bins and comparisons can serve."""
        super().check(request)
        check_width(request)
        WindowSpec.of(request)

    def layout(self, request: Request) -> list[tuple[Shape, int]]:
        """Return the layouts in the order that the class gives."""
        spec = WindowSpec.of(request)
        x, lift = spec.shape, spec.lift
        line = [(x, lift), (x, lift), (x, spec.value_high_bits)]
        if spec.function == LINES:
            line += [(x, lift), (x, spec.slope_high_bits)]
        above = [(x, lift)]
        if spec.degree:
            above += [(x, lift), (x, spec.high_bits), (x, spec.high_bits), (x, spec.high_bits)]
        words = [((BORROW.n_chunks, *x), WORD), *((x, bits) for bits in BORROW.product_widths(N_THRESHOLDS))]
        return [*words, ((2, *x), WORD), *line, *line, *[(x, lift)] * spec.counted, *above]

    def draw(self, request: Request, stream: Stream, rank: int) -> list[torch.Tensor]:
        """Draw [r], the masks and, at rank 1, the rest."""
        spec = WindowSpec.of(request)
        drawn = [stream.bits(spec.shape, spec.bits), *(stream.int64(spec.shape) for _ in range(2))]
        drawn += [stream.bits(spec.shape, bits) for bits in spec.opened_bits]
        return drawn + self.draw_corrected(request, stream, rank)

    def correct(self, request: Request, share_0: list[torch.Tensor], share_1: list[torch.Tensor]) -> list[torch.Tensor]:
        """Compute each value minus, or XOR, rank 1's share of it."""
        kernels = load()[0]
        if kernels is None:
            return correct_by_torch(request, share_0, share_1)
        spec = WindowSpec.of(request)
        tables = {"mask_products": BORROW.mask_products}
        if spec.function == EXPONENTIAL:
            tables |= dict(zip(("fine", "coarse"), power_tables(spec, -1), strict=True))
        numbers = {name: getattr(spec, name) for name in ("bits", "bin_bits", "down", "value_bits", "slope_bits")}
        numbers |= {name: getattr(BORROW, name) for name in ("n_chunks", "n_inputs", "input_bits", "product_bits")}
        numbers |= {"counted": int(spec.counted), "degree": spec.degree}
        return kernels.windows.correct(share_0, share_1, tables, **numbers)


def correct_by_torch(request: Request, share_0: list[torch.Tensor], share_1: list[torch.Tensor]) -> list[torch.Tensor]:
    """Do as `Window.correct` does, without the compiled functions."""
    spec = WindowSpec.of(request)
    n_drawn = 3 + len(spec.opened_bits)
    rest = share_1[n_drawn:]
    total = share_0[0] + share_1[0]
    r, input_masks, bit_masks = reduce(total, spec.bits), share_0[1] ^ share_1[1], share_0[2] ^ share_1[2]
    opened = zip(share_0[3:n_drawn], share_1[3:n_drawn], spec.opened_bits, strict=True)
    masks = [reduce(x + y, bits) for x, y, bits in opened]
    top = r >> (spec.bits - 1)
    (products,) = BORROW.products(input_masks, N_THRESHOLDS)
    low = r & ((1 << spec.bin_bits) - 1)
    place = (-(r >> spec.bin_bits)) & (N_BINS - 1)
    bit, in_second = torch.bitwise_left_shift(torch.ones_like(place), place & 63), place >> 6
    chosen = torch.stack([bit * (1 - in_second), bit * in_second])
    flips = [BORROW.words(r, spec.bits) ^ rest[0], products ^ (top << TOP) ^ rest[1], chosen ^ rest[2]]

    # The sum at rank 0 has the bin's numbers, and w is 1, where rank 1's share of the word lacks the bit.
    w = 1 - 2 * (((rest[2] & chosen) != 0).any(0)).long()
    inside, above = ((bit_masks >> which) & 1 for which in (INSIDE, ABOVE))
    values = []
    for q in (w, w * inside):
        values += _exponential(q, low, masks, spec) if spec.function == EXPONENTIAL else _line(q, low, masks, spec)
    values += [inside] * spec.counted + [above]
    if spec.degree:
        values += [r * above, top * above, total >> spec.bits, top]
    return flips + [value - share for value, share in zip(values, rest[3:], strict=True)]


def _line(q: torch.Tensor, low: torch.Tensor, masks: list[torch.Tensor], spec: WindowSpec) -> list[torch.Tensor]:
    (a, b), q_low = masks, q * low
    value = [q, (q * a << spec.down) - q_low * b, q * (a >> (spec.value_bits - 1))]
    return [*value, q_low, q_low * (b >> (spec.slope_bits - 1))]


def _exponential(q: torch.Tensor, low: torch.Tensor, masks: list[torch.Tensor], spec: WindowSpec) -> list[torch.Tensor]:
    (a,) = masks
    q = q * power(low, spec, -1)
    return [q, q * a, q * (a >> (spec.value_bits - 1))]
