"""Publish a training: evaluate and calibrate the selected weights, draw its pictures, write the model bundle."""

import json
import logging
import posixpath
from typing import Any

from fer_pipeline.core import duplicates, storage
from fer_pipeline.core.dataset import DatasetInfo, read_samples
from fer_pipeline.core.duplicates import find_copies, split_digest
from fer_pipeline.core.figures import SplitFigures
from fer_pipeline.jobs.scoring import ScoringContext, predict_split
from fer_pipeline.jobs.train.rank import Plan
from fer_pipeline.models.bundle import CARD_MARKDOWN, CARD_PAGE, CONFUSION, CURVES, HISTORY, MODEL_FILE, WEIGHTS_FILE, save_bundle
from fer_pipeline.models.card import ModelCard, ModelMetrics, TrainingData
from fer_pipeline.models.evaluation import judge
from fer_pipeline.models.networks import build
from fer_pipeline.models.recipe import Recipe
from fer_pipeline.models.training.trainer import Epoch, State, kept_epoch
from fer_pipeline.models.weights import keep_outputs, load_network, mean_weights, pack
from fer_pipeline.report.card import card_markdown, card_page
from fer_pipeline.report.training import confusion_png, curves_png

log = logging.getLogger(__name__)

FILES_BEFORE_CARD = (HISTORY, CURVES, CONFUSION, CARD_MARKDOWN, CARD_PAGE, WEIGHTS_FILE)
"""What a training that was killed while it published its bundle may have left."""


def publish(plan: Plan, dataset: DatasetInfo, out: str, state: State, wait_s: float) -> SplitFigures:
    """Write curves, confusion matrix and bundle into the folder `out`, and return its figures."""
    recipe, classes = plan.recipe, plan.space.classes
    network = build(recipe.network, len(classes))
    weights = keep_outputs(state["kept"], len(classes))
    if plan.initial and recipe.training.keep_initial:
        weights = mean_weights(weights, load_network(plan.initial).state_dict(), recipe.training.keep_initial)
    network.load_state_dict(weights)
    samples = read_samples(plan.train.dataset, duplicates.DUPLICATE_COLUMNS)
    # A model to start from or to learn from may have learned what this training left out.
    never_learned = frozenset() if plan.initial or plan.teachers else plan.train.leave_out
    copies = find_copies(samples, recipe.validation_split, recipe.train_split, never_learned)
    unjudged = pack(network, ModelCard(name=recipe.name, network=recipe.network, label_space=plan.space))
    context = ScoringContext(unjudged, plan.validation, "fp32", "cuda" if plan.use_gpu else "cpu")
    predictions = predict_split(context, wait_s)
    views = 2 if recipe.network.flip_averaging else 1
    how = {"split": recipe.validation_split, "views": views, "precision": "fp32"}
    judged = judge(predictions, copies, plan.space, recipe.calibration.certain_accuracy, dataset.vote_classes, **how)
    validation, selected = judged.validation, selected_epoch(state["history"], recipe)
    initial = plan.initial
    card = ModelCard(
        name=recipe.name,
        network=recipe.network,
        label_space=plan.space,
        framing=plan.framing,
        calibration=judged.calibration,
        data=TrainingData(
            layout=dataset.layout,
            terms=dataset.terms,
            digest=dataset.digest,
            train_split=recipe.train_split,
            train_digest=split_digest(samples, recipe.train_split),
            train_images=sum(plan.class_counts),
            left_out=len(never_learned),
            validation_split=recipe.validation_split,
            validation_digest=split_digest(samples, recipe.validation_split),
        ),
        metrics=ModelMetrics(
            validation=validation,
            validation_without_training_images=judged.without_training_images,
            selected_epoch=selected,
            epochs=len(state["history"]),
        ),
        recipe=_described(recipe) | ({"initial": initial.card.recipe} if initial else {}),
    )
    history = json.dumps(state["history"], indent=1).encode()
    storage.write_bytes(storage.join(out, HISTORY), history)
    storage.write_bytes(storage.join(out, CURVES), curves_png(state["history"], selected))
    title = f"{recipe.name} on {recipe.validation_split}: accuracy {validation.accuracy:.3f}"
    storage.write_bytes(storage.join(out, CONFUSION), confusion_png(validation.confusion, classes, title))
    bundle = pack(network, card)
    storage.write_bytes(storage.join(out, CARD_MARKDOWN), card_markdown(card, bundle.digest).encode())
    storage.write_bytes(storage.join(out, CARD_PAGE), card_page(card, bundle.digest, history).encode())
    save_bundle(out, bundle)
    log.info("Model bundle: %s", storage.join(out, MODEL_FILE))
    return validation


def selected_epoch(history: list[dict[str, Any]], recipe: Recipe) -> int:
    """Return the epoch whose weights were kept."""
    return kept_epoch([Epoch(**epoch) for epoch in history], recipe.training)


def _described(recipe: Recipe) -> dict[str, Any]:
    """Return the recipe for the card; of a file with pretrained weights its name alone, for bundles travel."""
    facts = recipe.model_dump(mode="json")
    return facts | {"pretrained": recipe.pretrained and posixpath.basename(recipe.pretrained)}
