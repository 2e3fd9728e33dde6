"""What picks gain over random faces: the accuracy after the last layer learned the answers about them, from features kept once.

    python -m tests.benchmarks.picks [--model BUNDLE] [--small 0.3] [--seeds 10]

The archive is FER-2013's PublicTest, of which a share is shrunk to 12 px; one half is picked from, the other half judges (each
seed halves anew). The answers are FER-2013's labels, each learned 4 times beside 2,000 Training images. Prints JSON: the gain in
points of accuracy by criterion and number of answers, with the standard error over the seeds.
"""

import argparse
import json
from collections.abc import Callable

import cv2
import numpy as np
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from sklearn.neighbors import NearestNeighbors
from torch import Tensor, nn

from fer_pipeline.models.bundle import EMBEDDED, read_bundle
from fer_pipeline.models.weights import load_network
from tests.benchmarks.label import SHARED

ANSWERS = (25, 50, 100, 200, 400)
OLD, WEIGHT, DECAY = 2000, 4.0, 0.01
Floats = NDArray[np.float64]


def read(name: str) -> tuple[NDArray[np.uint8], list[str]]:
    rows = pq.read_table(SHARED / "data" / "fer2013" / f"{name}.parquet", columns=["png", "emotion_name"])
    images = [np.asarray(cv2.imdecode(np.frombuffer(png, np.uint8), 0), np.uint8) for png in rows["png"].to_pylist()]
    return np.stack(images), rows["emotion_name"].to_pylist()


class Features:
    """The inputs of a network's last layer."""

    def __init__(self, url: str) -> None:
        bundle = read_bundle(url)
        self.classes = bundle.card.label_space.classes
        self.network = load_network(bundle).eval()
        self.last = [one for one in self.network.modules() if isinstance(one, nn.Linear)][-1]
        self.last.register_forward_pre_hook(lambda _, inputs: self._kept.append(inputs[0].detach()))
        self._kept: list[Tensor] = []

    def __call__(self, images: NDArray[np.uint8]) -> Tensor:
        self._kept.clear()
        with torch.no_grad():
            for start in range(0, len(images), 512):
                self.network(torch.from_numpy(images[start : start + 512, None]))
        return torch.cat(self._kept)


def fitted(weight: Tensor, bias: Tensor, features: Tensor, labels: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Return the last layer after it learned weighted features, kept near its first state."""
    new = [weight.clone().requires_grad_(), bias.clone().requires_grad_()]
    optimizer = torch.optim.LBFGS(new, max_iter=15, line_search_fn="strong_wolfe")

    def step() -> Tensor:
        optimizer.zero_grad()
        losses = nn.functional.cross_entropy(features @ new[0].T + new[1], labels, reduction="none")
        away = sum(((one - before) ** 2).sum() for one, before in zip(new, (weight, bias), strict=True))
        loss = (losses * weights).sum() / weights.sum() + DECAY * away
        loss.backward()
        return loss

    optimizer.step(step)
    return new[0].detach(), new[1].detach()


def criteria(chances: Floats, mirrored: Floats, distance: Floats) -> dict[str, Callable[[np.random.Generator], Floats]]:
    """Return, by name, what is lowest for the faces to pick."""
    top = np.sort(chances, 1)
    predicted = chances.argmax(1)
    frequency = np.bincount(predicted, minlength=chances.shape[1])[predicted]
    margin = top[:, -1] - top[:, -2]
    ranks = [np.argsort(np.argsort(one)) for one in (margin, -np.abs(chances - mirrored).sum(1), frequency, -distance)]
    return {
        "random": lambda rng: rng.random(len(chances)),
        "margin": lambda rng: margin,
        "mirrored view": lambda rng: -np.abs(chances - mirrored).sum(1),
        "rare class": lambda rng: frequency + rng.random(len(chances)),
        "distance": lambda rng: -distance,
        "all four": lambda rng: np.sum(ranks, 0).astype(np.float64),
        "margin in rare classes": lambda rng: ranks[0] + ranks[2].astype(np.float64),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(EMBEDDED))
    parser.add_argument("--small", type=float, default=0.3)
    parser.add_argument("--seeds", type=int, default=10)
    options = parser.parse_args()
    features = Features(options.model)
    (old, old_names), (images, names) = read("training"), read("public_test")
    small = np.random.default_rng(1).random(len(images)) < options.small
    shrunk = [cv2.resize(cv2.resize(one, (12, 12), interpolation=cv2.INTER_AREA), (48, 48)) for one in images]
    images = np.where(small[:, None, None], np.stack(shrunk), images).astype(np.uint8)
    place = {name: index for index, name in enumerate(features.classes)}
    few = np.random.default_rng(2).permutation(len(old))[:OLD]
    learned, labels_learned = features(old[few]), torch.tensor([place[old_names[index]] for index in few])
    ours, mirror = features(images), features(np.ascontiguousarray(images[:, :, ::-1]))
    labels = torch.tensor([place[name] for name in names])
    weight, bias = features.last.weight.detach(), features.last.bias.detach()
    chances, mirrored = (torch.softmax(one @ weight.T + bias, 1).numpy().astype(np.float64) for one in (ours, mirror))
    distance = NearestNeighbors(n_neighbors=10).fit(learned.numpy()).kneighbors(ours.numpy())[0].mean(1)
    gains: dict[str, list[list[float]]] = {}
    for seed in range(options.seeds):
        rng = np.random.default_rng(seed)
        order = rng.permutation(len(images))
        pool, judged = order[::2], order[1::2]

        def accuracy(weight: Tensor, bias: Tensor, judged: NDArray[np.intp] = judged) -> float:
            return float(((ours[judged] @ weight.T + bias).argmax(1) == labels[judged]).double().mean())

        again = fitted(weight, bias, learned, labels_learned, torch.ones(OLD))
        before = accuracy(*again)
        for name, lowest in criteria(chances[pool], mirrored[pool], distance[pool]).items():
            best = pool[np.argsort(lowest(rng), kind="stable")]
            found = []
            for count in (*ANSWERS, len(pool)):
                picked = best[:count]
                weights = torch.cat([torch.ones(OLD), torch.full((len(picked),), WEIGHT)])
                both = torch.cat([learned, ours[picked]]), torch.cat([labels_learned, labels[picked]])
                found.append(100 * (accuracy(*fitted(*again, *both, weights)) - before))
            gains.setdefault(name, []).append(found)
    for name, rows in gains.items():
        mean, error = np.mean(rows, 0), np.std(rows, 0, ddof=1) / len(rows) ** 0.5
        row = {str(count): f"{m:+.2f} ±{e:.2f}" for count, m, e in zip((*ANSWERS, "all"), mean, error, strict=True)}
        print(json.dumps({"criterion": name} | row), flush=True)


if __name__ == "__main__":
    main()
