"""A function as many lines in a window, in integers: what engine `lift` computes for GeLU and for an exponential.

Both owners compute the lines, and every bit of a share counts: a number that differs by one between two processors
would make the result random. So there are integers and decimals here, and no floating point.
"""

from collections.abc import Callable
from dataclasses import dataclass
from decimal import ROUND_HALF_EVEN, Context, Decimal, localcontext
from functools import cached_property

import torch

DECIMALS = 60
N_LINES = 128


@dataclass(frozen=True)
class Lines:
    """A function on [-2^(log_width - 1), 2^(log_width - 1)), in steps of 2^-scale, as N_LINES lines.

    A line serves the numbers on both sides of its place, as far as the neighbouring places.

    Args:
        function: the function, computed with DECIMALS digits.
        scale: fraction bits of the argument.
        log_width: log2 of the window's width in steps.
        slope_scale: fraction bits of the slopes; values have `scale` more.
    """

    function: Callable[[Decimal], Decimal]
    scale: int
    log_width: int
    slope_scale: int

    @property
    def value_scale(self) -> int:
        """Fraction bits of the values."""
        return self.scale + self.slope_scale

    @property
    def step(self) -> int:
        """The distance between places, in steps."""
        return (1 << self.log_width) // N_LINES

    @property
    def first(self) -> int:
        """The place of the first line, in steps."""
        return -(1 << (self.log_width - 1))

    @cached_property
    def fitted(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The value and the slope of each line at its place: the chord of both sides, half way to the function."""
        with localcontext(Context(prec=DECIMALS, rounding=ROUND_HALF_EVEN)):
            places = range(self.first - self.step, self.first + (N_LINES + 1) * self.step, self.step)
            found = [self.function(Decimal(place) / (1 << self.scale)) * (1 << self.value_scale) for place in places]
            values, slopes = [], []
            for before, at, after in zip(found, found[1:], found[2:], strict=False):
                slope = int(((after - before) / (2 * self.step)).to_integral_value())
                left = (at, before + slope * self.step, after - slope * self.step)
                values.append(int(((max(left) + min(left)) / 2).to_integral_value()))
                slopes.append(slope)
        return tuple(values), tuple(slopes)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Return what the line of the place below each number gives, for numbers in the window: the plaintext twin."""
        steps = x * 2.0**self.scale - self.first
        index = (steps / self.step).floor().clamp(0, N_LINES - 1).long()
        values, slopes = (torch.tensor(numbers, dtype=x.dtype) for numbers in self.fitted)
        return (values[index] + slopes[index] * (steps - index * self.step)) * 2.0**-self.value_scale
