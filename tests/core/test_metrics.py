import numpy as np
import pytest

from fer_pipeline.core.metrics import confusion_matrix, expected_calibration_error, per_class, summarize


def test_figures_of_a_case_worked_by_hand() -> None:
    truth = np.array([0, 0, 0, 1, 1, 2])
    predicted = np.array([0, 0, 1, 1, 0, 2])
    confusion = confusion_matrix(truth, predicted, 3)
    assert confusion.tolist() == [[2, 1, 0], [1, 1, 0], [0, 0, 1]]
    figures = per_class(confusion)
    assert figures["precision"] == pytest.approx([2 / 3, 1 / 2, 1])
    assert figures["recall"] == pytest.approx([2 / 3, 1 / 2, 1])
    summary = summarize(np.eye(3)[predicted], truth, ("a", "b", "c"))
    assert summary["accuracy"] == pytest.approx(4 / 6)
    assert summary["uar"] == summary["macro_f1"] == pytest.approx((2 / 3 + 1 / 2 + 1) / 3)


def test_a_class_that_is_absent_does_not_count_in_the_averages() -> None:
    summary = summarize(np.eye(3)[[0, 1]], np.array([0, 1]), ("a", "b", "c"))
    assert summary["uar"] == summary["macro_f1"] == 1


def test_calibration_error_of_a_case_worked_by_hand() -> None:
    probabilities = np.array([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4], [0.6, 0.4]])
    truth = np.array([0, 1, 0, 0])  # at .9 half are right, at .6 all
    assert expected_calibration_error(probabilities, truth, bins=10) == pytest.approx((2 * 0.4 + 2 * 0.4) / 4)
