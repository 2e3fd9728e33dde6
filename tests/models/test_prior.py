"""Class priors, on synthetic data with exactly known posteriors."""

import numpy as np

from fer_pipeline.models.prior import corrected, estimated_prior, learned_prior

LEARNED = np.array([0.5, 0.3, 0.2])
MEANS = np.array([[0.0, 0.0], [1.5, 0.0], [0.0, 1.5]])


def samples(prior: list[float], count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the labels, and the posteriors under the prior `LEARNED`, of points drawn under another prior."""
    rng = np.random.default_rng(0)
    truth = rng.choice(3, count, p=prior)
    points = MEANS[truth] + rng.normal(size=(count, 2))
    likelihood = np.exp(-0.5 * ((points[:, None] - MEANS) ** 2).sum(2))
    posterior = likelihood * LEARNED
    return truth, posterior / posterior.sum(1, keepdims=True)


def test_the_prior_of_an_archive_is_found_from_the_probabilities_alone() -> None:
    for prior in ([0.5, 0.3, 0.2], [0.1, 0.1, 0.8], [0.05, 0.9, 0.05]):
        _, probabilities = samples(prior, 20_000)
        assert np.abs(estimated_prior(probabilities, LEARNED) - prior).max() < 0.02


def test_corrected_labels_are_right_more_often_and_calibrated() -> None:
    truth, probabilities = samples([0.05, 0.05, 0.9], 20_000)
    after = corrected(probabilities, LEARNED, estimated_prior(probabilities, LEARNED))
    assert np.allclose(after.sum(1), 1)
    right_before, right = (float((some.argmax(1) == truth).mean()) for some in (probabilities, after))
    assert right > right_before + 0.1 and abs(after.max(1).mean() - right) < 0.01


def test_the_prior_that_a_model_learned_is_not_that_of_its_split_where_its_loss_weighed_classes() -> None:
    truth, probabilities = samples([0.8, 0.15, 0.05], 20_000)
    found = learned_prior(probabilities, truth)
    assert found is not None and np.abs(found - LEARNED).max() < 0.03
    assert learned_prior(probabilities, np.zeros(20_000, np.int64)) is None


def test_a_class_that_does_not_occur_is_found_to_be_rare() -> None:
    _, probabilities = samples([0.7, 0.3, 0.0], 5_000)
    assert estimated_prior(probabilities, LEARNED)[2] < 0.01
