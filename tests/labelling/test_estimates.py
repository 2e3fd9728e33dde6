"""What an audit's answers say of all labels: exact where all are answered, honest where few are."""

import numpy as np
import pytest

from fer_pipeline.labelling.audits import allocated
from fer_pipeline.labelling.estimates import Interval, Sample, agreement, draws_of, estimated, of_images, quantities

CLASSES = ("happy", "sad", "fear")


def sample_of(populations: list[int], answers: list[list[int]], labels: list[int]) -> Sample:
    """A sample with so many answers by stratum and truth."""
    counts = np.array(answers)
    strata = np.repeat(np.arange(len(populations)), counts.sum(1))
    truths = np.concatenate([np.repeat(np.arange(counts.shape[1]), row) for row in counts])
    expected = np.full((len(populations), 3), 0.1) + 0.7 * np.eye(3)[labels]
    ints = [np.array(one, np.int64) for one in (populations, labels)]
    return Sample(ints[0], ints[1], expected, strata.astype(np.int64), truths.astype(np.int64), expected[strata])


def test_a_census_has_no_interval() -> None:
    found = estimated(sample_of([10, 20], [[7, 2, 0, 1], [5, 15, 0, 0]], [0, 1]), CLASSES)
    assert (found.accuracy.low, found.accuracy.value, found.accuracy.high) == pytest.approx((22 / 30,) * 3)
    assert found.false_faces.high == pytest.approx(1 / 30) and found.answers_to_halve == 0
    assert {name: one.value for name, one in found.precision.items()} == pytest.approx({"happy": 0.7, "sad": 0.75})
    assert {name: one.value for name, one in found.recall.items()} == pytest.approx({"happy": 7 / 12, "sad": 15 / 17})
    assert {name: one.value for name, one in found.shares.items()} == pytest.approx({"happy": 12 / 30, "sad": 17 / 30, "fear": 0})
    assert found.predicted_shares == pytest.approx({"happy": 1 / 3, "sad": 2 / 3, "fear": 0})
    assert found.overconfidence.value == pytest.approx(0.8 - 22 / 30)
    assert (found.ece.low, found.ece.value, found.ece.high) == pytest.approx((0.8 - 22 / 30,) * 3)


def test_strata_count_by_their_populations_and_more_answers_narrow_the_interval() -> None:
    few = estimated(sample_of([9000, 1000], [[45, 5, 0, 0], [10, 40, 0, 0]], [0, 0]), CLASSES)
    many = estimated(sample_of([9000, 1000], [[180, 20, 0, 0], [40, 160, 0, 0]], [0, 0]), CLASSES)
    assert few.accuracy.value == pytest.approx(0.9 * 0.9 + 0.1 * 0.2, abs=0.01)
    widths = [one.accuracy.high - one.accuracy.low for one in (few, many)]
    assert widths[0] / widths[1] == pytest.approx(2, abs=0.15)
    assert few.answers_to_halve == pytest.approx(300, rel=0.05)


def test_few_answers_hardly_raise_the_calibration_error() -> None:
    """A calibrated model: the gaps that 200 answers show sum up to .07."""
    rng, confidence = np.random.default_rng(0), np.linspace(0.35, 0.95, 200)
    probabilities, bins = np.stack([confidence, 1 - confidence, np.zeros(200)], 1), (10 * confidence).astype(int)
    found, naive = list[Interval](), list[float]()
    for _ in range(100):
        truths = (rng.random(200) >= confidence).astype(np.int64)
        strata = np.zeros(200, np.int64)
        sample = Sample(np.array([100_000]), np.array([0]), probabilities.mean(0)[None], strata, truths, probabilities)
        found.append(estimated(sample, CLASSES).ece)
        naive.append(float(np.abs(np.bincount(bins, (truths == 0) - confidence)).sum() / 200))
    assert np.mean(naive) > 0.06 and np.mean([one.value for one in found]) < 0.7 * np.mean(naive)
    assert np.quantile([one.low for one in found], 0.9) < 0.02


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    """400 audits of 200 answers of an archive with a class of 1 %. `tests.benchmarks.audits` measures more."""
    rng, populations = np.random.default_rng(3), np.array([6000, 3000, 1000])
    truth = np.array([[0.9, 0.08, 0.005, 0.015], [0.2, 0.76, 0.01, 0.03], [0.45, 0.4, 0.05, 0.1]])
    everyone = np.array([rng.multinomial(size, row) for size, row in zip(populations, truth, strict=True)])
    sizes = allocated(populations, 200)
    whole = sample_of(populations.tolist(), everyone.tolist(), [0, 1, 2])
    true = {key: float(values[0]) for key, values in quantities(whole.counts[None], whole, CLASSES).items()}
    held = dict.fromkeys(true, 0)
    for _ in range(400):
        drawn = [rng.multivariate_hypergeometric(row, size).tolist() for row, size in zip(everyone, sizes, strict=True)]
        sample = sample_of(populations.tolist(), drawn, [0, 1, 2])
        for key, values in quantities(draws_of(sample, rng, 1000), sample, CLASSES).items():
            low, high = np.quantile(values, [0.015, 0.985])
            held[key] += low <= true[key] <= high
    assert min(held.values()) / 400 > 0.92 and held["accuracy", ""] / 400 < 0.99, held


def test_the_draw_is_proportional_with_a_floor() -> None:
    sizes = allocated(np.array([5000, 4000, 900, 95, 5]), 400)
    assert sizes.sum() == 400 and sizes[3] == 10 and sizes[4] == 5 and sizes[0] > sizes[1] > sizes[2] > 30
    assert allocated(np.array([3, 2]), 400).tolist() == [3, 2]
    assert allocated(np.array([50] * 10), 30).tolist() == [10] * 10


def test_missed_faces_and_agreement() -> None:
    found = of_images(1000, 40, 2)
    assert found.low < 0.05 < found.high and found.low > 0 and found.high < 0.2
    assert of_images(40, 40, 2).high == pytest.approx(0.05)
    same = dict(enumerate(["a", "b"] * 10))
    assert agreement(same, same)[1] == pytest.approx(1)
    assert agreement(same, dict.fromkeys(range(20), "a"))[1] == pytest.approx(0)
    assert agreement({1: "a"}, {2: "a"}) == (0, None) and agreement({1: "a"}, {1: "a"}) == (1, None)
