"""The metrics of GLUE, from scikit-learn and scipy. Scores are fractions, not percentages.

Both libraries are loaded when a score is computed, because every command and the data owner load this module and few of
them compute scores.
"""

import warnings
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from mpcformer.tasks.registry import Task

Array = NDArray[np.float64]


def _correlation(function: Callable[[Array, Array], float]) -> Callable[[Array, Array], float]:
    def score(labels: Array, predictions: Array) -> float:
        # The correlation of a constant is undefined. GLUE's server scores it 0, and JSON has no NaN.
        if len(labels) < 2 or np.ptp(labels) == 0 or np.ptp(predictions) == 0:
            return 0.0
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return float(function(labels, predictions))

    return score


def _accuracy(labels: Array, predictions: Array) -> float:
    from sklearn.metrics import accuracy_score

    return float(accuracy_score(labels, predictions))


def _f1(labels: Array, predictions: Array) -> float:
    from sklearn.metrics import f1_score

    return float(f1_score(labels, predictions, zero_division=0.0))


def _matthews(labels: Array, predictions: Array) -> float:
    from sklearn.metrics import matthews_corrcoef

    return float(matthews_corrcoef(labels, predictions))


def _pearson(labels: Array, predictions: Array) -> float:
    from scipy.stats import pearsonr

    return float(pearsonr(labels, predictions).statistic)


def _spearman(labels: Array, predictions: Array) -> float:
    from scipy.stats import spearmanr

    return float(spearmanr(labels, predictions).statistic)


METRICS: dict[str, Callable[[Array, Array], float]] = {
    "accuracy": _accuracy,
    "f1": _f1,
    "matthews": _matthews,
    "pearson": _correlation(_pearson),
    "spearman": _correlation(_spearman),
}


def predictions_of(task: Task, logits: NDArray[np.float32]) -> Array:
    """Turn logits (N, C) into class indices (N,), or for regression into values (N,) clipped to the task's scale."""
    if task.is_regression:
        values: Array = np.clip(logits[:, 0].astype(np.float64), *task.label_range)
        return values
    labels: Array = np.argmax(logits, axis=1).astype(np.float64)
    return labels


def compute_metrics(
    task: Task, logits: NDArray[np.float32], labels: Sequence[float], groups: Sequence[str] | None = None
) -> dict[str, float]:
    """Compute the metrics of a task, separately for each split, such as accuracy_matched and accuracy_mismatched.

    Args:
        task: the task, which names the metrics.
        logits: the model's outputs, (N, C).
        labels: the labels, (N,). A label that is NaN is none.
        groups: the split of each example, (N,), if there are several.

    Returns:
        The metrics by name; none if there are examples without a label.
    """
    predictions, truth = predictions_of(task, logits), np.asarray(labels, dtype=np.float64)
    if np.isnan(truth).any():
        return {}
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
    """Return the mean of a task's metrics, as GLUE averages them."""
    return sum(scores.values()) / len(scores)


def ties(task: Task, logits: NDArray[np.float32], resolution: float) -> NDArray[np.bool_]:
    """Return which predictions (N,) are ties: the two largest of their logits (N, C) differ by less than `resolution`.

    A regression has no ties.
    """
    if task.is_regression:
        return np.zeros(len(logits), dtype=np.bool_)
    largest = np.sort(logits, axis=1)[:, -2:]
    near: NDArray[np.bool_] = largest[:, 1] - largest[:, 0] < resolution
    return near


def agreement(task: Task, left: NDArray[np.float32], right: NDArray[np.float32], tolerance: float) -> float:
    """Return the share of examples on which two models agree: same label, or for regression within `tolerance`."""
    a, b = predictions_of(task, left), predictions_of(task, right)
    return float((np.abs(a - b) < tolerance).mean()) if task.is_regression else float((a == b).mean())
