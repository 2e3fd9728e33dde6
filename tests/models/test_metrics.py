import numpy as np
import pytest
import sklearn.metrics
import torch
import torchmetrics

from fer_pipeline.models.metrics import (
    bootstrap_intervals,
    confusion_matrix,
    expected_calibration_error,
    overall,
    per_class,
    per_output_accuracy,
    risk_coverage,
    summarize,
)


def test_figures_of_a_case_worked_by_hand() -> None:
    truth = np.array([0, 0, 0, 1, 1, 2])
    predicted = np.array([0, 0, 1, 1, 0, 2])
    confusion = confusion_matrix(truth, predicted, 3)
    assert confusion.tolist() == [[2, 1, 0], [1, 1, 0], [0, 0, 1]]
    figures = per_class(confusion)
    assert figures["precision"] == pytest.approx([2 / 3, 1 / 2, 1])
    assert figures["recall"] == pytest.approx([2 / 3, 1 / 2, 1])
    summary = summarize(np.eye(3)[predicted], truth, ("a", "b", "c"))
    assert summary.accuracy == pytest.approx(4 / 6)
    assert summary.uar == summary.macro_f1 == pytest.approx((2 / 3 + 1 / 2 + 1) / 3)


def test_a_class_that_is_absent_does_not_count_in_the_averages() -> None:
    summary = summarize(np.eye(3)[[0, 1]], np.array([0, 1]), ("a", "b", "c"))
    assert summary.uar == summary.macro_f1 == 1


def test_calibration_error_of_a_case_worked_by_hand() -> None:
    probabilities = np.array([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4], [0.6, 0.4]])
    truth = np.array([0, 1, 0, 0])  # at .9 half are right, at .6 all are right
    assert expected_calibration_error(probabilities, truth, bins=10) == pytest.approx((2 * 0.4 + 2 * 0.4) / 4)


def test_calibration_error_over_bins_of_several_confidences_worked_by_hand() -> None:
    # Bin (.5, .75]: .6 and .7, one of two right: |.65 - .5| = .15. Bin (.75, 1]: .8, .9 and 1, all right: |.9 - 1| = .1.
    top = np.array([0.6, 0.7, 0.8, 0.9, 1.0])
    probabilities, truth = np.stack([top, 1 - top], 1), np.array([0, 1, 0, 0, 0])
    assert expected_calibration_error(probabilities, truth, bins=4) == pytest.approx((2 * 0.15 + 3 * 0.1) / 5)


@pytest.fixture
def drawn() -> tuple[np.ndarray, np.ndarray]:
    """Return 500 random predictions of 7 classes, and labels with raised logits."""
    rng = np.random.default_rng(0)
    logits, truth = rng.normal(0, 1.5, (500, 7)), rng.integers(0, 7, 500)
    logits[np.arange(500), truth] += 1.5
    return np.exp(logits) / np.exp(logits).sum(1, keepdims=True), truth


def test_figures_are_those_of_scikit_learn(drawn: tuple[np.ndarray, np.ndarray]) -> None:
    probabilities, truth = drawn
    predicted, summary = probabilities.argmax(1), summarize(probabilities, truth, tuple("abcdefg"))
    assert summary.confusion == sklearn.metrics.confusion_matrix(truth, predicted).tolist()
    assert summary.accuracy == pytest.approx(sklearn.metrics.accuracy_score(truth, predicted))
    assert summary.macro_f1 == pytest.approx(sklearn.metrics.f1_score(truth, predicted, average="macro"))
    assert summary.uar == pytest.approx(sklearn.metrics.balanced_accuracy_score(truth, predicted))
    assert summary.top2 == pytest.approx(sklearn.metrics.top_k_accuracy_score(truth, probabilities, k=2))
    assert summary.log_loss == pytest.approx(sklearn.metrics.log_loss(truth, probabilities))
    assert summary.brier == pytest.approx(sklearn.metrics.brier_score_loss(truth, probabilities, scale_by_half=False))
    wanted = np.stack(sklearn.metrics.precision_recall_fscore_support(truth, predicted))
    found = [[getattr(summary.per_class[name], key) for name in "abcdefg"] for key in ("precision", "recall", "f1", "support")]
    assert np.array(found) == pytest.approx(wanted)


def test_figures_are_those_of_torchmetrics(drawn: tuple[np.ndarray, np.ndarray]) -> None:
    probabilities, truth = (torch.from_numpy(values) for values in drawn)
    summary = summarize(*drawn, tuple("abcdefg"))
    functional = torchmetrics.functional.classification
    ece = functional.multiclass_calibration_error(probabilities, truth, 7, n_bins=15, norm="l1")
    assert expected_calibration_error(*drawn) == pytest.approx(float(ece), abs=1e-6)
    assert summary.accuracy == pytest.approx(float(functional.multiclass_accuracy(probabilities, truth, 7, average="micro")))
    assert summary.uar == pytest.approx(float(functional.multiclass_recall(probabilities, truth, 7, average="macro")))
    assert summary.macro_f1 == pytest.approx(float(functional.multiclass_f1_score(probabilities, truth, 7, average="macro")))
    top2 = functional.multiclass_accuracy(probabilities, truth, 7, top_k=2, average="micro")
    assert summary.top2 == pytest.approx(float(top2))
    one_hot = torch.nn.functional.one_hot(truth, 7)
    assert summary.per_output_accuracy == pytest.approx(float(functional.binary_accuracy(probabilities, one_hot)))


def test_intervals_hold_what_drawing_images_anew_gives(drawn: tuple[np.ndarray, np.ndarray]) -> None:
    probabilities, truth = drawn
    predicted, rng = probabilities.argmax(1), np.random.default_rng(1)
    intervals = bootstrap_intervals(confusion_matrix(truth, predicted, 7), resamples=4000)
    draws = [rng.integers(0, 500, 500) for _ in range(4000)]
    accuracies = [(predicted[draw] == truth[draw]).mean() for draw in draws]
    assert intervals["accuracy"] == pytest.approx(tuple(np.quantile(accuracies, [0.025, 0.975])), abs=0.005)
    summaries = [overall(confusion_matrix(truth[draw], predicted[draw], 7)) for draw in draws[:1000]]
    limits = np.quantile([float(one["macro_f1"]) for one in summaries], [0.025, 0.975])
    assert intervals["macro_f1"] == pytest.approx(tuple(limits), abs=0.01)


def test_abstaining_raises_accuracy_where_confidence_tells_right_from_wrong() -> None:
    confidence, correct = np.array([0.5, 0.9, 0.6, 0.8]), np.array([False, True, False, True])
    curve = risk_coverage(confidence, correct)
    assert curve.coverage == [0.25, 0.5, 0.75, 1.0]
    assert curve.accuracy == pytest.approx([1, 1, 2 / 3, 1 / 2])
    assert curve.threshold == [0.9, 0.8, 0.6, 0.5]
    assert curve.aurc == pytest.approx((0 + 0 + 1 / 3 + 1 / 2) / 4)


@pytest.mark.parametrize("classes", [7, 8])
def test_outputs_that_never_pass_one_half_are_almost_all_right_one_by_one(classes: int) -> None:
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet(np.full(classes, 50.0), 1000)
    assert probabilities.max() < 0.5
    assert per_output_accuracy(probabilities, rng.integers(0, classes, 1000)) == pytest.approx(1 - 1 / classes)
