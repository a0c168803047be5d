"""Public constants of the private Newton iterations, which both owners derive from calibrated ranges, bit for bit.

Only +, -, *, / and sqrt are used, which IEEE 754 rounds correctly everywhere. A constant that differed in its last bit
between the two owners would make their shares useless.
"""

import math
from dataclasses import dataclass

from mpcformer.engines.calibrated import check_positive
from mpcformer.errors import RangeError

TARGET_ERROR = 2.0**-15
MAX_ITERATIONS = 14


@dataclass(frozen=True)
class NewtonPlan:
    """A Newton iteration that starts at y0 = c0 - c1 x and is valid for low <= x <= high.

    Args:
        low, high: the range that is covered, margin included.
        c0, c1: the linear start.
        iterations: the number of steps until the largest relative error is below 2^-15.
    """

    low: float
    high: float
    c0: float
    c1: float
    iterations: int


def reciprocal_plan(low: float, high: float) -> NewtonPlan:
    """Return the iteration y <- y (2 - x y) for 1/x, from the best linear start on [low, high].

    Each step squares the error e = 1 - x y. The largest error of the start is ((r - 1) / (r + 1))^2 with
    r = sqrt(high / low) after the change of variable; it is reached at both ends and in the middle.
    Source: Schulte, Omar, Swartzlander, Optimal Initial Approximations for the Newton-Raphson Division, Computing 1994.

    Raises:
        RangeError: the range is empty, not positive, or too wide.
    """
    check_positive("reciprocal", low, high)
    c1 = 8 / (low * low + 6 * low * high + high * high)
    c0 = c1 * (low + high)
    error = 1 - low * (c0 - c1 * low)
    steps = 0
    while error > TARGET_ERROR:
        error, steps = error * error, steps + 1
    return _checked("reciprocal", NewtonPlan(low, high, c0, c1, steps))


def rsqrt_plan(low: float, high: float) -> NewtonPlan:
    """Return the iteration y <- y (3 - x y^2) / 2 for x^(-1/2), from the chord on [low, high], scaled down.

    With t = y sqrt(x), a step is t <- t (3 - t^2) / 2. The chord has t = 1 at both ends and t = R > 1 between them.
    Scaled by s with s^2 = 3 / (R^2 + R + 1), ends and middle give the same t after the first step.

    Raises:
        RangeError: the range is empty, not positive, or too wide.
    """
    check_positive("inverse square root", low, high)
    slope = (1 / math.sqrt(low) - 1 / math.sqrt(high)) / (high - low)
    at_zero = 1 / math.sqrt(low) + slope * low
    largest = 2 * at_zero / 3 * math.sqrt(at_zero / (3 * slope))
    scale = math.sqrt(3 / (largest * largest + largest + 1))
    t, steps = scale, 0
    while 1 - t > TARGET_ERROR:
        t, steps = t * (3 - t * t) / 2, steps + 1
    return _checked("inverse square root", NewtonPlan(low, high, at_zero * scale, slope * scale, steps))


def _checked(name: str, plan: NewtonPlan) -> NewtonPlan:
    if plan.iterations > MAX_ITERATIONS:
        raise RangeError(
            f"the calibrated range of a {name}, {plan.low:.3g}..{plan.high:.3g}, needs {plan.iterations} Newton steps"
            f" (at most {MAX_ITERATIONS})",
            "distil the student again, or calibrate it on more typical sentences",
        )
    return plan
