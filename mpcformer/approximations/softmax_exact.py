"""Softmax itself, which engine `lift` computes by repeated squaring and engine `crypten` by an exponential."""

import math
from typing import Any

import torch

from mpcformer.approximations.forms import (
    CRYPTEN,
    LIFT,
    ExponentialRows,
    Probabilities,
    RepeatedSquaring,
    ScoreUnit,
    SoftmaxForm,
    normalised,
)

# The exponent of a row is at least 2^MIN_SQUARINGS; the base is squared twice before the first division.
MIN_SQUARINGS = 3
SCORE_MARGIN = 1.5


def masked_softmax(scores: torch.Tensor, mask: torch.Tensor) -> Probabilities:
    """Return the softmax over the unmasked keys; masked keys have probability zero."""
    largest = scores.masked_fill(mask == 0, float("-inf")).amax(-1, keepdim=True)
    return normalised(torch.exp((scores - largest).clamp(max=0)) * mask, mask)


def score_bound(low: float, high: float) -> float:
    """Return how large scores may be, from their calibrated range; larger ones are clamped, and reported."""
    return SCORE_MARGIN * max(-low, high, 1.0)


def squarings(bound: float) -> int:
    """Return n such that |score| / 2^n is at most 1, for scores up to `bound`."""
    return max(MIN_SQUARINGS, math.ceil(math.log2(bound)))


def squared_softmax(scores: torch.Tensor, mask: torch.Tensor, bound: float) -> torch.Tensor:
    """Return p_j proportional to m_j (1 + y_j + y_j^2 / 2)^(2^n) for y = clamp(s, -bound, bound) / 2^n.

    It is close to softmax, and the plaintext twin of what engine `lift` computes. Each squaring is followed by a
    division by the row's mean, so nothing grows, and the largest score is not needed. The base is the Taylor polynomial
    of exp, which bends s by about s^3 / (6 4^n). The bend is greatest at the ends of the range, where two scores that
    differ by one weigh 0.69 to 0.31 instead of 0.73 to 0.27.

    Args:
        scores: (B, A, L, L).
        mask: (B, 1, 1, L) of 0 and 1.
        bound: what `score_bound` returned.

    Returns:
        p (B, A, L, L).
    """
    n = squarings(bound)
    y = scores.clamp(-bound, bound) / 2.0**n
    p = (((1 + y) ** 2 + 1) * mask) ** 4
    for step in range(n - 1):
        p = p**2 if step else p
        p = p / p.sum(-1, keepdim=True) * mask.sum(-1, keepdim=True)
    return p / mask.sum(-1, keepdim=True)


def _crypten(ops: Any, scores: Any, unit: ScoreUnit) -> Any:
    # Masked keys take the public lower bound, so that the maximum is over the others.
    bounded = ops.times_integers(scores, unit.keys)
    bounded = ops.add_public(bounded, (unit.keys - 1).double() * unit.bound)
    largest = ops.maximum(bounded, dim=-1)
    return ops.exp_negative(ops.wrap(bounded.share - largest.share), bound=2 * unit.bound)


SOFTMAX = SoftmaxForm(
    name="softmax",
    title="softmax",
    description="exp(s_j) / sum_j exp(s_j), exact in plaintext",
    function=masked_softmax,
    rows=ExponentialRows(),
    private={LIFT: RepeatedSquaring(), CRYPTEN: _crypten},
)
