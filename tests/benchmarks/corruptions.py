"""Accuracy on corrupted images, by corruption and strength, on the same images for every model. Prints JSON lines.

    python -m tests.benchmarks.corruptions DATASET [--split validation] [--model embedded MODEL...] [--precision fp32|bf16|int8]

Each corruption of `fer_pipeline/models/corruption.py` is applied to all images at five strengths with a seeded generator. `mean`
is the mean accuracy over all of them (1 minus ImageNet-C's mean corruption error, not normalised); `clean` has none.
"""

import argparse
import json
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fer_pipeline.datasets.dataset import read_dataset
from fer_pipeline.datasets.training_data import SplitReader, class_indices
from fer_pipeline.faces.classify import Classifier
from fer_pipeline.models.bundle import EMBEDDED, read_bundle
from fer_pipeline.models.corruption import CORRUPTIONS

STRENGTHS = (0.2, 0.4, 0.6, 0.8, 1.0)


def corrupted(images: Tensor) -> Iterator[tuple[str, float, Tensor]]:
    """Yield the name, the strength and the uint8 images (n, c, h, w) of every corruption."""
    for number, corruption in enumerate(CORRUPTIONS):
        for strength in STRENGTHS:
            generator = torch.Generator().manual_seed(1000 * number + round(10 * strength))
            amounts = torch.full((len(images), 1, 1, 1), strength)
            spoiled = [
                corruption(images[first : first + 256].float(), amounts[first : first + 256], generator)
                for first in range(0, len(images), 256)
            ]
            name = getattr(corruption, "__name__", str(number)).strip("_")
            yield name, strength, torch.cat(spoiled).round().clamp(0, 255).to(torch.uint8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset")
    parser.add_argument("--split", default="validation")
    parser.add_argument("--model", nargs="+", default=[EMBEDDED])
    parser.add_argument("--precision", default="fp32", choices=("fp32", "bf16", "int8"))
    options = parser.parse_args()
    bundles = {name: read_bundle(name).computing_in(options.precision) for name in options.model}
    card = next(iter(bundles.values())).card
    classes = class_indices(read_dataset(options.dataset).label_space.classes, card.label_space)
    split = SplitReader(options.dataset, options.split, card.network, classes).load()
    images, labels = torch.from_numpy(split.images), split.labels
    classifiers = {name: Classifier(bundle, options.precision) for name, bundle in bundles.items()}
    tables: dict[str, dict[str, list[float]]] = {name: {} for name in classifiers}
    for name, classifier in classifiers.items():
        tables[name]["clean"] = [accuracy(classifier, images, labels)]
    for corruption, _, spoiled in corrupted(images):
        for name, classifier in classifiers.items():
            tables[name].setdefault(corruption, []).append(accuracy(classifier, spoiled, labels))
    for name, table in tables.items():
        clean = table.pop("clean")[0]
        mean = float(np.mean([value for row in table.values() for value in row]))
        rows = {corruption: [round(value, 4) for value in row] for corruption, row in table.items()}
        print(json.dumps({"model": name, "precision": options.precision, "clean": clean, "mean": mean, "corruptions": rows}))


def accuracy(classifier: Classifier, images: Tensor, labels: NDArray[np.int64]) -> float:
    return float((classifier.logits(images.numpy()).argmax(1) == labels).mean())


if __name__ == "__main__":
    main()
