import numpy as np
import pytest
import torch

from fer_pipeline.models.calibration import calibrate, cross_fitted, fit_temperature, fit_threshold
from fer_pipeline.models.metrics import expected_calibration_error, is_uncertain


def overconfident(count: int = 4000, factor: float = 3.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Return labels and `factor` times the logits from which they were drawn."""
    generator = torch.Generator().manual_seed(0)
    honest = torch.randn(count, 5, generator=generator) * 1.5
    labels = torch.multinomial(torch.softmax(honest, 1), 1, generator=generator).ravel()
    return honest * factor, labels


def test_the_temperature_undoes_overconfidence() -> None:
    logits, labels = overconfident(factor=3.0)
    temperature = fit_temperature(logits, labels)
    assert temperature == pytest.approx(3.0, rel=0.08)
    before = expected_calibration_error(torch.softmax(logits, 1).numpy(), labels.numpy())
    after = expected_calibration_error(torch.softmax(logits / temperature, 1).numpy(), labels.numpy())
    assert after < 0.03 < before


@pytest.mark.parametrize("wrong", [True, False])
def test_logits_that_say_nothing_of_the_labels_have_a_temperature_that_a_card_takes(wrong: bool) -> None:
    labels = torch.arange(60) % 7
    logits = 3 * torch.nn.functional.one_hot((labels + 1) % 7, 7).float() if wrong else torch.randn(60, 7)
    assert 0 < calibrate(logits, labels, 0.8).temperature <= 1000


def test_the_threshold_keeps_labels_that_are_right_often_enough() -> None:
    confidence = np.array([0.9, 0.8, 0.7, 0.6, 0.5])
    probabilities = np.stack([confidence, 1 - confidence], 1)
    labels = np.array([0, 0, 1, 0, 1])
    assert fit_threshold(probabilities, labels, 0.75) == 0.6  # three of four are right
    assert fit_threshold(probabilities, labels, 1.0) == 0.8
    assert fit_threshold(probabilities, np.ones(5, int), 0.9) == 1.0  # no threshold suffices


def test_kept_labels_reach_the_accuracy_asked_for() -> None:
    logits, labels = overconfident()
    calibration = calibrate(logits, labels, 0.8)
    probabilities = torch.softmax(logits / calibration.temperature, 1)
    kept = probabilities.max(1).values >= calibration.uncertain_below
    assert (probabilities.argmax(1) == labels)[kept].float().mean() >= 0.799
    assert 0.1 < kept.float().mean() < 0.9


def test_a_flawless_model_is_certain() -> None:
    logits = torch.eye(3).repeat(10, 1) * torch.linspace(4, 5, 30)[:, None]
    calibration = calibrate(logits, torch.arange(3).repeat(10), 0.8)
    assert (torch.softmax(logits / calibration.temperature, 1).max(1).values >= calibration.uncertain_below).all()


def test_no_image_is_scored_under_a_temperature_that_it_or_its_copy_helped_to_fit() -> None:
    logits, labels = overconfident(200)
    groups = np.arange(200) % 100
    before, _ = cross_fitted(logits, labels, groups)
    for image in (0, 57):
        changed = labels.clone()
        copies = groups == image
        changed[copies] = (changed[copies] + 1) % 5
        after, _ = cross_fitted(logits, changed, groups)
        assert torch.equal(after[copies], before[copies])
        assert not torch.equal(after, before)


def test_halves_are_scored_in_both_directions() -> None:
    logits, labels = overconfident(factor=3.0)
    probabilities, temperatures = cross_fitted(logits, labels, np.arange(len(labels)))
    assert temperatures == pytest.approx((3.0, 3.0), rel=0.1) and temperatures[0] != temperatures[1]
    assert expected_calibration_error(probabilities.numpy(), labels.numpy()) < 0.03


@pytest.mark.parametrize("confidence", [1.0, 0.99996, 0.75])
def test_a_threshold_does_not_divide_labels_of_one_confidence(confidence: float) -> None:
    """Half of the labels are right, and all have one confidence, so a threshold accepts all or none."""
    probabilities = np.tile([confidence, 1 - confidence], (400, 1)).astype(np.float32)
    labels = np.repeat([0, 1], 200)
    threshold = fit_threshold(probabilities, labels, 0.8)
    assert threshold == 1.0 and is_uncertain(probabilities.max(1), threshold).all()
    assert not is_uncertain(probabilities.max(1), fit_threshold(probabilities, labels, 0.5)).any()


def test_the_promise_holds_for_the_threshold_as_the_card_says_it() -> None:
    """Labels between the lowest sufficient confidence and the rounded threshold of the card count too."""
    probabilities = np.array([[0.70019, 0.29981]] * 4 + [[0.70011, 0.29989]] * 4)
    labels = np.array([0] * 4 + [1] * 4)
    threshold = fit_threshold(probabilities, labels, 0.9)
    certain = ~is_uncertain(probabilities.max(1), threshold)
    assert not certain.any() or (probabilities.argmax(1) == labels)[certain].mean() >= 0.9


def test_one_as_a_threshold_says_that_every_label_is_uncertain() -> None:
    assert is_uncertain(1.0, 1.0) and not is_uncertain(1.0, 0.9999)
