"""Compare top-class accuracy with per-output binary accuracy over the epochs of a training.

    python tests/benchmarks/claims.py RECIPE --data DATASET [--from-scratch] [--image-px 48] [--epochs 2]

After each epoch it prints, for the training split (not augmented) and the validation split, the accuracy of the top class and the
per-output binary accuracy: the share of the n * K outputs on the right side of .5, which some libraries report as "accuracy" when
a network with K outputs is compiled with a binary loss. An output that never passes .5 is right for all but 1 of K classes, so
a network that has learned nothing scores 1 - 1/K: .875 for eight classes. No Ray; one JSON line an epoch.
"""

import argparse
import json
from typing import Any

import torch

from fer_pipeline.base.storage import normalize
from fer_pipeline.datasets.dataset import read_dataset
from fer_pipeline.jobs.train.config import TrainConfig
from fer_pipeline.jobs.train.plan import make_plan
from fer_pipeline.jobs.train.rank import make_trainer
from fer_pipeline.models.labelled_images import LabelledImages
from fer_pipeline.models.metrics import per_output_accuracy
from fer_pipeline.models.recipe import load_recipe
from fer_pipeline.models.training.trainer import Epoch, predict


def judged(network: torch.nn.Module, split: LabelledImages) -> dict[str, float]:
    logits = predict(network, split.images)
    probabilities, labels = torch.softmax(logits, 1).numpy(), split.labels.numpy()
    return {
        "accuracy": float((probabilities.argmax(1) == labels).mean()),
        "per_output_accuracy": per_output_accuracy(probabilities, labels),
        "largest_probability": float(probabilities.max()),
        "share_above_half": float((probabilities.max(1) > 0.5).mean()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("recipe")
    parser.add_argument("--data", required=True)
    parser.add_argument("--from-scratch", action="store_true")
    parser.add_argument("--image-px", type=int)
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    recipe = load_recipe(options.recipe)
    network = recipe.network.model_copy(update={"image_px": options.image_px or recipe.network.image_px})
    training = recipe.training.model_copy(update={"epochs": options.epochs or recipe.training.epochs})
    pretrained = None if options.from_scratch else recipe.pretrained
    recipe = recipe.model_copy(update={"network": network, "training": training, "pretrained": pretrained})
    data = normalize(options.data)
    config = TrainConfig(recipe=recipe.name, data=data, out="", allow_missing_classes=True)
    plan = make_plan(config, recipe, read_dataset(data), data, None)
    trainer = make_trainer(plan, torch.device("cpu"))
    splits = {"train": plan.train.load().to("cpu"), "validation": plan.validation.load().to("cpu")}

    def show(epoch: int, **more: Any) -> None:
        figures = {name: judged(trainer.network, split) for name, split in splits.items()}
        print(json.dumps({"epoch": epoch} | figures | more), flush=True)

    def on_epoch(epoch: Epoch) -> None:
        show(epoch.epoch, images_per_s=round(epoch.images_per_s, 1))

    show(0)
    trainer.fit([splits["validation"]], on_epoch)


if __name__ == "__main__":
    main()
