import numpy as np
import pytest
import torch

from fer_pipeline.datasets.duplicates import Copies
from fer_pipeline.models.card import Calibration
from fer_pipeline.models.evaluation import Predictions, evaluate, judge
from fer_pipeline.models.figures import VoteFigures
from fer_pipeline.models.label_space import FER7, LabelSpace

CLASSES = LabelSpace(name="three", classes=("happy", "sad", "neutral"))


def predictions(count: int = 600, factor: float = 3.0) -> Predictions:
    """Return `factor` times the logits from which the labels were drawn. No image has a copy."""
    generator = torch.Generator().manual_seed(0)
    honest = torch.randn(count, 3, generator=generator)
    labels = torch.multinomial(torch.softmax(honest, 1), 1, generator=generator).ravel()
    ids = np.array([str(number) for number in range(count)], object)
    return Predictions(ids, (honest * factor).numpy(), labels.numpy(), np.zeros((count, 0), np.float32))


def test_calibration_is_scored_before_and_after_and_never_where_it_was_fitted() -> None:
    calibration = evaluate(predictions(2000), CLASSES, Calibration(temperature=3.0)).calibration
    assert calibration is not None
    assert calibration.before.ece > 0.1
    assert calibration.as_shipped.ece < 0.05 and calibration.cross_fitted.ece < 0.05
    assert calibration.temperatures_of_the_halves == pytest.approx((3, 3), rel=0.2)
    images = sum(bar.images for bar in calibration.cross_fitted.reliability)
    assert images == 2000


def test_a_handful_of_images_is_not_scored_for_calibration() -> None:
    assert evaluate(predictions(20), CLASSES, Calibration()).calibration is None


def test_the_certain_labels_are_those_at_the_models_threshold() -> None:
    certain = evaluate(predictions(), CLASSES, Calibration(temperature=3.0, uncertain_below=0.7)).certain
    assert certain is not None
    logits = torch.from_numpy(predictions().logits) / 3
    kept = torch.softmax(logits, 1).max(1).values >= 0.7
    assert certain.coverage == pytest.approx(float(kept.float().mean()))
    assert certain.accuracy == pytest.approx(float((logits.argmax(1).numpy() == predictions().labels)[kept.numpy()].mean()))


def test_where_every_image_is_a_copy_of_a_learned_one_none_is_judged_without_them() -> None:
    found = predictions(60)
    copies = Copies(dict.fromkeys(found.ids, 0), frozenset(found.ids), frozenset())
    judged = judge(found, copies.learned, copies.groups, CLASSES, 0.8, (), split="validation", precision="fp32", views=1)
    assert judged.validation.images == 60 and judged.without_training_images is None


def test_votes_for_other_classes_alone_judge_nothing() -> None:
    one = predictions(10)
    votes = np.eye(2, dtype=np.float32)[np.zeros(10, int)]
    judged = Predictions(one.ids, one.logits, one.labels, votes)
    assert evaluate(judged, CLASSES, Calibration(), ("contempt", "unknown")).votes == VoteFigures(images=0, left_out=10)


def test_votes_judge_the_model_and_the_labels_alike() -> None:
    vote_classes = ("neutral", "happy", "contempt")
    logits = np.eye(7, dtype=np.float32)[[3, 3, 6, 3, 3, 6]] * 9  # happy, happy, neutral, happy, happy, neutral
    labels = np.array([3, 6, 6, 3, 3, 6])
    votes = np.array(
        [
            [0.2, 0.8, 0],  # happy, as predicted and labelled
            [0.3, 0.7, 0],  # happy, as predicted; labelled neutral
            [0.4, 0.6, 0],  # happy; predicted and labelled neutral
            [0.5, 0.5, 0],  # tied
            [0.1, 0.2, 0.7],  # contempt, which the model lacks
            [0, 0, 0],  # nobody voted
        ],
        np.float32,
    )
    alone = Predictions(np.array(list("abcdef"), object), logits, labels, votes)
    found = evaluate(alone, FER7, Calibration(), vote_classes).votes
    assert found is not None
    assert (found.images, found.left_out) == (3, 3)
    assert found.accuracy == pytest.approx(2 / 3) and found.accuracy_of_the_labels == pytest.approx(1 / 3)
    assert found.agreement == pytest.approx((0.8 + 0.7 + 0.4) / 3)
