"""2quad-const: 2Quad with a learnt constant in place of its division."""

import torch

from mpcformer.approximations.forms import CRYPTEN, LIFT, ConstantRows, Probabilities, SoftmaxForm, SquaredScores
from mpcformer.approximations.softmax_two_quad import QUAD_SHIFT, shifted_squares

# The divisor before training: the mean of (s + 5)^2 over scores of mean 0 and variance 1.
QUAD_DIVISOR = 26.0


def two_quad_const(
    scores: torch.Tensor, mask: torch.Tensor, divisor: float | torch.Tensor = QUAD_DIVISOR
) -> Probabilities:
    """Return p_j = m_j (s_j + 5)^2 / (c n), for n unmasked keys (n is public) and a learnt c, see `SoftmaxForm`.

    This is 2Quad without its division: rows add up to about one, not to one. It is valid for any scores, but a row
    whose scores are far larger than those on which c was learnt weighs more than others. Only c times the map behind
    attention matters, so the private model owner divides its weights by c, and nobody else learns c.
    Source: 2Quad as `two_quad`; dividing by the length after Wortsman et al., Replacing softmax with ReLU in Vision
    Transformers, 2023; c is ours.
    """
    numerators = mask * (scores + QUAD_SHIFT) ** 2
    n_keys = mask.sum(-1, keepdim=True)
    return numerators / (divisor * n_keys), numerators.sum(-1, keepdim=True) / n_keys


TWO_QUAD_CONST = SoftmaxForm(
    name="2quad-const",
    title="2Quad-const",
    description="(s_j + 5)^2 / (c n) for n keys, c learnt",
    function=two_quad_const,
    rows=ConstantRows(degree=2, divisor=QUAD_DIVISOR),
    square_shift=QUAD_SHIFT,
    private={LIFT: SquaredScores(QUAD_SHIFT), CRYPTEN: shifted_squares},
)
