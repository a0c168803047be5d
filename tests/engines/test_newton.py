"""The Newton plans against the plaintext recurrence they stand for."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpcformer.engines.calibrated import even_shift, widened
from mpcformer.engines.crypten.newton import TARGET_ERROR, reciprocal_plan, rsqrt_plan
from mpcformer.errors import RangeError

ranges = st.tuples(st.floats(0.02, 5.0), st.floats(1.05, 60.0)).map(lambda t: (t[0], t[0] * t[1]))


@given(ranges)
def test_reciprocal_converges_on_the_whole_range_and_not_by_more_steps_than_needed(bounds: tuple[float, float]) -> None:
    plan = reciprocal_plan(*bounds)
    x = np.geomspace(*bounds, 1000)

    def error(steps: int) -> float:
        y = plan.c0 - plan.c1 * x
        for _ in range(steps):
            y = y * (2 - x * y)
        return float(np.abs(x * y - 1).max())

    assert error(plan.iterations) <= TARGET_ERROR * 1.001
    assert plan.iterations == 0 or error(plan.iterations - 1) > TARGET_ERROR


@given(ranges)
def test_rsqrt_converges_on_the_whole_range_and_not_by_more_steps_than_needed(bounds: tuple[float, float]) -> None:
    plan = rsqrt_plan(*bounds)
    x = np.geomspace(*bounds, 1000)

    def error(steps: int) -> float:
        y = plan.c0 - plan.c1 * x
        for _ in range(steps):
            y = y * (3 - x * y * y) / 2
        return float(np.abs(y * np.sqrt(x) - 1).max())

    assert error(plan.iterations) <= TARGET_ERROR * 1.001
    assert plan.iterations <= 1 or error(plan.iterations - 1) > TARGET_ERROR


@given(st.floats(1e-3, 1e3), st.floats(1.01, 1e3))
def test_even_shift_brings_the_middle_near_one(low: float, ratio: float) -> None:
    shift = even_shift(low, low * ratio)
    assert shift % 2 == 0
    assert 0.5 <= math.sqrt(low * low * ratio) * 2.0**-shift <= 2.0


@pytest.mark.parametrize("bounds", [(0.0, 1.0), (-1.0, 1.0), (2.0, 1.0), (1.0, math.inf), (math.nan, 1.0)])
def test_ranges_that_are_none(bounds: tuple[float, float]) -> None:
    for plan in (reciprocal_plan, rsqrt_plan, even_shift):
        with pytest.raises(RangeError, match="not positive"):
            plan(*bounds)


def test_a_range_too_wide_says_how_many_steps_it_would_take() -> None:
    with pytest.raises(RangeError, match=r"needs .* Newton steps"):
        reciprocal_plan(1e-4, 1e4)


def test_a_single_point_is_widened() -> None:
    low, high = widened(2.0, 2.0)
    assert low < 2.0 < high
