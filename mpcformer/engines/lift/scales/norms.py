"""LayerNorms in the engine: the scale of the residual before each, and its table or, if it is constant, its guard.

A constant LayerNorm is no operation of its own: the maps before and after it carry its factors. The stream before it is
computed in a unit. The unit makes a row's sum of squares a power of two when its variance is half of what the bounds
allow, because the guard compares with powers of two.
"""

import math
from dataclasses import dataclass

from mpcformer.engines.calibrated import CalibratedRanges, calibrated, widened
from mpcformer.engines.lift.scales.fixed_point import WIDE, Rings, Stream
from mpcformer.engines.lift.scales.tables import SLACK, table
from mpcformer.errors import RangeError
from mpcformer.modeling.description import NORM_PARTS, ModelDescription, norm_names
from mpcformer.modeling.ranges import STREAM_REACHES, norm_limit
from mpcformer.protocols.table import TableFunction

RSQRT_WIDTH, MAX_LOG_BINS = 0.5, 8
# Below its least scale, a stream is shifted so far that it no longer fills the bits in which it is opened.
FACTOR_ERROR, MIN_STREAM_SCALE = 1 / 128, WIDE.attention.scale
MAX_LOG_UNIT = 4
MAX_STREAM_SCALE = 18
# How many bits a usual entry of the smallest rows has: before a constant norm, where room is wanted behind one, and in
# compact rings.
CONSTANT_BITS, ROOMY_BITS, COMPACT_BITS = 11, 11, 10
# Compact rings carry rows of a length below 2^(LOG_LONGEST + 1), in the unit of their stream.
LOG_LONGEST = 17


@dataclass(frozen=True)
class Norm:
    """The public numbers of a LayerNorm.

    Args:
        scale: fraction bits of the stream before it.
        factor_scale: fraction bits of the rows' factors; 0 if it is constant.
        function: the tables of x^(-1/2) for the sum of squares; None if it is constant.
        unit: the real number that 1 stands for in the stream before it, and in the row after it if it is constant.
        guard_bits: if it is constant, the guard marks sums of squares from 2^(guard_bits + 1) on.
        limit: if it is constant, the variance at which the guard marks.
        stream: the rings of the stream before it and of the row behind it.
        divides_later: whether rows are not divided by their deviation, but what a map makes of them is.
    """

    scale: int
    factor_scale: int
    function: TableFunction | None
    unit: float = 1.0
    guard_bits: int = 0
    limit: float = 0.0
    stream: Stream = WIDE.attention
    divides_later: bool = False

    @property
    def op(self) -> str:
        """The kind of lifted mask under which the residual is opened."""
        return "length" if self.function is None or self.divides_later else "norm"

    @property
    def variance_limits(self) -> tuple[float, float]:
        """The interval in which a row's variance is never marked."""
        if self.function is None:
            return 0.0, self.limit / 2
        low, high = self.function.limits
        return low * self.unit**2, high * self.unit**2


def model_norms(config: ModelDescription, bounds: CalibratedRanges, rings: Rings = WIDE) -> dict[str, Norm]:
    """Return every LayerNorm by name. Compact rings carry no constant ones.

    Raises:
        RangeError: a range is missing, not positive, or wider than tables carry.
    """
    names, constant = norm_names(config.num_hidden_layers), config.constant_norms
    return {
        name: constant_norm(name, config.norm_width(name), bounds)
        if name in constant
        else norm(
            name,
            config.norm_width(name),
            config.layer_norm_eps,
            bounds,
            stream_of(name, rings),
            roomy=before in constant,
        )
        for before, name in zip(["", *names], names, strict=False)
    }


def stream_of(name: str, rings: Rings) -> Stream:
    """Return the stream before a LayerNorm."""
    if name == "embeddings":
        return rings.first
    return rings.attention if name.endswith(".attention") else rings.output


def _known_reach(name: str, bounds: CalibratedRanges) -> float | None:
    """Return what `stream_reach` does, or None where the ranges do not tell."""
    return stream_reach(name, bounds) if _name_of_reach(name) in bounds else None


def _name_of_reach(name: str) -> str:
    """Return the name of the range that tells how long the rows before a LayerNorm may be; "" for the embeddings'."""
    layer, _, part = name.rpartition(".")
    return f"{layer}.{dict(zip(NORM_PARTS, STREAM_REACHES, strict=True))[part]}" if layer else ""


def stream_reach(name: str, bounds: CalibratedRanges) -> float:
    """Return below which length a row before a LayerNorm of a layer stays for any text.

    Raises:
        RangeError: the ranges do not tell, or it is not positive.
    """
    reach = calibrated(bounds, _name_of_reach(name))[1]
    if not reach > 0:
        raise RangeError(f"calibrated range {name}: a reach of {reach} is not positive", "distil the student again")
    return reach


def largest_squares(name: str, hidden_size: int, bounds: CalibratedRanges) -> float:
    """Return the largest sum of squares of a row before a LayerNorm that its tables carry.

    Raises:
        RangeError: as `model_norms`.
    """
    return SLACK * hidden_size * _variance(name, bounds)[1]


def compact_unit(name: str, bounds: CalibratedRanges, stream: Stream) -> float:
    """Return the power of two in whose units the stream before a LayerNorm of compact rings is computed.

    Raises:
        RangeError: as `model_norms`.
    """
    low, high = _variance(name, bounds)
    finest = max(stream.scale, COMPACT_BITS + math.ceil(-math.log2(low) / 2))
    log_unit = stream.scale - min(finest, _largest_scale(high, stream))
    # However small rows are, they are made no larger than the longest one for any text allows.
    log_unit = max(log_unit, min(0, math.ceil(math.log2(stream_reach(name, bounds))) - LOG_LONGEST))
    if log_unit > MAX_LOG_UNIT:
        raise _too_large(name, high)
    return float(2.0**log_unit)


def _largest_scale(high: float, stream: Stream) -> int:
    """Return the scale at which the factor of rows of variance `high` is exact enough."""
    return min(MAX_STREAM_SCALE, stream.normal_scale + math.floor(math.log2(FACTOR_ERROR / math.sqrt(high))))


def _too_large(name: str, high: float) -> RangeError:
    return RangeError(
        f"calibrated range {name}.variance reaches {high:.3g}: too large for a LayerNorm in fixed point",
        "distil the student again, or use --engine crypten",
    )


def norm(
    name: str,
    hidden_size: int,
    epsilon: float,
    bounds: CalibratedRanges,
    stream: Stream = WIDE.attention,
    roomy: bool = False,
) -> Norm:
    """Return a LayerNorm that divides by each row's deviation.

    Args:
        name: one of `norm_names`.
        hidden_size: H.
        epsilon: what the LayerNorm adds to a variance.
        bounds: calibrated (low, high) by name.
        stream: the rings of the stream before it and of the row behind it.
        roomy: whether a constant norm stands before it. Rows are then longer for some text, and what attention or GeLU
            makes of them is longer still, so the ring of the stream gets all the room that the smallest rows leave.

    Raises:
        RangeError: as `model_norms`.
    """
    low, high = _variance(name, bounds)
    if not stream.is_compact:
        # Large factors need fewer bits; their rows are small and take the bits instead. A factor is rounded to a
        # multiple of 2^-factor_scale, which must not lengthen a normalised row by more than FACTOR_ERROR.
        log_small = math.ceil(-math.log2(low) / 2)
        # Behind large rows the largest unit decides: asking for more room never rejects a model.
        wide = max(ROOMY_BITS + log_small, MIN_STREAM_SCALE - MAX_LOG_UNIT)
        scale = wide if roomy else MIN_STREAM_SCALE + max(0, log_small)
        if (reach := _known_reach(name, bounds)) is not None:
            # Rows that may be long for some text take the room that they need, if the smallest rows leave it.
            scale = min(scale, max(wide, stream.bits - 2 - math.ceil(math.log2(reach))))
        scale = min(scale, _largest_scale(high, stream))
        # Where the stream would be too coarse for its ring, it is computed in units instead.
        log_unit = max(0, MIN_STREAM_SCALE - scale)
        if log_unit > MAX_LOG_UNIT:
            raise _too_large(name, high)
        scale, unit = scale + log_unit, 2.0**log_unit
    else:
        scale, unit = stream.scale, compact_unit(name, bounds, stream)
    factor_scale = stream.normal_scale - scale
    low, high, epsilon = (number / unit**2 for number in (low, high, epsilon))
    function = table(
        "rsqrt",
        low,
        high,
        2.0 ** (-2 * scale) / hidden_size,
        factor_scale,
        RSQRT_WIDTH,
        epsilon=epsilon,
        max_log_bins=MAX_LOG_BINS,
        ring=stream.lift,
    )
    return Norm(scale, factor_scale, function, unit, stream=stream)


def constant_norm(name: str, hidden_size: int, bounds: CalibratedRanges) -> Norm:
    """Return a LayerNorm that divides by a constant.

    Raises:
        RangeError: a range is missing, not positive, or beyond all numbers.
    """
    low, _ = _variance(name, bounds)
    limit = norm_limit(name, calibrated(bounds, f"{name}.variance")[1])
    log_length = math.ceil(math.log2(hidden_size))
    unit = math.sqrt(limit * hidden_size / 2.0 ** (log_length + 1))
    scale = CONSTANT_BITS + math.ceil(math.log2(unit / math.sqrt(low)))
    scale = max(MIN_STREAM_SCALE, min(MAX_STREAM_SCALE, scale))
    return Norm(scale, 0, None, unit, 2 * scale + log_length, limit)


def _variance(name: str, bounds: CalibratedRanges) -> tuple[float, float]:
    low, high = widened(*calibrated(bounds, f"{name}.variance"))
    if not 0 < low < high:
        raise RangeError(
            f"calibrated range {name}.variance = {low}..{high} is not positive", "distil the student again"
        )
    if high == math.inf:
        raise RangeError(f"calibrated range {name}.variance reaches beyond all numbers", "distil the student again")
    return low, high
