"""GeLU itself, which private engines compute to within 0.0015 (`lift`) and 0.0005 (`crypten`)."""

from decimal import Decimal
from typing import Any

import torch
from torch.nn import functional as F

from mpcformer.approximations.forms import CRYPTEN, LIFT, GeluForm, LiftWindow
from mpcformer.approximations.lines import Lines

# Engine `lift` computes GeLU by lines on [-4, 4), as 0 below and as x above. At the ends both differ by 0.00013.
GELU_ERROR = 0.0015
_PI = Decimal("3.14159265358979323846264338327950288419716939937510582097494459")


def exact_gelu(x: Decimal) -> Decimal:
    """Return x (1 + erf(x / sqrt 2)) / 2, for |x| below 5, with the digits of the decimal context less some ten."""
    z = x / Decimal(2).sqrt()
    term, total, n = z, Decimal(0), 0
    while abs(term) > Decimal("1e-50"):
        total += term / (2 * n + 1)
        n += 1
        term *= -z * z / n
    return x / 2 + x * total / _PI.sqrt()


LINES = Lines(exact_gelu, scale=11, log_width=14, slope_scale=6)


def piecewise_gelu(x: torch.Tensor) -> torch.Tensor:
    """Return GeLU to within GELU_ERROR, elementwise: the plaintext twin of what engine `lift` computes."""
    end = 2.0 ** (LINES.log_width - 1 - LINES.scale)
    return torch.where(x.abs() < end, LINES(x), x.clamp(min=0))


def _crypten(ops: Any, x: Any) -> Any:
    return ops.gelu(x)


GELU = GeluForm(
    name="gelu",
    title="GeLU",
    description="x Phi(x), exact in plaintext",
    function=F.gelu,
    private={LIFT: LiftWindow(LINES, bits=24, down=4, result_shift=4), CRYPTEN: _crypten},
)
