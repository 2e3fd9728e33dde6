"""Publish a training: evaluate and calibrate the selected weights, draw its pictures, write the model bundle."""

import hashlib
import json
import logging
import posixpath
from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from fer_pipeline.core import duplicates, storage
from fer_pipeline.core.dataset import DatasetInfo, read_samples
from fer_pipeline.core.duplicates import split_digest
from fer_pipeline.core.figures import SplitFigures
from fer_pipeline.core.learned import MOST_IMAGES, find_learned, joined, learned_images
from fer_pipeline.jobs.scoring import ScoringContext, predict_split
from fer_pipeline.jobs.train.rank import Plan
from fer_pipeline.models.bundle import (
    CARD_MARKDOWN,
    CARD_PAGE,
    CONFUSION,
    CURVES,
    HISTORY,
    LEARNED_FILE,
    MODEL_FILE,
    WEIGHTS_FILE,
    save_bundle,
)
from fer_pipeline.models.card import ModelCard, ModelMetrics, TrainingData
from fer_pipeline.models.evaluation import judge
from fer_pipeline.models.networks import build
from fer_pipeline.models.recipe import Recipe
from fer_pipeline.models.training.trainer import Epoch, State, kept_epoch
from fer_pipeline.models.weights import keep_outputs, load_network, mean_weights, pack
from fer_pipeline.report.card import card_markdown, card_page
from fer_pipeline.report.training import confusion_png, curves_png

log = logging.getLogger(__name__)

FILES_BEFORE_CARD = (HISTORY, LEARNED_FILE, CURVES, CONFUSION, CARD_MARKDOWN, CARD_PAGE, WEIGHTS_FILE)
"""What a training that was killed while it published its bundle may have left."""


Lineage = Sequence[tuple[ModelCard, pa.Table | None]]
"""Cards of models, and what they learned as rows of `learned.LEARNED`, where that is known."""


def publish(
    plan: Plan, dataset: DatasetInfo, out: str, state: State, lineage: Lineage, facts: dict[str, Any], wait_s: float
) -> SplitFigures:
    """Write curves, confusion matrix and bundle into the folder `out`, and return its figures.

    `lineage` are the models that the training began as and was taught by, `facts` what decided its weights.
    """
    recipe, classes = plan.recipe, plan.space.classes
    network = build(recipe.network, len(classes))
    weights = keep_outputs(state["kept"], len(classes))
    if plan.initial and recipe.training.keep_initial:
        weights = mean_weights(weights, load_network(plan.initial).state_dict(), recipe.training.keep_initial)
    network.load_state_dict(weights)
    samples = read_samples(plan.train.dataset, duplicates.DUPLICATE_COLUMNS)
    learned, external, unknown = _learned(plan, samples, lineage)
    copies = find_learned(samples, recipe.validation_split, learned)
    unjudged = pack(network, ModelCard(name=recipe.name, network=recipe.network, label_space=plan.space))
    context = ScoringContext(unjudged, plan.validation, "fp32", "cuda" if plan.use_gpu else "cpu")
    predictions = predict_split(context, wait_s)
    views = 2 if recipe.network.flip_averaging else 1
    how = {"split": recipe.validation_split, "views": views, "precision": "fp32"}
    judged = judge(predictions, copies, plan.space, recipe.calibration.certain_accuracy, dataset.vote_classes, **how)
    validation, selected = judged.validation, selected_epoch(state["history"], recipe)
    initial, kept = plan.initial, storage.table_bytes(learned) if len(learned) <= MOST_IMAGES else None
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
            left_out=0 if plan.initial or plan.teachers else len(plan.train.leave_out),
            validation_split=recipe.validation_split,
            validation_digest=split_digest(samples, recipe.validation_split),
            learned_sha256=hashlib.sha256(kept).hexdigest() if kept else None,
            external=external,
            unknown=unknown,
        ),
        metrics=ModelMetrics(
            validation=validation,
            validation_without_training_images=judged.without_training_images,
            selected_epoch=selected,
            epochs=len(state["history"]),
        ),
        recipe=_described(recipe) | ({"initial": initial.card.recipe} if initial else {}),
        training=facts,
    )
    history = json.dumps(state["history"], indent=1).encode()
    storage.write_bytes(storage.join(out, HISTORY), history)
    if kept:
        storage.write_bytes(storage.join(out, LEARNED_FILE), kept)
    title = f"{recipe.name} on {recipe.validation_split}: accuracy {validation.accuracy:.3f}"
    bundle = pack(network, card)
    for name, draw in (
        (CURVES, lambda: curves_png(state["history"], selected)),
        (CONFUSION, lambda: confusion_png(validation.confusion, classes, title)),
        (CARD_MARKDOWN, lambda: card_markdown(card, bundle.digest).encode()),
        (CARD_PAGE, lambda: card_page(card, bundle.digest, history).encode()),
    ):
        _write_if_drawn(storage.join(out, name), draw)
    save_bundle(out, bundle)
    log.info("Model bundle: %s", storage.join(out, MODEL_FILE))
    return validation


def _write_if_drawn(url: str, draw: Callable[[], bytes]) -> None:
    """Write a picture or a page of a bundle; one that cannot be drawn is missing, which costs no training."""
    try:
        data = draw()
    except Exception as error:
        log.warning("'%s' is left out, it cannot be drawn: %s", url, storage.reason(error), exc_info=True)
        return
    storage.write_bytes(url, data)


def _learned(plan: Plan, samples: pa.Table, lineage: Lineage) -> tuple[pa.Table, tuple[str, ...], tuple[str, ...]]:
    """Return the images that the model learned, by itself or by way of others.

    With them the datasets of which only the names are known, and the models of which nothing is.
    """
    recipe = plan.recipe
    chosen = pc.and_(
        pc.equal(samples["split"], recipe.train_split),
        pc.invert(pc.is_in(samples["sample_id"], pa.array(plan.train.leave_out, pa.string()))),
    )
    parts, external, unknown = [learned_images(samples.filter(chosen))], set[str](), set[str]()
    if recipe.pretrained:
        (external if recipe.pretrained_on else unknown).add(recipe.pretrained_on or f"pretrained {recipe.network.architecture}")
    for card, theirs in lineage:
        parts += [theirs] if theirs is not None else []
        external |= set(card.data.external)
        unknown |= {*card.data.unknown, *([card.name] if theirs is None else [])}
    return joined(parts), tuple(sorted(external)), tuple(sorted(unknown))


def selected_epoch(history: list[dict[str, Any]], recipe: Recipe) -> int:
    """Return the epoch whose weights were kept."""
    return kept_epoch([Epoch(**epoch) for epoch in history], recipe.training)


def _described(recipe: Recipe) -> dict[str, Any]:
    """Return the recipe for the card; of a file with pretrained weights its name alone, for bundles travel."""
    facts = recipe.model_dump(mode="json")
    return facts | {"pretrained": recipe.pretrained and posixpath.basename(recipe.pretrained)}
