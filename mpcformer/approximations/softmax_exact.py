"""Softmax itself: engine `lift` squares an exponential repeatedly, and engine `crypten` subtracts the largest score."""

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

# The largest exponent before the first division: tables hold a row's mean between its power of e and the inverse.
MAX_EXPONENT = 4.0
SCORE_MARGIN = 1.5


def masked_softmax(scores: torch.Tensor, mask: torch.Tensor) -> Probabilities:
    """Return the softmax over the unmasked keys; masked keys have probability zero."""
    largest = scores.masked_fill(mask == 0, float("-inf")).amax(-1, keepdim=True)
    return normalised(torch.exp((scores - largest).clamp(max=0)) * mask, mask)


def score_bound(low: float, high: float) -> float:
    """Return how large scores may be, from their calibrated range; larger ones are clamped, and reported."""
    return SCORE_MARGIN * max(-low, high, 1.0)


def squarings(bound: float) -> int:
    """Return n >= 1 such that |score| / 2^n is at most MAX_EXPONENT, for scores up to `bound`."""
    return max(1, math.ceil(math.log2(bound / MAX_EXPONENT)))


def squared_softmax(scores: torch.Tensor, mask: torch.Tensor, bound: float) -> torch.Tensor:
    """Return p_j proportional to m_j exp(y_j)^(2^n) for y = clamp(s, -bound, bound) / 2^n.

    This is the softmax of the clamped scores, and the plaintext twin of what engine `lift` computes. Each squaring
    follows a division by the row's mean, so nothing grows, and the largest score is not needed.

    Args:
        scores: (B, A, L, L).
        mask: (B, 1, 1, L) of 0 and 1.
        bound: what `score_bound` returned.

    Returns:
        p (B, A, L, L).
    """
    n = squarings(bound)
    p = torch.exp(scores.clamp(-bound, bound) / 2.0**n) * mask
    for _ in range(n):
        p = (p / p.sum(-1, keepdim=True) * mask.sum(-1, keepdim=True)) ** 2
    return p / p.sum(-1, keepdim=True)


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
