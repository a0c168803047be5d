"""Tables of a smooth function of one private argument a row: a public quadratic in each bin, chosen by a secret key.

An argument is a 24-bit number v that stands for the real value (v + base) unit. It is opened as c = (v + r) mod 2^24.
Both c and r are cut into a high part, which counts bins, and a low part. Then v lies in bin b = c_high - r_high or, if
the low parts borrow, in the one before it; with y = c_low - r_low it is v = b width + y either way. So a public
quadratic for each b, fitted to the two bins around its start, gives the function from y without a comparison.

The dealer knows r. It shares a point function (`point_function`) that is 1, r_low and r_low^2 at the place r_high and
zero elsewhere. Each owner expands its key over all bins, turns the coefficients by the public c_high, and adds up
locally: a share of the quadratic's value, and of whether b is a bin beyond the range, which is the mark. Low parts are
cut to 11 bits, and for tanh to 13; that moves the argument by a 2048th or an 8192nd of a bin.

Where one table would need too many bins (because the function varies most at the low end), two share the work. The
upper table spans the whole range with coarse bins, is zero below `split`, and tells whether the argument lies there;
the lower table has fine bins. Numbers beyond 2^24 wrap around. A third table, the guard, therefore has marks but no
coefficients: its bins are wider and reach up to a power of two beyond the range, above which `protocols.guard` looks.

Error, for a quadratic whose two bins are d times their lower end wide: 2 (d / 4)^3 relative for 1 / x, and
0.63 (d / 4)^3 for x^(-1/2). The largest d is that of the bins that straddle the low end of the range; above it the
error falls with the cube.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from decimal import ROUND_HALF_EVEN, Context, Decimal, localcontext
from fractions import Fraction
from functools import cache, lru_cache

import torch

from mpcformer.correlations.base import Kind
from mpcformer.correlations.keys import point_function
from mpcformer.correlations.linear import TAGS, weight_mask
from mpcformer.correlations.requests import KEPT_REQUESTS, MaskKeys, Request, Shape
from mpcformer.errors import ProtocolError
from mpcformer.ring.packing import WORD, reduce
from mpcformer.ring.random import Stream

GUARD = "guard"
FUNCTIONS = ("reciprocal", "rsqrt", "tanh", GUARD)
# How many bits of an argument's low part count. More of them leave fewer for the coefficients. What is cut off is a
# coin that both owners see, and those of tanh tell something of the head's weights: see docs/security.md.
LOG_STEPS = {"tanh": 13}
USUAL_LOG_STEPS = 11
MAX_LOG_BINS = 13
MAX_BASE = 1 << 53  # float64 is not exact beyond
# The Chebyshev nodes of a quadratic are 0 and this part of a bin, cos(pi / 6), on either side.
NODE = 0.8660254037844387
# Values of functions have so many bits beyond the scale before the coefficients are rounded, and tanh so many digits.
GUARD_BITS, DECIMALS = 40, 60
ROWS_AT_ONCE = 1 << 16


@dataclass(frozen=True)
class TableSpec:
    """One table; all of it is public.

    Args:
        function: one of FUNCTIONS.
        log_bins: log2 of the number of bins.
        base, unit: an argument v stands for the real value (v + base) unit.
        low, high: the range; bins beyond it are marked.
        scale: the fraction bits of the result, with its extra bits.
        epsilon: a number that is added to the argument.
        split: where the lower table takes over; 0 if there is none.
        tags: where results are tagged, by how many keys: result i is also shared times key i mod `tags`. Else 0.
    """

    function: str
    log_bins: int
    base: int
    unit: float
    low: float
    high: float
    scale: int
    epsilon: float = 0.0
    split: float = 0.0
    tags: int = 0

    BITS = 24

    @property
    def n_bins(self) -> int:
        """The number of bins for each row."""
        return 1 << self.log_bins

    @property
    def bin_bits(self) -> int:
        """log2 of the width of a bin, in units of v."""
        return self.BITS - self.log_bins

    @property
    def log_steps(self) -> int:
        """log2 of the number of steps in a bin that an argument is rounded to."""
        return min(LOG_STEPS.get(self.function, USUAL_LOG_STEPS), self.bin_bits)

    def step_of(self, c: torch.Tensor) -> torch.Tensor:
        """Return the low part of 24-bit numbers, cut to `log_steps` bits."""
        return (c >> (self.bin_bits - self.log_steps)) & ((1 << self.log_steps) - 1)

    @property
    def n_shared(self) -> int:
        """How many numbers the owners share at the mask's bin: 1, r_low and r_low^2, or for a guard the first alone.

        Where results are tagged, they share the same numbers times the key besides.
        """
        return 1 if self.function == GUARD else 6 if self.tags else 3

    @property
    def has_lower(self) -> bool:
        """Whether a lower table takes the arguments below `split`."""
        return self.split > 0

    def request(self, rows: int) -> Request:
        """Return the request for the dealer, for so many rows."""
        params = tuple(getattr(self, field.name) for field in fields(self)[1:])
        return Request("table", ((rows,),), op=self.function, bits=self.BITS, params=params)

    @staticmethod
    @lru_cache(KEPT_REQUESTS)
    def of(request: Request) -> "TableSpec":
        """Read a request.

        Raises:
            ProtocolError: the request describes no table.
        """
        if request.op not in FUNCTIONS or len(request.params) != 9 or not all(map(math.isfinite, request.params)):
            raise ProtocolError(f"table {request.op!r} with parameters {request.params} is not defined")
        log_bins, base, unit, low, high, scale, epsilon, split, tags = request.params
        if any(number != int(number) or abs(number) > MAX_BASE for number in (log_bins, base, scale, tags)):
            raise ProtocolError(
                f"table {request.op!r}: of parameters {request.params}, bins, base, scale and tags are integers"
            )
        spec = TableSpec(request.op, int(log_bins), int(base), unit, low, high, int(scale), epsilon, split, int(tags))
        positive = low > 0 or request.op in ("tanh", GUARD)
        if not (3 <= spec.log_bins <= MAX_LOG_BINS and unit > 0 and low < high and positive and 0 <= scale <= 48):
            raise ProtocolError(f"table {spec} cannot be fitted")
        rows = math.prod(request.shapes[0])
        if spec.tags and (spec.tags < 0 or rows % spec.tags or spec.has_lower or spec.function == GUARD):
            raise ProtocolError(f"table {spec} cannot tag {rows} results")
        return spec


def evaluator(spec: TableSpec) -> Callable[[int], int]:
    """Return the function of a place v: its value at (v + base) unit, times 2^(scale + GUARD_BITS), rounded down.

    Both owners compute the coefficients, and every bit of a share counts: a coefficient that differs by one between two
    processors would make the result random. So there are integers and decimals here, and no floating point.
    """
    # Floats are integers over powers of two: here over the largest of their denominators.
    exact = [Fraction(number) for number in (spec.unit, spec.low / 4, spec.epsilon)]
    one = max(number.denominator for number in exact)
    unit, low, epsilon = (number.numerator * (one // number.denominator) for number in exact)
    scale = spec.scale + GUARD_BITS

    def positive(place: int) -> int:
        return max((place + spec.base) * unit, low) + epsilon

    def tanh(place: int) -> int:
        argument = Fraction((place + spec.base) * unit, one)
        with localcontext(Context(prec=DECIMALS, rounding=ROUND_HALF_EVEN)):
            grown = (2 * Decimal(argument.numerator) / Decimal(argument.denominator)).exp()
            return math.floor((grown - 1) / (grown + 1) * (1 << scale))

    if spec.function == "tanh":
        return tanh
    if spec.function == "reciprocal":
        return lambda place: (one << scale) // positive(place)
    return lambda place: math.isqrt((one << (2 * scale)) // positive(place))


@dataclass(frozen=True)
class Pieces:
    """What is public of a table: for each bin b, the quadratic around its start.

    Args:
        coefficients: int64 (3, bins), of y to the powers 0, 1 and 2; zero in bins that are outside or below. A guard
            has none, (3, 0).
        outside: int64 (bins,), 1 where both bins lie beyond the range.
        below: int64 (bins,), 1 where the lower table takes over.
    """

    coefficients: torch.Tensor
    outside: torch.Tensor
    below: torch.Tensor


def pieces(spec: TableSpec) -> Pieces:
    """Fit the quadratics of a table, through three nodes each. Whether results are tagged changes nothing."""
    return _pieces(replace(spec, tags=0) if spec.tags else spec)


@cache
def _pieces(spec: TableSpec) -> Pieces:
    value_at = evaluator(spec)
    width, step = 1 << spec.bin_bits, 1 << (spec.bin_bits - spec.log_steps)
    node = round(NODE * (1 << spec.log_steps))
    coefficients: list[tuple[int, int, int]] = []
    outside, below = [], []
    for start in range(0, spec.n_bins * width, width):
        middle, reach = (start + spec.base) * spec.unit, width * spec.unit
        if spec.function == GUARD:
            outside.append(middle - reach > spec.high)
            below.append(False)
            continue
        below.append(spec.has_lower and start > 0 and middle < spec.split)
        # What lies before the first bin are the largest numbers, wrapped around.
        is_outside = start == 0 or not spec.low - reach <= middle <= spec.high + reach
        outside.append(is_outside and not below[-1])
        if is_outside or below[-1]:
            coefficients.append((0, 0, 0))
            continue
        before, at, after = (value_at(start + steps * step) for steps in (-node, 0, node))
        bend = after - 2 * at + before
        k2 = _rounded(bend, 2 * node**2)
        # What rounding takes from the bend grows with the square of the distance; half of it at the ends, added
        # everywhere, leaves half of it everywhere.
        lost = (bend << (2 * spec.log_steps)) // (2 * node**2) - (k2 << (GUARD_BITS + 2 * spec.log_steps))
        coefficients.append((_rounded(at + lost // 2, 1), _rounded(after - before, 2 * node), k2))
    by_power = torch.tensor(coefficients, dtype=torch.int64).view(-1, 3).t().contiguous()
    return Pieces(by_power, torch.tensor(outside).long(), torch.tensor(below).long())


def _rounded(value: int, divisor: int) -> int:
    """Return value / (divisor 2^GUARD_BITS), rounded to the nearest integer."""
    whole = divisor << GUARD_BITS
    return (value + whole // 2) // whole


class Table(Kind):
    """What a lookup in a table needs, for rows of shape (rows,).

    [r] (24 bits) and each owner's root of a point function of 2^n places (rows, 2); then the point function's
    corrections, blocks (rows, n, 2) and leaves (rows, 3), which both owners get; `prepared` makes of these the shares
    of 1, r_low and r_low^2, (3, rows, bins). A guard has the first of the three alone. Where results are tagged there
    are three more: the same times the row's key, which rank 0 derives as it does the masks of its weights.
    Dealer bytes for each row: 16 n + 24; for a guard, 16 n + 8; with tags, 16 n + 48.
    """

    def check(self, request: Request) -> None:
        """Require one shape of rows, and a table that can be fitted."""
        super().check(request)
        if len(request.shapes[0]) != 1:
            raise ProtocolError(f"a table takes rows of shape (n,), not {request.shapes[0]}")
        TableSpec.of(request)

    def is_shared(self, request: Request) -> bool:
        """Return that rank 1 needs the corrections too."""
        return True

    def weight_masks(self, request: Request, keys: MaskKeys) -> list[torch.Tensor]:
        """Derive the keys of the tags, if results are tagged."""
        n_keys = TableSpec.of(request).tags
        return [weight_mask(keys.batch, TAGS, (n_keys,), WORD)] if n_keys else []

    def layout(self, request: Request) -> list[tuple[Shape, int]]:
        """Return the layouts in the order that the class gives."""
        spec, (rows,) = TableSpec.of(request), request.shapes[0]
        return [((rows, spec.log_bins, 2), 64), ((rows, spec.n_shared), 64)]

    def draw(self, request: Request, stream: Stream, rank: int) -> list[torch.Tensor]:
        """Draw [r] and the owner's root."""
        return [stream.bits(request.shapes[0], TableSpec.BITS), stream.int64((*request.shapes[0], 2))]

    def correct(self, request: Request, share_0: list[torch.Tensor], share_1: list[torch.Tensor]) -> list[torch.Tensor]:
        """Compute the point function's corrections."""
        spec, r = TableSpec.of(request), reduce(share_0[0] + share_1[0], TableSpec.BITS)
        low = spec.step_of(r)
        payload = torch.stack([torch.ones_like(low), low, low * low][: spec.n_shared], dim=1)
        if spec.tags:
            payload = torch.cat([payload, payload * share_0[2].repeat(low.numel() // spec.tags)[:, None]], dim=1)
        # The work on a row takes some hundred bytes more than its corrections.
        parts = zip(
            *(torch.split(x, ROWS_AT_ONCE) for x in (share_0[1], share_1[1], r >> spec.bin_bits, payload)), strict=True
        )
        made = [point_function.corrections((a, b), at, values, spec.log_bins) for a, b, at, values in parts]
        return [torch.cat(tensors) for tensors in zip(*made, strict=True)]

    def prepared(self, request: Request, tensors: list[torch.Tensor], rank: int) -> list[torch.Tensor]:
        """Expand the point function, and fit the table before somebody waits for it."""
        r, root, levels, leaves = tensors
        spec = TableSpec.of(request)
        if r.device.type == "meta":
            return [r, leaves.t()[..., None].expand(-1, -1, spec.n_bins)]
        pieces(spec)
        return [r, point_function.expand(rank, root, levels, leaves)]

    def kept_bytes(self, request: Request) -> int:
        """Return the bytes of the expansion."""
        spec = TableSpec.of(request)
        return 8 * spec.n_shared * request.shapes[0][0] * spec.n_bins
