"""What `quality` of a face says about the label: accuracy by bin of quality, on corruptions that were not used to fit it.

    python -m tests.benchmarks.quality [--fit]

FER-2013 PublicTest without copies of Training images; one half fits, the other is measured. To fit: the corruptions of
`fer_pipeline/models/corruption.py`, a Gaussian blur, dim pictures with even noise, and pictures of 8 to 40 px. To measure: blur
by motion and by a lens out of focus, darkness with the noise of few photons, haze, blocks of equal pixels, and small pictures by
another filter. Prints JSON; `--fit` prints weights.
"""

import argparse
import json
from collections.abc import Callable, Iterator
from itertools import pairwise

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from fer_pipeline.faces.classify import Classifier
from fer_pipeline.faces.detectors.detections import Detections
from fer_pipeline.faces.pixels import Pixels
from fer_pipeline.faces.quality import FaceQuality, lacks_of, measured, qualities_of
from fer_pipeline.models.bundle import EMBEDDED, read_bundle
from fer_pipeline.models.corruption import CORRUPTIONS
from fer_pipeline.models.framing import FER2013_FRAMING
from fer_pipeline.models.metrics import expected_calibration_error
from tests.benchmarks.label import SHARED

FIGURES = ("side_px", "sharpness", "brightness", "contrast")
BINS = (0, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0)
Spoil = Callable[[Pixels, np.random.Generator], Pixels]


def _as_uint8(images: NDArray[np.floating]) -> Pixels:
    return np.asarray(images.round().clip(0, 255), np.uint8)


def _motion(image: Pixels, rng: np.random.Generator) -> Pixels:
    """Blur along a line of 3 to 13 px in any direction."""
    length = int(rng.integers(3, 14))
    kernel = np.zeros((15, 15), np.float32)
    angle = rng.uniform(0, np.pi)
    for step in np.linspace(-length / 2, length / 2, 4 * length):
        kernel[round(7 + step * np.sin(angle)), round(7 + step * np.cos(angle))] = 1
    return np.asarray(cv2.filter2D(image, -1, kernel / kernel.sum()), np.uint8)


def _defocus(image: Pixels, rng: np.random.Generator) -> Pixels:
    """Blur by a disk of 1 to 5 px of radius."""
    radius = rng.uniform(1, 5)
    y, x = np.mgrid[-5:6, -5:6]
    kernel = (np.hypot(x, y) <= radius).astype(np.float32)
    return np.asarray(cv2.filter2D(image, -1, kernel / kernel.sum()), np.uint8)


def _darkness(image: Pixels, rng: np.random.Generator) -> Pixels:
    """3 to 40 % of the light, with the noise of some 10 photons a grey level at full light."""
    light = rng.uniform(0.03, 0.4)
    return _as_uint8(rng.poisson(image * light * 2) / 2)


def _haze(image: Pixels, rng: np.random.Generator) -> Pixels:
    """Mix with white, 30 to 95 %."""
    share = rng.uniform(0.3, 0.95)
    return _as_uint8(image * (1 - share) + 235 * share)


def _blocks(image: Pixels, rng: np.random.Generator) -> Pixels:
    """Blocks of 2 to 8 equal pixels."""
    side = 48 // int(rng.integers(2, 9))
    small = cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA)
    return np.asarray(cv2.resize(small, (48, 48), interpolation=cv2.INTER_NEAREST), np.uint8)


def _small(image: Pixels, rng: np.random.Generator) -> Pixels:
    """A picture of 10 to 40 px, shrunk without a filter."""
    side = int(rng.integers(10, 41))
    return np.asarray(cv2.resize(image, (side, side), interpolation=cv2.INTER_LINEAR), np.uint8)


def _dim(image: Pixels, rng: np.random.Generator) -> Pixels:
    """3 to 60 % of the light, with noise of two grey levels."""
    return _as_uint8(image * rng.uniform(0.03, 0.6) + rng.normal(0, 2, image.shape))


def _smooth(image: Pixels, rng: np.random.Generator) -> Pixels:
    """Blur with a Gaussian of 1 to 5 px."""
    return np.asarray(cv2.GaussianBlur(image, (0, 0), rng.uniform(1, 5)), np.uint8)


def _shrunk(image: Pixels, rng: np.random.Generator) -> Pixels:
    """A picture of 8 to 40 px, shrunk by area averaging."""
    side = int(rng.integers(8, 41))
    return np.asarray(cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA), np.uint8)


def _unchanged(image: Pixels, rng: np.random.Generator) -> Pixels:
    return image


def _of(corruption: Callable[..., torch.Tensor]) -> Spoil:
    """Return a corruption of trainings, with a random strength, for one grey image."""

    def spoil(image: Pixels, rng: np.random.Generator) -> Pixels:
        generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
        strength = torch.full((1, 1, 1, 1), rng.uniform(0, 1))
        found: Pixels = _as_uint8(corruption(torch.from_numpy(image)[None, None].float(), strength, generator)[0, 0].numpy())
        return found

    return spoil


TO_FIT: dict[str, Spoil] = {"clean": _unchanged, "shrunk": _shrunk, "dim": _dim, "smooth": _smooth}
TO_FIT |= {one.__name__.strip("_"): _of(one) for one in CORRUPTIONS}
TO_MEASURE: dict[str, Spoil] = {
    "clean": _unchanged, "motion": _motion, "defocus": _defocus, "darkness": _darkness, "haze": _haze, "blocks": _blocks,
    "small": _small,
}  # fmt: skip


def faces_of(images: Pixels, spoil: Spoil, seed: int) -> tuple[list[FaceQuality], Pixels]:
    """Return the qualities of spoiled face crops, and the network's input (n, 1, 48, 48) for them."""
    rng, rows, inputs = np.random.default_rng(seed), [], []
    for image in images:
        picture = spoil(image, rng)
        side = picture.shape[0] / FER2013_FRAMING.box_scale
        edge = (picture.shape[0] - side) / 2
        box = Detections(np.array([[edge, edge, side, side]], np.float32), np.ones(1, np.float32))
        rows += qualities_of([measured(np.asarray(cv2.cvtColor(picture, cv2.COLOR_GRAY2BGR), np.uint8), box)])[0]
        inputs.append(cv2.resize(picture, (48, 48), interpolation=cv2.INTER_LINEAR)[None])
    return rows, np.stack(inputs)


def split_of(number: int) -> tuple[Pixels, NDArray[np.int64]]:
    """Return half of the images of PublicTest that are no exact copies of Training images, and their labels."""
    import pyarrow.parquet as pq

    training = set(pq.read_table(SHARED / "data/fer2013/training.parquet", columns=["png"])["png"].to_pylist())
    rows = pq.read_table(SHARED / "data/fer2013/public_test.parquet").to_pylist()
    own = [row for row in rows if row["png"] not in training][number::2]
    images = [np.asarray(cv2.imdecode(np.frombuffer(row["png"], np.uint8), cv2.IMREAD_GRAYSCALE), np.uint8) for row in own]
    return np.stack(images), np.array([row["emotion"] for row in own])


def labelled(
    number: int, spoils: dict[str, Spoil]
) -> Iterator[tuple[str, list[FaceQuality], NDArray[np.float32], NDArray[np.int64]]]:
    """Yield for each corruption of one half: its name, the faces' qualities, their probabilities and their labels."""
    images, labels = split_of(number)
    bundle = read_bundle(EMBEDDED)
    classify = Classifier(bundle, "int8")
    names = "angry disgust fear happy sad surprise neutral".split()
    truth = np.array([bundle.card.label_space.classes.index(names[label]) for label in labels])
    for seed, (name, spoil) in enumerate(spoils.items()):
        rows, inputs = faces_of(images, spoil, seed)
        yield name, rows, classify(inputs), truth


def fit() -> None:
    """Print offset and weights of the logistic regression of right labels on `lacks_of`, and accuracy by corruption."""
    features, right = [], []
    for name, rows, probabilities, truth in labelled(0, TO_FIT):
        features += [lacks_of(row.sharpness, row.brightness, row.contrast) for row in rows]
        hits = probabilities.argmax(1) == truth
        right += hits.tolist()
        middle = {key: round(float(np.median([getattr(row, key) for row in rows])), 3) for key in FIGURES}
        print(json.dumps({"corruption": name, "accuracy": round(float(hits.mean()), 3)} | middle))
    x, y = torch.tensor(features, dtype=torch.float64), torch.tensor(right, dtype=torch.float64)
    weights = torch.zeros(x.shape[1] + 1, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=500, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = torch.nn.functional.binary_cross_entropy_with_logits(weights[0] + x @ weights[1:], y)
        value.backward()
        return value

    optimizer.step(loss)
    offset, *others = (round(value, 2) for value in weights.detach().tolist())
    print(json.dumps({"faces": len(y), "loss": round(loss().item(), 4), "offset": offset, "weights": others}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fit", action="store_true")
    if parser.parse_args().fit:
        fit()
        return
    rows, probabilities, truth = [], [], []
    for name, found, chances, labels in labelled(1, TO_MEASURE):
        quality = np.array([row.quality for row in found])
        print(
            json.dumps(
                {"corruption": name, "accuracy": float((chances.argmax(1) == labels).mean()), "quality": float(quality.mean())}
            )
        )
        rows += found
        probabilities.append(chances)
        truth.append(labels)
    quality, chances, labels = np.array([row.quality for row in rows]), np.concatenate(probabilities), np.concatenate(truth)
    for low, high in pairwise(BINS):
        inside = (quality >= low) & ((quality < high) | (high == 1))
        if inside.any():
            right = chances[inside].argmax(1) == labels[inside]
            error = expected_calibration_error(chances[inside], labels[inside])
            print(json.dumps({"quality": [low, high], "faces": int(inside.sum()), "accuracy": round(float(right.mean()), 3),
                              "confidence": round(float(chances[inside].max(1).mean()), 3), "ece": round(error, 3)}))  # fmt: skip


if __name__ == "__main__":
    main()
