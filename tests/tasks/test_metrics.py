"""Metrics equal values that were worked out by hand."""

import math

import numpy as np
import pytest

from mpcformer.tasks import agreement, compute_metrics, get_task, predictions_of, primary_score, ties


def logits(*classes: int, width: int = 2) -> np.ndarray:
    return np.eye(width, dtype=np.float32)[list(classes)]


def test_accuracy_and_f1() -> None:
    # true 1 1 1 0 0, predicted 1 1 0 1 0: precision 2/3, recall 2/3
    scores = compute_metrics(get_task("mrpc"), logits(1, 1, 0, 1, 0), [1, 1, 1, 0, 0])
    assert scores == {"accuracy": pytest.approx(3 / 5), "f1": pytest.approx(2 / 3)}
    assert primary_score(scores) == pytest.approx((3 / 5 + 2 / 3) / 2)


def test_matthews() -> None:
    # TP 2 TN 1 FP 1 FN 1: (2 - 1) / sqrt(3 * 3 * 2 * 2)
    scores = compute_metrics(get_task("cola"), logits(1, 1, 0, 1, 0), [1, 1, 1, 0, 0])
    assert scores == {"matthews": pytest.approx(1 / 6)}


def test_pearson_and_spearman() -> None:
    values = np.array([[0.0], [1.0], [2.0], [4.0]], dtype=np.float32)
    scores = compute_metrics(get_task("stsb"), values, [0.0, 2.0, 1.0, 4.0])
    assert scores["spearman"] == pytest.approx(0.8)
    assert scores["pearson"] == pytest.approx(np.corrcoef([0, 1, 2, 4], [0, 2, 1, 4])[0, 1])


def test_constant_predictions_score_zero_not_nan() -> None:
    for name, width in (("stsb", 1), ("cola", 2)):
        scores = compute_metrics(get_task(name), np.ones((4, width), dtype=np.float32), [0, 1, 0, 1])
        assert set(scores.values()) == {0.0}


def test_mnli_apart() -> None:
    scores = compute_metrics(
        get_task("mnli"), logits(0, 1, 2, width=3), [0, 1, 0], ["validation_matched"] * 2 + ["validation_mismatched"]
    )
    assert scores == {"accuracy_matched": 1.0, "accuracy_mismatched": 0.0}


def test_regression_is_clipped_to_its_scale_and_agrees_within_a_tolerance() -> None:
    task = get_task("stsb")
    assert predictions_of(task, np.array([[-1.0], [6.0]], dtype=np.float32)).tolist() == [0.0, 5.0]
    left, right = np.array([[1.0], [2.0]], dtype=np.float32), np.array([[1.04], [2.06]], dtype=np.float32)
    assert agreement(task, left, right, 0.05) == 0.5
    assert agreement(get_task("sst2"), logits(0, 1), logits(0, 0), 0.05) == 0.5


def test_no_score_without_labels() -> None:
    assert compute_metrics(get_task("sst2"), logits(1, 0), [math.nan, math.nan]) == {}


def test_ties() -> None:
    near = np.array([[0.0, 0.004, -9.0], [0.0, 0.006, -9.0], [3.0, 0.0, 0.001]], dtype=np.float32)
    assert ties(get_task("mnli"), near, 0.005).tolist() == [True, False, False]
    assert ties(get_task("stsb"), near[:, :1], 0.005).tolist() == [False, False, False]
