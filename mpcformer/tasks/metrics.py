"""GLUE's own metrics, from scikit-learn and scipy. Scores are fractions, not per cent."""

import warnings
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from sklearn import metrics as sk

from mpcformer.tasks.registry import Task

Array = NDArray[np.float64]


def _correlation(function: Callable[[Array, Array], float]) -> Callable[[Array, Array], float]:
    def score(labels: Array, predictions: Array) -> float:
        # A constant has no correlation; GLUE's server scores it 0, and JSON has no NaN.
        if len(labels) < 2 or np.ptp(labels) == 0 or np.ptp(predictions) == 0:
            return 0.0
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return float(function(labels, predictions))

    return score


METRICS: dict[str, Callable[[Array, Array], float]] = {
    "accuracy": lambda labels, predictions: float(sk.accuracy_score(labels, predictions)),
    "f1": lambda labels, predictions: float(sk.f1_score(labels, predictions, zero_division=0.0)),
    "matthews": lambda labels, predictions: float(sk.matthews_corrcoef(labels, predictions)),
    "pearson": _correlation(lambda a, b: stats.pearsonr(a, b).statistic),
    "spearman": _correlation(lambda a, b: stats.spearmanr(a, b).statistic),
}


def predictions_of(task: Task, logits: NDArray[np.float32]) -> Array:
    """(N, C) logits -> (N,) class indices; for regression the value, clipped to the task's scale."""
    if task.is_regression:
        values: Array = np.clip(logits[:, 0].astype(np.float64), *task.label_range)
        return values
    labels: Array = np.argmax(logits, axis=1).astype(np.float64)
    return labels


def compute_metrics(
    task: Task, logits: NDArray[np.float32], labels: Sequence[float], groups: Sequence[str] | None = None
) -> dict[str, float]:
    """The task's metrics; where several splits were read, each apart, as accuracy_matched and accuracy_mismatched.

    Args:
        task: says which metrics.
        logits: (N, C).
        labels: (N,).
        groups: (N,) split names.
    """
    predictions, truth = predictions_of(task, logits), np.asarray(labels, dtype=np.float64)
    names = sorted(set(groups or [""]))
    if len(names) == 1:
        return {metric: METRICS[metric](truth, predictions) for metric in task.metrics}
    member = np.asarray(groups)
    return {
        f"{metric}_{name.removeprefix('validation_')}": METRICS[metric](
            truth[member == name], predictions[member == name]
        )
        for name in names
        for metric in task.metrics
    }


def primary_score(scores: dict[str, float]) -> float:
    """One number: the mean of the task's metrics, as GLUE averages them."""
    return sum(scores.values()) / len(scores)


def agreement(task: Task, left: NDArray[np.float32], right: NDArray[np.float32], tolerance: float) -> float:
    """The share of examples on which two models agree: equal labels, or values within `tolerance` for regression."""
    a, b = predictions_of(task, left), predictions_of(task, right)
    return float((np.abs(a - b) < tolerance).mean()) if task.is_regression else float((a == b).mean())
