"""The model card (Mitchell et al., 2019) as Markdown and as a page: data and terms, recipe, figures, limits, uses."""

import json
import logging
from typing import Any

from fer_pipeline.base.storage import reason
from fer_pipeline.labelling.audits import Score
from fer_pipeline.models.card import ModelCard
from fer_pipeline.models.figures import SplitFigures
from fer_pipeline.report.evaluation import pictures
from fer_pipeline.report.page import data_url, render
from fer_pipeline.report.training import curves_png

log = logging.getLogger(__name__)

FORBIDDEN = (
    "Inferring the emotions of people at work or in education: unlawful in the EU (AI Act, Art. 5(1)(f)), except for medical "
    "and safety reasons.",
    "Inferring what a person feels, intends, believes or suffers from: the model sees only a face in a picture.",
    "Decisions about individuals: hiring, credit, insurance, policing, borders, diagnosis.",
    "Labelling pictures of people who were not informed, if the law requires it: faces are personal data.",
)
"""Forbidden uses of every model."""

LIMITS = (
    "Labels of expressions are opinions: annotators of the same picture disagree, and so do datasets.",
    "Each face is labelled by itself, without context, sound or movement.",
    "Errors by age, sex, skin colour, glasses, beards, veils or disability were not measured: the data do not record them.",
)
"""Limits of every model."""


def card_markdown(card: ModelCard, digest: str, score: Score | None = None) -> str:
    """Return the card as Markdown. `score`: how right the model's labels of an archive are."""
    return render("card.md", **_facts(card, digest), score=score).strip() + "\n"


def card_page(card: ModelCard, digest: str, history: bytes | None = None, score: Score | None = None) -> str:
    """Return the card as a self-contained page, with training curves if `history` (the bundle's `history.json`) is given."""
    shown_pictures: dict[str, str] = {}
    if history and card.metrics.selected_epoch is not None:
        try:
            shown_pictures["training curves"] = data_url(curves_png(json.loads(history), card.metrics.selected_epoch))
        except (ValueError, LookupError, TypeError, RecursionError) as error:  # a file of another tool
            log.warning("The training curves of '%s' cannot be drawn: %s", card.name, reason(error))
    facts = _facts(card, digest)
    if facts["validation"]:
        shown_pictures |= pictures(facts["validation"], card.label_space.classes)
    return render("card.html", **facts, pictures=shown_pictures, score=score)


def _facts(card: ModelCard, digest: str) -> dict[str, Any]:
    """Return the facts for the templates. Only recipes of this project are shown: a card written by hand may hold anything."""
    metrics = card.metrics
    views = {"all images": metrics.validation, "without copies of training images": metrics.validation_without_training_images}
    if card.int8:
        views["int8, all images"] = card.int8.validation
        views["int8, without copies"] = card.int8.validation_without_training_images
    recipes = [card.recipe] if _has(card.recipe, "training") else []
    while recipes and _has(recipes[-1].get("initial"), "training"):
        recipes.append(recipes[-1]["initial"])
    return {
        "card": card,
        "digest": digest,
        "views": {title: figures for title, figures in views.items() if figures},
        "validation": metrics.validation,
        "weakest": _weakest(metrics.validation) if metrics.validation else [],
        "export": metrics.export,
        "recipes": recipes[::-1],
        "forbidden": FORBIDDEN,
        "limits": (*card.limits, *LIMITS),
    }


def _has(value: Any, key: str) -> bool:
    return isinstance(value, dict) and key in value


def _weakest(figures: SplitFigures) -> list[str]:
    """Return the two classes with the lowest F1, with their recall and precision, as text."""
    classes = {name: one for name, one in figures.per_class.items() if one.support}
    lowest = sorted(classes, key=lambda name: classes[name].f1)[:2]
    return [f"{name} (recall {classes[name].recall:.0%}, precision {classes[name].precision:.0%})" for name in lowest]
