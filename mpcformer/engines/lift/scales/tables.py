"""The public tables of a function of one number a row, from the range of that number."""

import math

from mpcformer.correlations.lifted import FACTOR_EXTRA_BITS
from mpcformer.correlations.table import GUARD, MAX_LOG_BINS, TableSpec
from mpcformer.errors import RangeError
from mpcformer.protocols.table import Argument, TableFunction
from mpcformer.ring.packing import WORD

_GUARD_BINS = 2.5
# An argument is multiplied and shifted to count steps; what a shift leaves of the ring must hold the count.
MULTIPLIER_BITS = 8
# Two bins of the guard are at most 1 / 15 of the range's upper end wide: tables stay right that much beyond it.
GUARD_LOG_BINS, SLACK = 7, 1.08


def table(
    name: str,
    low: float,
    high: float,
    unit: float,
    scale: int,
    width: float,
    *,
    max_log_bins: int,
    epsilon: float = 0.0,
    guarded: bool = True,
    ring: int = WORD,
) -> TableFunction:
    """Return the tables of a function of an integer times `unit`, where that product lies between `low` and `high`.

    Tables of positive numbers begin at zero, so that a number that is too small meets a mark and does not wrap around.

    Args:
        name: the function: reciprocal, rsqrt or tanh.
        low, high: the range.
        unit: the number that the integer 1 stands for.
        scale: fraction bits of the result.
        width: how wide the two bins of a quadratic may be, relative to the low end; for tanh in absolute numbers.
        max_log_bins: log2 of the most bins that one table may have; a wider range has two tables.
        epsilon: what rsqrt adds to its argument.
        guarded: whether numbers above the range are marked by a guard.
        ring: the width of the ring of the integer.

    Raises:
        RangeError: the range is too wide for two tables, or does not fit the ring.
    """
    bottom, finest = (low, width) if name == "tanh" else (0.0, width * low)
    slack = 1.0 if name == "tanh" else SLACK

    def argument(low: float, high: float, log_bins: int, split: float = 0.0) -> Argument:
        n_bins, top = 2.0**log_bins, high * slack
        bin_width = (top - bottom) / (n_bins - 2 * _GUARD_BINS - 1)
        # One step of the 24-bit argument is this many integers of the share: 2^shift / multiplier.
        step = bin_width * n_bins / 2.0**TableSpec.BITS / unit
        shift = min(MULTIPLIER_BITS + math.frexp(step)[1] - 1, ring - TableSpec.BITS)
        multiplier = math.floor(2.0**shift / step)
        if multiplier < 4:
            raise RangeError(
                f"the argument of a {name} of {high:.3g} in units of {unit:.3g} does not fit the ring",
                "distil the student again, or use --engine crypten",
            )
        step_real = 2.0**shift / multiplier * unit
        base = math.floor((bottom - _GUARD_BINS * bin_width) / step_real)
        spec = TableSpec(name, log_bins, base, step_real, low, top, scale + FACTOR_EXTRA_BITS, epsilon, split)
        return Argument(spec, multiplier, shift)

    guard, guard_bits = _guard_of(high, unit, ring) if guarded and name != "tanh" else (None, 0)

    def log_bins_to(high: float) -> int:
        return max(4, math.ceil(math.log2(2 * (high * slack - bottom) / finest + 2 * _GUARD_BINS + 1)))

    log_bins = log_bins_to(high)
    if log_bins <= max_log_bins:
        return TableFunction(argument(low, high, log_bins), guard=guard, guard_bits=guard_bits)
    split = math.sqrt(low * high)
    log_bins = math.ceil(math.log2(2 * high / split / width + 8))
    too_wide = RangeError(
        f"the calibrated range of a {name}, {low:.3g}..{high:.3g}, is too wide for its tables",
        "distil the student again, or use --engine crypten",
    )
    if log_bins > MAX_LOG_BINS:
        raise too_wide
    upper = argument(low, high, log_bins, split)
    reach = split + 2 * upper.spec.unit * 2.0**upper.spec.bin_bits
    log_bins = log_bins_to(reach)
    if log_bins > MAX_LOG_BINS:
        raise too_wide
    lower = argument(low, reach, log_bins)
    return TableFunction(upper, lower, guard, guard_bits)


def _guard_of(high: float, unit: float, ring: int) -> tuple[Argument, int]:
    """Return the guard that marks from a little above `high` up to 2^(bits + 1), and bits: 2^bits is above `high`."""
    bits = math.frexp(high * SLACK / unit)[1]
    # The guard reaches some bins beyond 2^(bits + 1), so that the bins that wrap around lie above it.
    shift, multiplier = bits + 1 - TableSpec.BITS + MULTIPLIER_BITS, 240
    if shift > ring - TableSpec.BITS:
        raise RangeError(
            f"a row's number of {high:.3g} in units of {unit:.3g} does not fit the ring",
            "distil the student again, or use --engine crypten",
        )
    spec = TableSpec(GUARD, GUARD_LOG_BINS, 0, 2.0**shift / multiplier * unit, 0.0, high, 0)
    return Argument(spec, multiplier, shift), bits
