"""Evaluate and calibrate the selected weights of a training, draw its pictures, and write the model bundle."""

import hashlib
import json
import logging
import posixpath
from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from fer_pipeline.base import storage
from fer_pipeline.base.storage import parquet
from fer_pipeline.datasets import duplicates
from fer_pipeline.datasets.dataset import DatasetInfo, read_samples
from fer_pipeline.datasets.duplicates import split_digest
from fer_pipeline.datasets.leaks import find_learned, joined, learned_images
from fer_pipeline.datasets.training_data import SplitReader
from fer_pipeline.engine.machines import Machines
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
    MOST_IMAGES,
    WEIGHTS_FILE,
    Bundle,
    save_bundle,
)
from fer_pipeline.models.card import ModelCard, ModelMetrics, TrainingData
from fer_pipeline.models.evaluation import judge
from fer_pipeline.models.figures import SplitFigures
from fer_pipeline.models.networks import build
from fer_pipeline.models.recipe import Recipe
from fer_pipeline.models.training.trainer import Epoch, State, kept_epoch
from fer_pipeline.models.weights import keep_outputs, load_network, mean_weights, pack
from fer_pipeline.report.card import card_markdown, card_page
from fer_pipeline.report.training import confusion_png, curves_png

log = logging.getLogger(__name__)

FILES_BEFORE_CARD = (HISTORY, LEARNED_FILE, CURVES, CONFUSION, CARD_MARKDOWN, CARD_PAGE, WEIGHTS_FILE)
"""Files that a training may leave if it is killed while it writes its bundle."""


Lineage = Sequence[tuple[ModelCard, pa.Table | None]]
"""Cards of models, each with the images that it learned as rows of `bundle.LEARNED`; None if they are unknown."""


def write_bundle(
    plan: Plan, dataset: DatasetInfo, out: str, state: State, lineage: Lineage, facts: dict[str, Any], machines: Machines
) -> SplitFigures:
    """Write curves, confusion matrix and bundle into the folder `out`, and return the figures on the validation split.

    `lineage`: the initial model and the teachers. `facts`: what decided the weights.
    """
    recipe, outputs = plan.recipe, len(plan.space.classes)
    network = build(recipe.network, outputs)
    weights = keep_outputs(state["kept"], outputs)
    if plan.initial and recipe.training.keep_initial:
        weights = mean_weights(weights, load_network(plan.initial).state_dict(), recipe.training.keep_initial)
    network.load_state_dict(weights)
    samples = read_samples(plan.train.dataset, duplicates.DUPLICATE_COLUMNS)
    learned, external, unknown = _learned_images(plan, samples, lineage)
    copies = find_learned(samples, recipe.validation_split, learned)
    unjudged = pack(network, ModelCard(name=recipe.name, network=recipe.network, label_space=plan.space))
    context = ScoringContext(unjudged, plan.validation, "fp32", "cuda" if plan.use_gpu else "cpu")
    predictions = predict_split(context, machines)
    views = 2 if recipe.network.flip_averaging else 1
    how = {"split": recipe.validation_split, "views": views, "precision": "fp32"}
    judged = judge(
        predictions, copies.learned, copies.groups, plan.space, recipe.calibration.certain_accuracy, dataset.vote_classes, **how
    )
    validation = judged.validation
    initial, kept = plan.initial, parquet.table_bytes(learned) if len(learned) <= MOST_IMAGES else None
    unknown = (*unknown, *(["a mixed dataset"] if plan.mixed and not kept else []))
    card = ModelCard(
        name=recipe.name,
        network=recipe.network,
        label_space=plan.space,
        framing=plan.framing,
        calibration=judged.calibration,
        data=TrainingData(
            layout=dataset.layout,
            terms=_terms(plan, dataset),
            digest=dataset.digest,
            train_split=recipe.train_split,
            train_digest=split_digest(samples, recipe.train_split),
            train_images=sum(plan.class_counts) + (sum(plan.mixed.class_counts) if plan.mixed else 0),
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
            selected_epoch=selected_epoch(state["history"], recipe),
            epochs=len(state["history"]),
        ),
        recipe=_recipe_facts(recipe) | ({"initial": initial.card.recipe} if initial else {}),
        training=facts,
    )
    if kept:
        storage.write_bytes(storage.join(out, LEARNED_FILE), kept)
    bundle = pack(network, card)
    _write_history(out, recipe, bundle, validation, state["history"])
    save_bundle(out, bundle)
    log.info("Model bundle: %s", storage.join(out, MODEL_FILE))
    return validation


def _write_history(out: str, recipe: Recipe, bundle: Bundle, validation: SplitFigures, history: list[dict[str, Any]]) -> None:
    """Write the epochs of a training, its pictures and the card of its model."""
    card, title = bundle.card, f"{recipe.name} on {recipe.validation_split}: accuracy {validation.accuracy:.3f}"
    epochs = json.dumps(history, indent=1).encode()
    storage.write_bytes(storage.join(out, HISTORY), epochs)
    for name, draw in (
        (CURVES, lambda: curves_png(history, selected_epoch(history, recipe))),
        (CONFUSION, lambda: confusion_png(validation.confusion, card.label_space.classes, title)),
        (CARD_MARKDOWN, lambda: card_markdown(card, bundle.digest).encode()),
        (CARD_PAGE, lambda: card_page(card, bundle.digest, epochs).encode()),
    ):
        _write_if_drawn(storage.join(out, name), draw)


def _write_if_drawn(url: str, draw: Callable[[], bytes]) -> None:
    """Write a picture or a page of a bundle; if it cannot be drawn, log it and leave it out, so that the training is kept."""
    try:
        data = draw()
    except Exception as error:
        log.warning("'%s' cannot be drawn and is left out: %s", url, storage.reason(error), exc_info=True)
        return
    storage.write_bytes(url, data)


def _learned_images(plan: Plan, samples: pa.Table, lineage: Lineage) -> tuple[pa.Table, tuple[str, ...], tuple[str, ...]]:
    """Return the images that the model learned, directly or through the models of its lineage.

    Also return the names of datasets whose images are unknown, and of models whose data are unknown.
    """
    recipe, external, unknown = plan.recipe, set[str](), set[str]()
    parts = [_learned_of(plan.train, samples)]
    if plan.mixed:
        parts.append(_learned_of(plan.mixed.train, read_samples(plan.mixed.train.dataset, duplicates.DUPLICATE_COLUMNS)))
    if recipe.pretrained:
        (external if recipe.pretrained_on else unknown).add(recipe.pretrained_on or f"pretrained {recipe.network.architecture}")
    for card, theirs in lineage:
        parts += [theirs] if theirs is not None else []
        external |= set(card.data.external)
        unknown |= {*card.data.unknown, *([card.name] if theirs is None else [])}
    return joined(parts), tuple(sorted(external)), tuple(sorted(unknown))


def _terms(plan: Plan, dataset: DatasetInfo) -> str:
    """Return the terms of use of all that was learned."""
    further = [plan.mixed.dataset.terms] if plan.mixed else []
    return " ".join(dict.fromkeys([dataset.terms, *further]))


def _learned_of(reader: SplitReader, samples: pa.Table) -> pa.Table:
    """Return the images that a reader reads of its dataset's samples."""
    left_out = pc.is_in(samples["sample_id"], pa.array(reader.leave_out, pa.string()))
    return learned_images(samples.filter(pc.and_(pc.equal(samples["split"], reader.split), pc.invert(left_out))))


def selected_epoch(history: list[dict[str, Any]], recipe: Recipe) -> int:
    """Return the epoch whose weights are kept."""
    return kept_epoch([Epoch(**epoch) for epoch in history], recipe.training)


def _recipe_facts(recipe: Recipe) -> dict[str, Any]:
    """Return the recipe for the card; a file of pretrained weights is named without its folder, because bundles travel."""
    facts = recipe.model_dump(mode="json")
    return facts | {"pretrained": recipe.pretrained and posixpath.basename(recipe.pretrained)}
