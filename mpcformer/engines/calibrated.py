"""Calibrated ranges as both engines need them: looked up by name, widened by a margin, and scaled by powers of two."""

import math
from collections.abc import Mapping

from mpcformer.errors import RangeError

MARGIN = 1.5

CalibratedRanges = Mapping[str, tuple[float, float]]


def calibrated(ranges: CalibratedRanges, name: str) -> tuple[float, float]:
    """Return the calibrated range (low, high) of that name.

    Raises:
        RangeError: there is none.
    """
    if name not in ranges:
        raise RangeError(f"calibrated range {name} is missing from ranges.json", "distil the student again")
    return ranges[name]


def widened(low: float, high: float) -> tuple[float, float]:
    """Return the range with the safety margin on both sides; a single point is widened too."""
    return low / MARGIN, high * MARGIN


def even_shift(low: float, high: float) -> int:
    """Return the even s that brings sqrt(low high) 2^-s nearest to 1: scaling by 2^-s keeps fixed point accurate.

    Raises:
        RangeError: the range is empty or not positive.
    """
    check_positive("scaled value", low, high)
    middle, shift = low * high, 0
    while middle >= 4:
        middle, shift = middle / 16, shift + 2
    while middle < 0.25:
        middle, shift = middle * 16, shift - 2
    return shift


def check_positive(name: str, low: float, high: float) -> None:
    """Refuse a range that is empty, infinite or not positive.

    Args:
        name: what the range is of, for the error.

    Raises:
        RangeError: as said.
    """
    if not (0 < low < high < math.inf):
        raise RangeError(
            f"the calibrated range of a {name}, {low}..{high}, is not positive", "distil the student again"
        )
