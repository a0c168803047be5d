"""GeLU itself, which private engines compute to within 0.0022 (`lift`) and 0.0005 (`crypten`)."""

from itertools import pairwise
from typing import Any

import torch
from torch.nn import functional as F

from mpcformer.approximations.forms import CRYPTEN, LIFT, GeluForm, LiftPieces, no_longer

# Engine `lift` computes GeLU by quadratics between thresholds, 0 below the first threshold and x above the last one.
# All numbers are integers: thresholds at GELU_INPUT_SCALE; coefficients of 1, x and x^2 at GELU_SCALE,
# GELU_SCALE - GELU_INPUT_SCALE and GELU_SCALE - 2 GELU_INPUT_SCALE. Nelder-Mead found the knots of least largest error;
# each piece is the minimax line after its rounded square. They are literals, because both owners need the same bits.
GELU_INPUT_SCALE, GELU_SCALE = 11, 29
GELU_THRESHOLDS = (-6554, -4198, -2636, -988, 856, 2484, 4310, 6554)
GELU_COEFFICIENTS = (
    (-168031023, -51621, -4),
    (-202557133, -63912, -5),
    (-37060871, 66897, 21),
    (-121482, 131362, 50),
    (-28252530, 184665, 24),
    (-190183832, 318940, -4),
    (-167339423, 313653, -4),
    (0, 1 << (GELU_SCALE - GELU_INPUT_SCALE)),
)
GELU_ERROR = 0.0022


def piecewise_gelu(x: torch.Tensor) -> torch.Tensor:
    """Return GeLU to within GELU_ERROR, elementwise: the plaintext twin of what engine `lift` computes."""
    index = torch.bucketize(x * 2.0**GELU_INPUT_SCALE, torch.tensor(GELU_THRESHOLDS, dtype=x.dtype), right=True)
    table = torch.zeros(len(GELU_THRESHOLDS) + 1, 3, dtype=x.dtype)
    for n, coefficients in enumerate(GELU_COEFFICIENTS):
        for power, value in enumerate(coefficients):
            table[n + 1, power] = value * 2.0 ** (power * GELU_INPUT_SCALE - GELU_SCALE)
    c = table[index]
    return c[..., 0] + c[..., 1] * x + c[..., 2] * x * x


def _crypten(ops: Any, x: Any) -> Any:
    return ops.gelu(x)


# The last piece counts from the last threshold on.
_PARTS = [*pairwise(GELU_THRESHOLDS), GELU_THRESHOLDS[-1:]]
GELU = GeluForm(
    name="gelu",
    title="GeLU",
    description="x Phi(x), exact in plaintext",
    function=F.gelu,
    longest=no_longer,
    private={
        LIFT: LiftPieces(
            pieces=tuple(zip(_PARTS, GELU_COEFFICIENTS, strict=True)),
            scale=GELU_INPUT_SCALE,
            bits=24,
            result_scale=GELU_SCALE,
            result_shift=16,
        ),
        CRYPTEN: _crypten,
    },
)
