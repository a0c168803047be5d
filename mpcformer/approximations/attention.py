"""Forms of softmax over attention scores. The public mask multiplies; -10000 is never added (its square overflows).

Shapes: scores (B, A, L, L); mask (B, 1, 1, L) of 0 and 1; result (p, row) with p (B, A, L, L) and row the mean of the
row's unmasked numerators (B, A, L, 1), which is what the private reciprocal sees up to a power of two; 2quad-const has
none, and its row is what a private guard looks at.
"""

from collections.abc import Callable

import torch

QUAD_SHIFT = 5.0
# Added to 2ReLU's row mean: a row without a positive score must not divide by zero.
TWO_RELU_EPSILON = 0.02
# 2quad-const's divisor before training: the mean of (s + 5)^2 over scores of mean 0 and variance 1.
QUAD_DIVISOR = 26.0

Probabilities = tuple[torch.Tensor, torch.Tensor]


def two_quad(scores: torch.Tensor, mask: torch.Tensor) -> Probabilities:
    """p_j = m_j (s_j + 5)^2 / sum_j m_j (s_j + 5)^2.

    Valid while the row sum is not near zero, that is unless all scores are near -5.
    Source: Li et al., MPCFormer, ICLR 2023, section 3.1.
    """
    return _normalised(mask * (scores + QUAD_SHIFT) ** 2, mask, 0.0)


def two_quad_const(
    scores: torch.Tensor, mask: torch.Tensor, divisor: float | torch.Tensor = QUAD_DIVISOR
) -> Probabilities:
    """p_j = m_j (s_j + 5)^2 / (c n), n the number of unmasked keys, which is public; c learnt, one a layer.

    2Quad without its division: rows add up to about one, not to one. Valid for any scores; a row whose scores are far
    larger than those c was learnt on weighs more than others. Only c times the map behind attention matters, so the
    private model owner divides its weights by c, and nobody else learns it.
    Source: 2Quad as above; dividing by the length after Wortsman et al., Replacing softmax with ReLU in Vision
    Transformers, 2023; c is ours.
    """
    numerators = mask * (scores + QUAD_SHIFT) ** 2
    n_keys = mask.sum(-1, keepdim=True)
    return numerators / (divisor * n_keys), numerators.sum(-1, keepdim=True) / n_keys


def two_relu(scores: torch.Tensor, mask: torch.Tensor) -> Probabilities:
    """p_j = m_j relu(s_j) / (sum_j m_j relu(s_j) + 0.02 n), n the number of unmasked keys.

    Source: Mohassel and Zhang, SecureML, S&P 2017, section 5.3, as used by MPCFormer; the offset per key is ours.
    """
    return _normalised(mask * torch.relu(scores), mask, TWO_RELU_EPSILON)


def masked_softmax(scores: torch.Tensor, mask: torch.Tensor) -> Probabilities:
    """Softmax over the unmasked keys: masked ones have probability zero."""
    largest = scores.masked_fill(mask == 0, float("-inf")).amax(-1, keepdim=True)
    return _normalised(torch.exp((scores - largest).clamp(max=0)) * mask, mask, 0.0)


def _normalised(numerators: torch.Tensor, mask: torch.Tensor, epsilon: float) -> Probabilities:
    row_mean = numerators.sum(-1, keepdim=True) / mask.sum(-1, keepdim=True)
    return numerators / ((row_mean + epsilon) * mask.sum(-1, keepdim=True)), row_mean


SOFTMAX_FORMS: dict[str, Callable[[torch.Tensor, torch.Tensor], Probabilities]] = {
    "softmax": masked_softmax,
    "2quad": two_quad,
    "2quad-const": two_quad_const,
    "2relu": two_relu,
}
