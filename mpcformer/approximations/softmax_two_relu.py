"""2ReLU, a form of softmax."""

from typing import Any

import torch

from mpcformer.approximations.forms import (
    CRYPTEN,
    LIFT,
    DividedRows,
    Probabilities,
    ScoreUnit,
    SlopedScores,
    SoftmaxForm,
    normalised,
)

# It is added to the mean of a row: a row without a positive score must not divide by zero.
TWO_RELU_EPSILON = 0.02


def two_relu(scores: torch.Tensor, mask: torch.Tensor) -> Probabilities:
    """Return p_j = m_j relu(s_j) / (sum_j m_j relu(s_j) + 0.02 n) for n unmasked keys, see `SoftmaxForm`.

    Source: Mohassel and Zhang, SecureML, S&P 2017, section 5.3, as used by MPCFormer; the offset per key is ours.
    """
    return normalised(mask * torch.relu(scores), mask, TWO_RELU_EPSILON)


def _crypten(ops: Any, scores: Any, unit: ScoreUnit) -> Any:
    return ops.relu(scores)


TWO_RELU = SoftmaxForm(
    name="2relu",
    title="2ReLU",
    description="relu(s_j) / (sum_j relu(s_j) + 0.02 n) for n keys",
    function=two_relu,
    rows=DividedRows(degree=1, epsilon=TWO_RELU_EPSILON),
    private={LIFT: SlopedScores(below=0, above=1), CRYPTEN: _crypten},
)
