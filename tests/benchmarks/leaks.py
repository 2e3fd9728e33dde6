"""Effect of copies across a split on metrics: classes balanced with augmented copies before the split, and after it.

    python tests/benchmarks/leaks.py --data FER2013 [--epochs 8]

FER-2013's training split is balanced by mirrored and shifted copies of the rarer classes' images. In `before`, the copies are
made first and a random fifth of everything is held out for validation, as many notebooks do: copies of an image are on both
sides. In `after`, a fifth of the originals (exact and near copies together) is held out first and only the rest is
balanced. Both train the network of reference-plain-cnn in the same way, scored on the same unseen images: the dataset's own
validation split without copies of training images. No Ray; one JSON line an epoch.
"""

import argparse
import json
from typing import Any

import numpy as np
import torch

from fer_pipeline.base.storage import normalize
from fer_pipeline.datasets.dataset import read_samples
from fer_pipeline.datasets.duplicates import DUPLICATE_COLUMNS, copy_keys, find_copies
from fer_pipeline.datasets.splits import hold_out
from fer_pipeline.datasets.training_data import SplitReader
from fer_pipeline.models.augmentation import AugmentationConfig, augment
from fer_pipeline.models.labelled_images import LabelledImages
from fer_pipeline.models.networks import build
from fer_pipeline.models.recipe import load_recipe
from fer_pipeline.models.training.feed import Resident
from fer_pipeline.models.training.trainer import Epoch, Trainer, predict

COPIES = AugmentationConfig(flip=0.5, shift=0.1, rotation_deg=0, scale=0, contrast=0, erase=0)
SHARE = 0.2


def balanced(images: LabelledImages, seed: int) -> LabelledImages:
    """Return the images plus shifted copies, so that every class is as large as the largest."""
    generator = torch.Generator().manual_seed(seed)
    counts = images.labels.bincount()
    chosen = []
    for label, count in enumerate(counts.tolist()):
        mine = (images.labels == label).nonzero().ravel()
        chosen.append(mine[torch.randint(len(mine), (int(counts.max()) - count,), generator=generator)])
    copies = images[torch.cat(chosen)]
    moved = torch.cat([augment(part, COPIES, generator) for part in copies.images.split(1024)])
    return LabelledImages(
        torch.cat([images.images, moved]), torch.cat([images.labels, copies.labels]), torch.cat([images.votes, copies.votes])
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", required=True)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    recipe, data = load_recipe("reference-plain-cnn"), normalize(options.data)
    config = recipe.training.model_copy(update={"epochs": options.epochs})

    def read(split: str) -> tuple[LabelledImages, list[str]]:
        found = SplitReader(data, split, recipe.network, tuple(range(7))).load()
        return found.to("cpu"), list(found.ids)

    samples = read_samples(data, DUPLICATE_COLUMNS)
    (images, ids), (fresh, fresh_ids) = read("train"), read("validation")
    copies = find_copies(samples, "validation", "train")
    unseen = fresh[torch.tensor([one not in copies.exact | copies.near for one in fresh_ids])]
    keys = dict(zip(samples["sample_id"].to_pylist(), copy_keys(samples)[1].tolist(), strict=True))
    labels, groups = images.labels.numpy(), np.array([keys[one] for one in ids])

    def train(name: str, train_split: LabelledImages, validation: LabelledImages) -> None:
        torch.manual_seed(config.seed)
        feed = Resident(train_split, config.batch_size)
        trainer = Trainer(
            build(recipe.network, 7),
            train_split.labels.bincount().tolist(),
            config,
            recipe.augmentation,
            feed,
            torch.device("cpu"),
        )

        def on_epoch(epoch: Epoch) -> None:
            line: dict[str, Any] = {"copies_made": name, "epoch": epoch.epoch, "train_images": len(train_split)}
            line |= {"train": epoch.train_accuracy, "validation": epoch.validation_accuracy, "validation_images": len(validation)}
            right = (predict(trainer.network, unseen.images).argmax(1) == unseen.labels).float().mean()
            print(json.dumps(line | {"unseen": float(right), "unseen_images": len(unseen)}), flush=True)

        trainer.fit([validation], on_epoch)

    everything = balanced(images, config.seed)
    order = torch.randperm(len(everything), generator=torch.Generator().manual_seed(config.seed))
    held = int(SHARE * len(order))
    train("before the split", everything[order[held:]], everything[order[:held]])
    out = torch.from_numpy(hold_out(labels, groups, SHARE, config.seed))
    train("after the split", balanced(images[~out], config.seed), images[out])


if __name__ == "__main__":
    main()
