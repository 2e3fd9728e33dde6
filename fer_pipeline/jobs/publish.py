"""Publish a training: evaluate and calibrate the selected weights, draw its pictures, write the model bundle."""

import json
import logging
from typing import Any

import numpy as np
import torch

from fer_pipeline.core import storage
from fer_pipeline.core.dataset import DatasetCard
from fer_pipeline.core.metrics import summarize
from fer_pipeline.jobs.fit import Plan, to_tensors
from fer_pipeline.models.bundle import save_bundle
from fer_pipeline.models.calibration import calibrate, cross_fitted_ece
from fer_pipeline.models.card import CARD, WEIGHTS, ModelCard
from fer_pipeline.models.networks import build, keep_outputs
from fer_pipeline.models.recipe import Recipe
from fer_pipeline.models.training import State, predict
from fer_pipeline.report.training import confusion_png, curves_png
from fer_pipeline.stages.samples import SplitReader

log = logging.getLogger(__name__)

FILES_BEFORE_CARD = ("history.json", "curves.png", "confusion.png", WEIGHTS)
"""What a training that was killed while it published its bundle may have left."""
TERMS = {"fer2013-csv": "FER-2013 (Goodfellow et al., 2013): research data, not for commercial use."}


def publish(plan: Plan, dataset: DatasetCard, out: str, state: State) -> ModelCard:
    """Write curves, confusion matrix and bundle into the folder `out`, and return the bundle's card."""
    recipe, classes = plan.recipe, plan.space.classes
    network = build(recipe.network, len(classes))
    network.load_state_dict(keep_outputs(state["best"], len(classes)))
    logits, labels, digests = _predicted(network, plan.validation)
    learned = {digest for chunk in plan.train.digests() for digest in chunk}
    calibration = calibrate(logits, labels, recipe.calibration.certain_accuracy)
    probabilities = torch.softmax(logits / calibration.temperature, 1).numpy()
    selected = max(state["history"], key=lambda epoch: epoch["validation_accuracy"])
    fresh = np.array([digest not in learned for digest in digests])
    metrics = _metrics(recipe, probabilities, labels.numpy(), fresh, classes)
    certain = probabilities.max(1) >= calibration.uncertain_below
    metrics["validation"] |= {
        "ece_cross_fitted": cross_fitted_ece(logits, labels, digests),
        "coverage_certain": float(certain.mean()),
    }
    initial = plan.initial
    card = ModelCard(
        name=recipe.name,
        network=recipe.network,
        label_space=plan.space,
        framing=recipe.framing,
        calibration=calibration,
        data={
            "layout": dataset.layout,
            "digest": dataset.digest,
            "train_split": recipe.train_split,
            "train_images": sum(plan.class_counts) - len(plan.train.leave_out),
            "left_out": len(plan.train.leave_out),
            "terms": TERMS.get(dataset.layout, "Those of the dataset that was ingested."),
        },
        metrics=metrics | {"selected_epoch": selected["epoch"], "epochs": len(state["history"])},
        recipe=recipe.model_dump(mode="json") | ({"initial": initial.card.recipe} if initial else {}),
    )
    confusion = metrics["validation"]["confusion"]
    storage.write_bytes(storage.join(out, "history.json"), json.dumps(state["history"], indent=1).encode())
    storage.write_bytes(storage.join(out, "curves.png"), curves_png(state["history"], selected["epoch"]))
    title = f"{recipe.name} on {recipe.validation_split}: accuracy {metrics['validation']['accuracy']:.3f}"
    storage.write_bytes(storage.join(out, "confusion.png"), confusion_png(confusion, classes, title))
    save_bundle(out, network, card)
    log.info("Model bundle: %s", storage.join(out, CARD))
    return card


def _predicted(network: torch.nn.Module, reader: SplitReader) -> tuple[torch.Tensor, torch.Tensor, list[str]]:
    """Return logits, labels and digests of a split, of which only a stretch is held as images."""
    logits, labels, digests = [], [], list[str]()
    for chunk in reader.chunks():
        images = to_tensors(chunk)
        logits.append(predict(network, images.images))
        labels.append(images.labels)
        digests += chunk.digests
    return torch.cat(logits), torch.cat(labels), digests


def _metrics(recipe: Recipe, probabilities: Any, labels: Any, fresh: Any, classes: tuple[str, ...]) -> dict[str, Any]:
    """Return the figures on all of the validation split, and without the images that also stand in the training split."""
    views = 2 if recipe.network.flip_averaging else 1
    measured = {"split": recipe.validation_split, "selected_on_this_split": True, "views": views, "precision": "fp32"}
    whole = summarize(probabilities, labels, classes)
    without = summarize(probabilities[fresh], labels[fresh], classes)
    return {"validation": measured | whole, "validation_without_training_images": measured | without}
