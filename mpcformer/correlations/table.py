"""Tables of a smooth function for one private argument a row: bins rotated by the mask, a quadratic in each.

An argument is a 24-bit number v with the real value (v + base) unit. It is opened as c = (v + r) mod 2^24. The top bits
of c name a bin, the next 11 bits x the place in it. The dealer knows r, so it knows which interval of v each bin is,
fits f there by a quadratic in x through three Chebyshev nodes, and shares the coefficients: both owners evaluate theirs
at the public x, without a message. A bin beyond the range also holds a fresh random mark instead of zero.

Where one table would need too many bins (f varies most at the low end), two share the work: the upper one spans the
whole range with coarse bins, zero below `split`, and says whether the argument lies there; the lower has fine bins.
As numbers beyond 2^24 wrap, a third table, the guard, has no coefficients, only marks: its bins are wider and reach up
to a power of two beyond the range, above which `protocols.guard` looks.

Error: 1 / x, with bins of width d times their lower end: 2 (d / 4)^3 relative; x^(-1/2): 0.63 (d / 4)^3. The largest d
is that of the bin that straddles the low end of the range; farther up the error falls with the cube.
"""

import math
from dataclasses import astuple, dataclass

import torch

from mpcformer.correlations.requests import Request
from mpcformer.errors import ProtocolError
from mpcformer.ring.random import Stream, fresh_key

LOG_STEPS = 11
GUARD = "guard"
FUNCTIONS = ("reciprocal", "rsqrt", "tanh", GUARD)
MAX_LOG_BINS = 12
MAX_BASE = 1 << 53  # beyond, float64 is not exact


@dataclass(frozen=True)
class TableSpec:
    """One table; public.

    Args:
        function: of FUNCTIONS.
        log_bins: log2 of the number of bins.
        base, unit: the real argument is (v + base) unit.
        low, high: the range; bins beyond it are marked.
        scale: fraction bits of the result, guard bits included.
        epsilon: added to the argument.
        split: where the lower table takes over; 0: there is none.
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
        """Bins a row."""
        return 1 << self.log_bins

    @property
    def bin_bits(self) -> int:
        """log2 of a bin's width in v."""
        return self.BITS - self.log_bins

    @property
    def has_lower(self) -> bool:
        """Whether a lower table takes the arguments below `split`."""
        return self.split > 0

    def request(self, rows: int) -> Request:
        """What to ask the dealer for."""
        return Request("table", ((rows,),), op=self.function, bits=self.BITS, params=astuple(self)[1:])

    @staticmethod
    def of(request: Request) -> "TableSpec":
        """The table that a request describes.

        Raises:
            ProtocolError: it describes none.
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
    """The function in float64."""
    if spec.function == "tanh":
        return torch.tanh(argument)
    positive = argument.clamp(min=spec.low / 4) + spec.epsilon
    return positive.reciprocal() if spec.function == "reciprocal" else positive.rsqrt()


def fit(spec: TableSpec, r: torch.Tensor) -> list[torch.Tensor]:
    """Coefficients (rows, bins, 3), marks (rows, bins) and, with a lower table, which bins are its; int64.

    Dealer only. A guard gives its marks alone.
    """
    size, width = 1 << spec.BITS, 1 << spec.bin_bits
    starts = (torch.arange(spec.n_bins) * width - r[:, None]) & (size - 1)  # (rows, bins)
    if spec.function == GUARD:
        # The bin that wraps also holds the smallest numbers; its top lies beyond what the guard answers for.
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
    # Unknown to both owners, and new each time: marks do not cancel.
    return Stream(fresh_key()).int64(outside.shape).masked_fill_(~outside, 0)
