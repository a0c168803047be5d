"""What the private engine `mpcformer` computes for the exact forms: GeLU in pieces, softmax by repeated squaring.

Plaintext twins of the private computation, in floating point. docs/results.md measures what a teacher that was never
distilled loses by them.
"""

import math

import torch

# GeLU by quadratics between thresholds, 0 below the first and x above the last. Integers: thresholds at
# GELU_INPUT_SCALE; coefficients of 1, x and x^2 at GELU_SCALE, GELU_SCALE - GELU_INPUT_SCALE and
# GELU_SCALE - 2 GELU_INPUT_SCALE. Knots found by Nelder-Mead for the least largest error, each piece's minimax line
# after its rounded square. Literals, because both owners must have the same bits.
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

# A row's exponent is at least 2^MIN_SQUARINGS of the base's; the base is squared twice before the first division.
MIN_SQUARINGS = 3
SCORE_MARGIN = 1.5


def piecewise_gelu(x: torch.Tensor) -> torch.Tensor:
    """GeLU within GELU_ERROR, elementwise."""
    index = torch.bucketize(x * 2.0**GELU_INPUT_SCALE, torch.tensor(GELU_THRESHOLDS, dtype=x.dtype), right=True)
    table = torch.zeros(len(GELU_THRESHOLDS) + 1, 3, dtype=x.dtype)
    for n, coefficients in enumerate(GELU_COEFFICIENTS):
        for power, value in enumerate(coefficients):
            table[n + 1, power] = value * 2.0 ** (power * GELU_INPUT_SCALE - GELU_SCALE)
    c = table[index]
    return c[..., 0] + c[..., 1] * x + c[..., 2] * x * x


def score_bound(low: float, high: float) -> float:
    """How large scores may be, from their calibrated range; larger ones are clamped, and reported."""
    return SCORE_MARGIN * max(-low, high, 1.0)


def squarings(bound: float) -> int:
    """n, so that |score| / 2^n is at most 1."""
    return max(MIN_SQUARINGS, math.ceil(math.log2(bound)))


def squared_softmax(scores: torch.Tensor, mask: torch.Tensor, bound: float) -> torch.Tensor:
    """p_j proportional to m_j (1 + y_j + y_j^2 / 2)^(2^n) with y = clamp(s, -bound, bound) / 2^n: close to softmax.

    Each squaring is followed by a division by the row's mean, so nothing grows: the largest score is not needed.
    The base is exp's own Taylor polynomial, so s is bent by about s^3 / (6 4^n), most at the ends of its range, where
    two scores that differ by one weigh 0.69 to 0.31 instead of 0.73 to 0.27.

    Args:
        scores: (B, A, L, L). mask: (B, 1, 1, L). bound: from `score_bound`.
    """
    n = squarings(bound)
    y = scores.clamp(-bound, bound) / 2.0**n
    p = (((1 + y) ** 2 + 1) * mask) ** 4
    for step in range(n - 1):
        p = p**2 if step else p
        p = p / p.sum(-1, keepdim=True) * mask.sum(-1, keepdim=True)
    return p / mask.sum(-1, keepdim=True)
