"""Forms of GeLU."""

from collections.abc import Callable

import torch
from torch.nn import functional as F

QUAD_COEFFICIENTS = (0.125, 0.25, 0.5)


def quad(x: torch.Tensor) -> torch.Tensor:
    """0.125 x^2 + 0.25 x + 0.5 = (x + 1)^2 / 8 + 3/8, elementwise.

    Valid for any x; near GeLU only for |x| < 2, which is why the student is distilled.
    Source: Li et al., MPCFormer, ICLR 2023, section 3.1 (its benchmark code swaps the last two coefficients).
    """
    a, b, c = QUAD_COEFFICIENTS
    return (a * x + b) * x + c


GELU_FORMS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "gelu": F.gelu,
    "quad": quad,
    "relu": torch.relu,
}
