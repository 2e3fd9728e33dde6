"""How often the intervals of an audit hold the truth, and how wide they are, on made archives whose truth is known. Prints JSON.

    python -m tests.benchmarks.audits [--audits 1000] [--count 400]

Four archives of 40,000 faces: classes of 1 % with a calibrated model, FER-2013's shares with an overconfident one, 90 % of one
class with an underconfident one, and an accurate model; 2 % are no faces. For each kind of quantity: coverage (mean over classes,
and the least of any class and archive) and mean width; beside them those of a simple random sample of as many faces (Wilson's
interval of the accuracy, and of the shares), and of prediction-powered shares of classes that are not rare.
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from fer_pipeline.labelling.audits import allocated
from fer_pipeline.labelling.estimates import Interval, Sample, estimated, quantities
from fer_pipeline.models.label_space import FER7

Floats = NDArray[np.float64]
FACES, FALSE, CLASSES = 40_000, 0.02, 7
NORMAL_95 = 1.959964
LEAST_SHARE = 0.05
"""Least share that the model expects of a class for a prediction-powered estimate."""
ARCHIVES = (
    ((0.01, 0.01, 0.03, 0.35, 0.10, 0.05, 0.45), 3.0, 1.0),
    ((0.14, 0.02, 0.14, 0.25, 0.17, 0.11, 0.17), 2.2, 0.5),
    ((0.01, 0.01, 0.01, 0.90, 0.01, 0.01, 0.05), 3.0, 2.0),
    ((0.02, 0.01, 0.05, 0.30, 0.10, 0.02, 0.50), 4.5, 1.0),
)
"""Shares of the classes, how well the model tells them, and the temperature of what it says."""


def archive(number: int) -> tuple[Floats, NDArray[np.int64]]:
    """Return what a model says of all faces, and their truth; 7 is no face."""
    shares, strength, temperature = ARCHIVES[number]
    rng = np.random.default_rng(number)
    truth = rng.choice(CLASSES, FACES, p=np.array(shares) / sum(shares))
    logits = 1.2 * rng.gumbel(size=(FACES, CLASSES)) + 0.6 * np.log(shares)
    logits[np.arange(FACES), truth] += strength * rng.uniform(0.3, 1.4, FACES)
    no_face = rng.random(FACES) < FALSE
    logits[no_face] = rng.gumbel(size=(no_face.sum(), CLASSES))
    said = np.exp(logits / temperature)
    return said / said.sum(1, keepdims=True), np.where(no_face, CLASSES, truth)


def powered_shares(sample: Sample, classes: Sequence[str]) -> dict[str, Interval]:
    """Return the shares of the classes that are not rare: the model's over all faces, corrected by its sampled errors.

    The interval is a normal one, which is too narrow for rare classes.

    Prediction-powered inference with the weight of the predictions that gives the least variance: Angelopoulos et al. (2023),
    "PPI++: Efficient Prediction-Powered Inference", by stratum: Fisch et al. (2024), "Stratified Prediction-Powered Inference".
    With one stratum, the ends are within .0013 of those of ppi-python's `ppi_mean_ci` (20 samples of 400 of 40,000, width .089).
    """
    answered = np.bincount(sample.strata, minlength=len(sample.populations))
    asked = np.flatnonzero(answered)
    weights = sample.populations[asked] / sample.populations[asked].sum()
    found = {}
    for index, name in enumerate(classes):
        truth = (sample.truths == index).astype(np.float64)
        if weights @ sample.expected[asked, index] < LEAST_SHARE:
            continue
        parts = [(sample.probabilities[sample.strata == one, index], truth[sample.strata == one]) for one in asked.tolist()]
        sizes = np.array([len(true) for _, true in parts])
        scale = weights**2 / sizes * (1 - sizes / sample.populations[asked])
        moments = np.array([np.cov(said, true) if len(true) > 1 else np.zeros((2, 2)) for said, true in parts])
        of_said, of_both, of_true = (float(scale @ moments[:, one, other]) for one, other in ((0, 0), (0, 1), (1, 1)))
        power = min(1.0, max(0.0, of_both / of_said)) if of_said > 0 else 0.0
        means = np.array([float((true - power * said).mean()) for said, true in parts])
        value = float(weights @ (power * sample.expected[asked, index] + means))
        variance = max(0.0, of_true - 2 * power * of_both + power**2 * of_said)
        half = NORMAL_95 * variance**0.5
        found[name] = Interval(value=value, low=max(0.0, value - half), high=min(1.0, value + half))
    return found


def wilson(share: float, count: int) -> tuple[float, float]:
    middle = (share + NORMAL_95**2 / (2 * count)) / (1 + NORMAL_95**2 / count)
    half = NORMAL_95 / (1 + NORMAL_95**2 / count) * (share * (1 - share) / count + NORMAL_95**2 / (4 * count**2)) ** 0.5
    return middle - half, middle + half


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--audits", type=int, default=1000)
    parser.add_argument("--count", type=int, default=400)
    options = parser.parse_args()
    held: dict[tuple[str, str, int], list[bool]] = defaultdict(list)
    widths: dict[str, list[float]] = defaultdict(list)
    for number in range(len(ARCHIVES)):
        said, truth = archive(number)
        label, confidence = said.argmax(1), said.max(1)
        keys, strata = np.unique(2 * label + (confidence < np.quantile(confidence, 0.4)), return_inverse=True)
        populations = np.bincount(strata).astype(np.int64)
        members = [np.flatnonzero(strata == stratum) for stratum in range(len(keys))]
        expected = np.stack([said[mine].mean(0) for mine in members])
        sizes = allocated(populations, options.count)

        def sampled(places: NDArray[np.intp]) -> Sample:
            return Sample(populations, keys // 2, expected, strata[places], truth[places], said[places])  # noqa: B023

        every = sampled(np.arange(FACES))
        true = {key: float(values[0]) for key, values in quantities(every.counts[None], every, FER7.classes).items()}
        gaps = np.bincount(np.minimum((10 * confidence).astype(int), 9), (label == truth) - confidence)
        true["calibration error", ""] = float(np.abs(gaps).sum() / FACES)
        rng = np.random.default_rng(100 + number)
        for _ in range(options.audits // len(ARCHIVES)):
            drawn = np.concatenate([rng.choice(mine, size, replace=False) for mine, size in zip(members, sizes, strict=True)])
            for kind, of, low, high in intervals(sampled(drawn), rng, label, truth):
                key = kind.removesuffix(", simple").removesuffix(", powered")
                held[kind, of, number].append(low - 1e-9 <= true[key, of] <= high + 1e-9)
                widths[kind].append(high - low)
    for kind in dict.fromkeys(kind for kind, *_ in held):
        covered = {key: float(np.mean(values)) for key, values in held.items() if key[0] == kind}
        least = min(covered, key=lambda key: covered[key])
        facts = {"quantity": kind, "covered": round(float(np.mean(list(covered.values()))), 3), "least": round(covered[least], 3)}
        print(json.dumps(facts | {"of": least[1:], "width": round(float(np.mean(widths[kind])), 3)}))


def intervals(
    sample: Sample, rng: np.random.Generator, label: NDArray[np.int64], truth: NDArray[np.int64]
) -> Iterator[tuple[str, str, float, float]]:
    """Yield each interval of an audit, and those of a simple random sample of as many faces."""
    found = estimated(sample, FER7.classes, int(rng.integers(2**31)))
    yield "accuracy", "", found.accuracy.low, found.accuracy.high
    yield "false faces", "", found.false_faces.low, found.false_faces.high
    yield "calibration error", "", found.ece.low, found.ece.high
    for kind, of_class in (("precision", found.precision), ("recall", found.recall), ("share", found.shares)):
        for name, one in of_class.items():
            yield kind, name, one.low, one.high
    for name, one in powered_shares(sample, FER7.classes).items():
        yield "share, powered", name, one.low, one.high
    count = len(sample.strata)
    simple = rng.choice(FACES, count, replace=False)
    yield "accuracy, simple", "", *wilson(float((label[simple] == truth[simple]).mean()), count)
    for index, name in enumerate(FER7.classes):
        yield "share, simple", name, *wilson(float((truth[simple] == index).mean()), count)


if __name__ == "__main__":
    main()
