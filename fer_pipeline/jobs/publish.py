"""Publish a training: evaluate and calibrate the selected weights, draw its pictures, write the model bundle."""

import json
import logging
import posixpath
from typing import Any

import torch

from fer_pipeline.core import duplicates, storage
from fer_pipeline.core.dataset import DatasetCard, read_samples
from fer_pipeline.core.duplicates import Copies, find_copies, split_digest
from fer_pipeline.jobs.fit import Plan
from fer_pipeline.models.bundle import pack, save_bundle
from fer_pipeline.models.calibration import calibrate
from fer_pipeline.models.card import CARD, CARD_MARKDOWN, CARD_PAGE, CONFUSION, CURVES, HISTORY, WEIGHTS, ModelCard, TrainingData
from fer_pipeline.models.evaluation import Predictions, evaluate, joined, predictions_of
from fer_pipeline.models.networks import build, keep_outputs
from fer_pipeline.models.recipe import Recipe
from fer_pipeline.models.training import State, predict
from fer_pipeline.report.card import card_markdown, card_page
from fer_pipeline.report.training import confusion_png, curves_png
from fer_pipeline.stages.samples import SplitReader

log = logging.getLogger(__name__)

FILES_BEFORE_CARD = (HISTORY, CURVES, CONFUSION, CARD_MARKDOWN, CARD_PAGE, WEIGHTS)
"""What a training that was killed while it published its bundle may have left."""
TERMS = {"fer2013-csv": "FER-2013 (Goodfellow et al., 2013): research data, not for commercial use."}


def publish(plan: Plan, dataset: DatasetCard, out: str, state: State) -> ModelCard:
    """Write curves, confusion matrix and bundle into the folder `out`, and return the bundle's card."""
    recipe, classes = plan.recipe, plan.space.classes
    network = build(recipe.network, len(classes))
    network.load_state_dict(keep_outputs(state["best"], len(classes)))
    samples = read_samples(plan.train.dataset, duplicates.COLUMNS)
    copies = find_copies(samples, recipe.validation_split, recipe.train_split, plan.train.leave_out)
    predictions = _predicted(network, plan.validation, copies)
    logits, labels = torch.from_numpy(predictions.logits), torch.from_numpy(predictions.labels)
    calibration = calibrate(logits, labels, recipe.calibration.certain_accuracy)
    selected = max(state["history"], key=lambda epoch: epoch["validation_accuracy"])
    measured: dict[str, Any] = {
        "split": recipe.validation_split,
        "selected_on_this_split": True,
        "views": 2 if recipe.network.flip_averaging else 1,
        "precision": "fp32",
    }
    metrics = {
        "validation": measured | evaluate(predictions, plan.space, calibration, dataset.vote_classes),
        "validation_without_training_images": measured
        | evaluate(predictions[~predictions.learned], plan.space, calibration, dataset.vote_classes),
    }
    initial = plan.initial
    card = ModelCard(
        name=recipe.name,
        network=recipe.network,
        label_space=plan.space,
        framing=recipe.framing,
        calibration=calibration,
        data=TrainingData(
            layout=dataset.layout,
            terms=TERMS.get(dataset.layout, "Those of the dataset that was ingested."),
            digest=dataset.digest,
            train_split=recipe.train_split,
            train_digest=split_digest(samples, recipe.train_split),
            train_images=sum(plan.class_counts) - len(plan.train.leave_out),
            left_out=len(plan.train.leave_out),
            validation_split=recipe.validation_split,
            validation_digest=split_digest(samples, recipe.validation_split),
        ),
        metrics=metrics | {"selected_epoch": selected["epoch"], "epochs": len(state["history"])},
        recipe=_described(recipe) | ({"initial": initial.card.recipe} if initial else {}),
    )
    confusion = metrics["validation"]["confusion"]
    history = json.dumps(state["history"], indent=1).encode()
    storage.write_bytes(storage.join(out, HISTORY), history)
    storage.write_bytes(storage.join(out, CURVES), curves_png(state["history"], selected["epoch"]))
    title = f"{recipe.name} on {recipe.validation_split}: accuracy {metrics['validation']['accuracy']:.3f}"
    storage.write_bytes(storage.join(out, CONFUSION), confusion_png(confusion, classes, title))
    bundle = pack(network, card)
    storage.write_bytes(storage.join(out, CARD_MARKDOWN), card_markdown(card, bundle.digest).encode())
    storage.write_bytes(storage.join(out, CARD_PAGE), card_page(card, bundle.digest, history).encode())
    save_bundle(out, bundle)
    log.info("Model bundle: %s", storage.join(out, CARD))
    return card


def _described(recipe: Recipe) -> dict[str, Any]:
    """Return the recipe for the card; of a file with pretrained weights its name alone, for bundles travel."""
    facts = recipe.model_dump(mode="json")
    return facts | {"pretrained": recipe.pretrained and posixpath.basename(recipe.pretrained)}


def _predicted(network: torch.nn.Module, reader: SplitReader, copies: Copies) -> Predictions:
    """Return the predictions for a split, of which only a stretch is held as images."""
    parts = []
    for chunk in reader.chunks():
        logits = predict(network, torch.from_numpy(chunk.images)).numpy()
        parts.append(predictions_of(chunk.ids, logits, chunk.labels, chunk.votes, copies))
    return joined(parts)
