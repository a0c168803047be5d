"""Quad, MPCFormer's form of GeLU."""

from typing import Any

import torch

from mpcformer.approximations.forms import CRYPTEN, LIFT, GeluForm, LiftSquare, ShiftedSquare

QUAD_COEFFICIENTS = (0.125, 0.25, 0.5)
SQUARE = ShiftedSquare(factor=0.125, shift=1.0, offset=0.375)


def quad(x: torch.Tensor) -> torch.Tensor:
    """Return 0.125 x^2 + 0.25 x + 0.5 = (x + 1)^2 / 8 + 3/8, elementwise.

    Valid for any x. It is near GeLU only for |x| < 2, which is why the student is distilled.
    Source: Li et al., MPCFormer, ICLR 2023, section 3.1 (its benchmark code swaps the last two coefficients).
    """
    a, b, c = QUAD_COEFFICIENTS
    return (a * x + b) * x + c


def _crypten(ops: Any, x: Any) -> Any:
    eighth = ops.square(ops.add_public(x, SQUARE.shift), shift=3)
    return ops.add_public(eighth, SQUARE.offset)


QUAD = GeluForm(
    name="quad",
    title="Quad",
    description="(x + 1)^2 / 8 + 3/8",
    function=quad,
    square=SQUARE,
    private={LIFT: LiftSquare(SQUARE, scale=13, bits=32, result_shift=16), CRYPTEN: _crypten},
)
