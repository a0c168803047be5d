"""2Quad, MPCFormer's form of softmax."""

from typing import Any

import torch

from mpcformer.approximations.forms import (
    CRYPTEN,
    LIFT,
    DividedRows,
    Probabilities,
    ScoreUnit,
    SoftmaxForm,
    SquaredScores,
    normalised,
)

QUAD_SHIFT = 5.0


def two_quad(scores: torch.Tensor, mask: torch.Tensor) -> Probabilities:
    """Return p_j = m_j (s_j + 5)^2 / sum_j m_j (s_j + 5)^2, see `SoftmaxForm`.

    Valid while the row sum is not near zero, that is unless all scores are near -5.
    Source: Li et al., MPCFormer, ICLR 2023, section 3.1.
    """
    return normalised(mask * (scores + QUAD_SHIFT) ** 2, mask)


def shifted_squares(ops: Any, scores: Any, unit: ScoreUnit) -> Any:
    """Return the shared numerators (s + 5)^2 on engine `crypten`."""
    return ops.square(ops.add_public(scores, QUAD_SHIFT * unit.one))


TWO_QUAD = SoftmaxForm(
    name="2quad",
    title="2Quad",
    description="(s_j + 5)^2 / sum_j (s_j + 5)^2",
    function=two_quad,
    rows=DividedRows(degree=2),
    square_shift=QUAD_SHIFT,
    private={LIFT: SquaredScores(QUAD_SHIFT), CRYPTEN: shifted_squares},
)
