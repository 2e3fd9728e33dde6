"""How right the labels of an archive are, from answers about a stratified sample of its faces: estimates with intervals.

Each stratum holds the faces of one label, certain or uncertain. What its other faces show is drawn many times from what its
sampled faces show: Polya's urn of a Dirichlet distribution that begins with the model's own probabilities, worth one answer. An
estimate is the mean of the draws, an interval their middle (Ericson, 1969, "Subjective Bayesian Models in Sampling Finite
Populations").
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fer_pipeline.base.config import Config

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
DRAWS = 4000
MIDDLE = 0.97
"""Share of the draws in an interval: such intervals hold the truth in 95 % of audits (`python -m tests.benchmarks.audits`)."""
BINS, WIDEST_GAP = 10, 0.4
"""Bins of the calibration error, and the largest standard deviation of their gaps that it considers."""
PRIOR_ANSWERS, PRIOR_EVEN, PRIOR_NO_FACE = 1.0, 0.2, 0.05
"""What each stratum begins with: as much as this number of answers, of which these shares are spread evenly and no face."""


class Interval(Config):
    """An estimate and its interval of 95 %."""

    value: float
    low: float
    high: float


class Estimates(Config):
    """What an audit says of all faces from which it was drawn. Classes without a face are left out."""

    accuracy: Interval
    """Share of the faces with a right label; what is no face has none."""
    false_faces: Interval
    """Share of the faces that are no face."""
    precision: dict[str, Interval]
    recall: dict[str, Interval]
    shares: dict[str, Interval]
    """Shares of the true classes among all faces; with `false_faces` they are the whole."""
    predicted_shares: dict[str, float]
    """Shares of the labels."""
    overconfidence: Interval
    """Mean confidence minus accuracy."""
    ece: Interval
    """Expected calibration error, 10 bins of equal width."""
    answers_to_halve: int
    """How many more answers halve the interval of the accuracy, about."""


@dataclass(frozen=True)
class Sample:
    """Answers about a stratified sample."""

    populations: Ints
    """Number of faces in each stratum (h,)."""
    labels: Ints
    """Class of the label in each stratum (h,)."""
    expected: Floats
    """Mean probabilities of all faces of each stratum (h, k)."""
    strata: Ints
    """Stratum of each answered face (n,)."""
    truths: Ints
    """Its true class (n,); k for what is no face."""
    probabilities: Floats
    """What the model said (n, k)."""

    @property
    def counts(self) -> Floats:
        """Number of answers by stratum and truth (h, k + 1)."""
        found = np.zeros((len(self.populations), self.expected.shape[1] + 1))
        np.add.at(found, (self.strata, self.truths), 1)
        return found


def estimated(sample: Sample, classes: Sequence[str], seed: int = 0) -> Estimates:
    """Return what a sample says of all faces."""
    drawn = draws_of(sample, np.random.default_rng(seed))
    said = quantities(drawn, sample, classes)
    weights = sample.populations / sample.populations.sum()
    confidence = float((weights * sample.expected[np.arange(len(weights)), sample.labels]).sum())
    of_class: dict[str, dict[str, Interval]] = {"precision": {}, "recall": {}, "share": {}}
    for (name, of), values in said.items():
        if of:
            of_class[name][of] = interval_of(values)
    return Estimates(
        accuracy=interval_of(said["accuracy", ""]),
        false_faces=interval_of(said["false faces", ""]),
        precision=of_class["precision"],
        recall=of_class["recall"],
        shares=of_class["share"],
        predicted_shares={name: float(weights[sample.labels == index].sum()) for index, name in enumerate(classes)},
        overconfidence=interval_of(confidence - said["accuracy", ""]),
        ece=interval_of(_calibration_errors(sample, np.random.default_rng(seed + 1))),
        answers_to_halve=_answers_to_halve(sample, drawn),
    )


def draws_of(sample: Sample, rng: np.random.Generator, draws: int = DRAWS) -> Floats:
    """Return what all faces may show: numbers of faces by stratum and truth (draws, h, k + 1)."""
    counts, classes = sample.counts, sample.expected.shape[1]
    prior = np.full(counts.shape, PRIOR_NO_FACE)
    prior[:, :classes] = (1 - PRIOR_NO_FACE) * ((1 - PRIOR_EVEN) * sample.expected + PRIOR_EVEN / classes)
    urns = rng.standard_gamma(np.broadcast_to(PRIOR_ANSWERS * prior + counts, (draws, *counts.shape)))
    rest = rng.multinomial(np.maximum(0, sample.populations - counts.sum(1)).astype(np.int64), urns / urns.sum(2, keepdims=True))
    return np.asarray(rest + counts, np.float64)


def quantities(drawn: Floats, sample: Sample, classes: Sequence[str]) -> dict[tuple[str, str], Floats]:
    """Return each quantity (draws,) by its name and class."""
    right = drawn[:, np.arange(len(sample.labels)), sample.labels]
    totals, all_faces = drawn.sum(1), sample.populations.sum()
    found = {("accuracy", ""): right.sum(1) / all_faces, ("false faces", ""): totals[:, -1] / all_faces}
    for index, name in enumerate(classes):
        mine = sample.labels == index
        labelled = sample.populations[mine].sum()
        if labelled:
            found["precision", name] = right[:, mine].sum(1) / labelled
        if labelled or (sample.truths == index).any():
            some = totals[:, index] > 0
            if some.mean() > 0.5:  # else there may be no such face, of which none could be missed
                found["recall", name] = right[some][:, mine].sum(1) / totals[some, index]
        found["share", name] = totals[:, index] / all_faces
    return found


def interval_of(values: Floats) -> Interval:
    """Return the mean of draws and the interval of their middle."""
    low, high = np.quantile(values, [(1 - MIDDLE) / 2, (1 + MIDDLE) / 2])
    return Interval(value=float(values.mean()), low=float(low), high=float(high))


def of_images(images: int, answered: int, missed: int, seed: int = 0) -> Interval:
    """Return the share of images without a detected face that show one, from answers about a random sample of them."""
    chance = np.random.default_rng(seed).beta(missed + 0.5, answered - missed + 0.5, DRAWS)
    rest = np.random.default_rng(seed + 1).binomial(max(0, images - answered), chance)
    return interval_of((rest + missed) / images)


def agreement(one: Mapping[int, str], other: Mapping[int, str]) -> tuple[int, float | None]:
    """Return how many faces two people answered about, and Cohen's kappa of their answers: 1 is agreement, 0 is chance."""
    both = [(one[item], other[item]) for item in one.keys() & other.keys()]
    if not both:
        return 0, None
    names = sorted({name for pair in both for name in pair})
    shares = [np.array([sum(pair[person] == name for pair in both) for name in names]) / len(both) for person in (0, 1)]
    by_chance, observed = float(shares[0] @ shares[1]), sum(a == b for a, b in both) / len(both)
    return len(both), None if by_chance == 1 else (observed - by_chance) / (1 - by_chance)


def _calibration_errors(sample: Sample, rng: np.random.Generator) -> Floats:
    """Return what the calibration error of all faces may be (draws,).

    Taken as they are, the gaps that few answers show are too wide, and their sum too high. Here the gaps of all bins come from
    one normal distribution, of any standard deviation up to `WIDEST_GAP` (Gelman, 2006, "Prior Distributions for Variance
    Parameters in Hierarchical Models").
    """
    answered = np.bincount(sample.strata, minlength=len(sample.populations))
    weights = (sample.populations / np.maximum(answered, 1) / sample.populations.sum())[sample.strata]
    confidence = sample.probabilities[np.arange(len(sample.strata)), sample.labels[sample.strata]]
    right = (sample.truths == sample.labels[sample.strata]).astype(np.float64)
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)

    def summed(values: Floats) -> Floats:
        return np.bincount(bins, values, minlength=BINS).astype(np.float64)

    counts = summed(np.ones(len(bins)))
    used = counts > 0
    shares = summed(weights)[used]
    chance = (summed(right) + 2 * summed(confidence) / np.maximum(counts, 1))[used] / (counts[used] + 2)
    unseen = (1 - answered / sample.populations)[sample.strata]  # of a census nothing is unknown
    gaps = summed(weights * (right - confidence))[used] / shares
    noise = summed(weights**2 * unseen)[used] * chance * (1 - chance) / shares**2
    spread = np.linspace(0.01, 1, 40)[:, None] * WIDEST_GAP
    likely = -0.5 * (np.log(spread**2 + noise) + gaps**2 / (spread**2 + noise)).sum(1)
    odds = np.exp(likely - likely.max())
    drawn = spread[rng.choice(len(spread), DRAWS, p=odds / odds.sum())] ** 2
    kept = drawn / (drawn + noise)
    found: Floats = np.abs(kept * gaps + np.sqrt(kept * noise) * rng.standard_normal(kept.shape)) @ shares
    return found


def _answers_to_halve(sample: Sample, drawn: Floats) -> int:
    """Return how many more answers, spread as those given, would leave a quarter of the variance of the accuracy."""
    answered = np.bincount(sample.strata, minlength=len(sample.populations))
    asked = answered > 0
    weights = sample.populations / sample.populations.sum()
    right = drawn[:, np.arange(len(sample.labels)), sample.labels].mean(0) / np.maximum(sample.populations, 1)
    spread = (weights**2 * right * (1 - right))[asked]
    by_sample, by_census = float((spread / answered[asked]).sum()), float((spread / sample.populations[asked]).sum())
    goal = by_census + (by_sample - by_census) / 4
    return 0 if goal <= 0 else round((by_sample / goal - 1) * int(answered.sum()))
