"""Tables of a smooth function of one private argument a row: bins rotated by the mask, with a quadratic in each.

An argument is a 24-bit number v that stands for the real value (v + base) unit. It is opened as c = (v + r) mod 2^24.
The top bits of c name a bin, and the next 11 bits x give the position in it. The dealer knows r, so it knows which
interval of v each bin covers. It fits the function there by a quadratic in x through three Chebyshev nodes and shares
the coefficients; both owners evaluate their shares at the public x, without a message. For a bin beyond the range the
dealer also shares a fresh random mark; for all other bins the mark is zero.

Where one table would need too many bins (because the function varies most at the low end), two share the work. The
upper table spans the whole range with coarse bins, is zero below `split`, and tells whether the argument lies there;
the lower table has fine bins. Numbers beyond 2^24 wrap around. A third table, the guard, therefore has marks but no
coefficients: its bins are wider and reach up to a power of two beyond the range, above which `protocols.guard` looks.

Error, for bins whose width is d times their lower end: 2 (d / 4)^3 relative for 1 / x, and 0.63 (d / 4)^3 for
x^(-1/2). The largest d is that of the bin that straddles the low end of the range; above it the error falls with the
cube.
"""

import math
from dataclasses import astuple, dataclass

import torch

from mpcformer.correlations.base import Kind
from mpcformer.correlations.requests import Request, Shape
from mpcformer.errors import ProtocolError
from mpcformer.ring.packing import reduce
from mpcformer.ring.random import Stream, fresh_key

LOG_STEPS = 11
GUARD = "guard"
FUNCTIONS = ("reciprocal", "rsqrt", "tanh", GUARD)
MAX_LOG_BINS = 12
MAX_BASE = 1 << 53  # float64 is not exact beyond


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
    def has_lower(self) -> bool:
        """Whether a lower table takes the arguments below `split`."""
        return self.split > 0

    def request(self, rows: int) -> Request:
        """Return the request for the dealer, for so many rows."""
        return Request("table", ((rows,),), op=self.function, bits=self.BITS, params=astuple(self)[1:])

    @staticmethod
    def of(request: Request) -> "TableSpec":
        """Read a request.

        Raises:
            ProtocolError: the request describes no table.
        """
        if request.op not in FUNCTIONS or len(request.params) != 8 or not all(map(math.isfinite, request.params)):
            raise ProtocolError(f"table {request.op!r} with parameters {request.params} is not defined")
        log_bins, base, unit, low, high, scale, epsilon, split = request.params
        if any(number != int(number) or abs(number) > MAX_BASE for number in (log_bins, base, scale)):
            raise ProtocolError(
                f"table {request.op!r}: of parameters {request.params}, bins, base and scale are integers"
            )
        spec = TableSpec(request.op, int(log_bins), int(base), unit, low, high, int(scale), epsilon, split)
        positive = low > 0 or request.op in ("tanh", GUARD)
        if not (3 <= spec.log_bins <= MAX_LOG_BINS and unit > 0 and low < high and positive and 0 <= scale <= 48):
            raise ProtocolError(f"table {spec} cannot be fitted")
        return spec


def evaluate(spec: TableSpec, argument: torch.Tensor) -> torch.Tensor:
    """Evaluate the function in float64."""
    if spec.function == "tanh":
        return torch.tanh(argument)
    positive = argument.clamp(min=spec.low / 4) + spec.epsilon
    return positive.reciprocal() if spec.function == "reciprocal" else positive.rsqrt()


def fit(spec: TableSpec, r: torch.Tensor) -> list[torch.Tensor]:
    """Fit the tables of each row to its mask. Only the dealer can do this.

    Args:
        spec: the table.
        r: the masks, (rows,).

    Returns:
        int64 coefficients (rows, bins, 3), marks (rows, bins) and, if there is a lower table, (rows, bins) with a one
        for each bin that belongs to it. A guard has marks only.
    """
    size, width = 1 << spec.BITS, 1 << spec.bin_bits
    starts = (torch.arange(spec.n_bins) * width - r[:, None]) & (size - 1)  # (rows, bins)
    if spec.function == GUARD:
        # The bin that wraps also covers the smallest numbers; its top lies beyond what the guard answers for.
        return [_marks((starts * spec.unit > spec.high) & (starts + width <= size))]
    nodes = torch.tensor([math.cos(math.pi * k / 6) for k in (5, 3, 1)], dtype=torch.float64)
    nodes = (nodes + 1) / 2 * (1 << LOG_STEPS)
    places = starts[..., None] + (nodes + 0.5) * 2.0 ** (spec.bin_bits - LOG_STEPS)  # (rows, bins, 3)
    values = evaluate(spec, (places + spec.base) * spec.unit) * 2.0**spec.scale
    middles = (starts + width / 2 + spec.base) * spec.unit
    half = spec.unit * width / 2
    outside = (middles < spec.low - half) | (middles > spec.high + half)
    below = (middles < spec.split) & (starts + width <= size)
    if spec.has_lower:
        values = values.masked_fill(below[..., None], 0.0)
        outside &= ~below
    vandermonde = torch.stack([nodes**0, nodes, nodes**2], dim=-1)  # (node, power)
    coefficients = (values @ torch.linalg.inv(vandermonde).T).round().to(torch.int64)
    return [coefficients, _marks(outside), *([below.long()] if spec.has_lower else [])]


def _marks(outside: torch.Tensor) -> torch.Tensor:
    # Neither owner may know the marks. They are new each time, so that they do not cancel.
    return Stream(fresh_key()).int64(outside.shape).masked_fill_(~outside, 0)


class Table(Kind):
    """Piecewise quadratics of a function on rotated bins, for rows of shape (rows,).

    [r] (24 bits), [coefficients]* (rows, bins, 3), [outside]* (rows, bins) over Z_2^32, which is zero in range and
    random outside; and, if the table is the upper one of two, [below]* (rows, bins), which tells whether the argument
    is the lower table's. A guard has [r] and [outside]* only.
    Dealer bytes for each row and bin: 28, with a lower table 36, for a guard 4.
    """

    def check(self, request: Request) -> None:
        """Require one shape of rows, and a table that can be fitted."""
        super().check(request)
        if len(request.shapes[0]) != 1:
            raise ProtocolError(f"a table takes rows of shape (n,), not {request.shapes[0]}")
        TableSpec.of(request)

    def layout(self, request: Request) -> list[tuple[Shape, int]]:
        """Return the layouts in the order that the class gives."""
        spec, (rows,) = TableSpec.of(request), request.shapes[0]
        if spec.function == GUARD:
            return [((rows, spec.n_bins), 32)]
        layout: list[tuple[Shape, int]] = [((rows, spec.n_bins, 3), 64), ((rows, spec.n_bins), 32)]
        return [*layout, ((rows, spec.n_bins), 64)] if spec.has_lower else layout

    def draw(self, request: Request, stream: Stream, rank: int) -> list[torch.Tensor]:
        """Draw [r] and, at rank 1, the tables."""
        drawn = [reduce(stream.int64(request.shapes[0]), TableSpec.BITS)]
        return drawn + self.draw_corrected(request, stream, rank)

    def correct(self, request: Request, share_0: list[torch.Tensor], share_1: list[torch.Tensor]) -> list[torch.Tensor]:
        """Compute the fitted tables minus rank 1's shares of them."""
        r = reduce(share_0[0] + share_1[0], TableSpec.BITS)
        values = fit(TableSpec.of(request), r)
        return [value - share for value, share in zip(values, share_1[1:], strict=True)]
