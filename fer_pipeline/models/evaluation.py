"""Evaluation: what a model's predictions on labelled images are worth."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from fer_pipeline.core.duplicates import Copies, find_copies, split_digest
from fer_pipeline.core.figures import (
    CalibrationComparison,
    CalibrationFigures,
    CertainFigures,
    Figures,
    SplitFigures,
    VoteFigures,
)
from fer_pipeline.core.labels import LabelSpace, mapping
from fer_pipeline.core.learned import find_learned
from fer_pipeline.core.metrics import (
    expected_calibration_error,
    is_uncertain,
    log_loss,
    reliability,
    risk_coverage,
    softmax,
    summarize,
)
from fer_pipeline.models.calibration import calibrate, cross_fitted
from fer_pipeline.models.card import Calibration, ModelCard

FEWEST = 50
"""Images under which calibration is not scored: neither half would say anything."""


@dataclass(frozen=True)
class Predictions:
    """What a network answered on labelled images; n of them."""

    ids: NDArray[np.object_]
    """(n,), sample ids."""
    logits: NDArray[np.float32]
    """(n, classes), before any temperature."""
    labels: NDArray[np.int64]
    """(n,)"""
    votes: NDArray[np.float32]
    """(n, vote classes): shares of annotators' votes, all zero where there are none."""

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, chosen: NDArray[np.bool_]) -> "Predictions":
        return Predictions(self.ids[chosen], self.logits[chosen], self.labels[chosen], self.votes[chosen])

    def without(self, ids: Collection[str]) -> "Predictions":
        """Return the predictions for all images but those with these ids."""
        return self[np.array([sample not in ids for sample in self.ids], bool)]


def joined(batches: Sequence[Predictions]) -> Predictions:
    """Return several batches of predictions as one; at least one batch."""
    names = [field.name for field in fields(Predictions)]
    return Predictions(**{name: np.concatenate([getattr(batch, name) for batch in batches]) for name in names})


def evaluate(
    predictions: Predictions,
    space: LabelSpace,
    calibration: Calibration,
    vote_classes: tuple[str, ...] = (),
    groups: Mapping[str, int] | None = None,
) -> Figures:
    """Return the figures of the predictions under the model's calibration.

    `groups` gives a number to each sample id that copies share (`duplicates.Copies`); without it every image is one of its own.
    Calibration is not scored for fewer than 50 images.
    """
    labels, probabilities = predictions.labels, softmax(predictions.logits, calibration.temperature)
    figures = summarize(probabilities, labels, space.classes)
    if not len(predictions):
        return figures
    confidence, correct = probabilities.max(1), probabilities.argmax(1) == labels
    certain = ~is_uncertain(confidence, calibration.uncertain_below)
    votes = None
    if vote_classes and predictions.votes.any():
        votes = _against_votes(probabilities.argmax(1), labels, predictions.votes, vote_classes, space)
    return figures.model_copy(
        update={
            "calibration": _calibration(predictions, probabilities, groups),
            "risk_coverage": risk_coverage(confidence, correct, points=25),
            "certain": CertainFigures(
                uncertain_below=calibration.uncertain_below,
                coverage=float(certain.mean()),
                accuracy=float(correct[certain].mean()) if certain.any() else None,
            ),
            "votes": votes,
        }
    )


@dataclass(frozen=True)
class Leaks:
    """What a split shares with what a model learned."""

    split: str | None
    """The dataset's split that the model learned from as it is; None where it is none."""
    copies: Copies
    checked: bool
    """Whether all that the model learned, by whatever way, is known and was looked for."""


def _may_be(name: str, layout: str) -> bool:
    """Tell whether a dataset that a recipe names may be one that was ingested from a layout; some layouts hold any dataset."""
    own = {"fer2013", "affectnet", "rafdb"}
    kind = layout.split("-")[0]
    return name.lower() != "imagenet" and (kind not in own or name.lower().startswith(kind))


def find_leaks(
    card: ModelCard, learned: pa.Table | None, samples: pa.Table, split: str, flagged: pa.Table, layout: str, digest: str
) -> Leaks:
    """Return the copies that a dataset's `split` has of what a model learned.

    `learned` are the digests that its bundle keeps (`bundle.read_learned`). Without them it is told by the digest of its whole
    training split; `flagged` are the dataset's samples that the training may have left out. `layout` and `digest` are the
    dataset's.
    """
    data = card.data
    names: list[str] = samples["split"].unique().to_pylist() if data.train_digest else []
    whole = next((name for name in names if split_digest(samples, name) == data.train_digest), None)
    if learned is not None:
        known = not data.unknown and not any(_may_be(name, layout) for name in data.external)
        return Leaks(whole, find_learned(samples, split, learned), known)
    rows = flagged.to_pylist() if data.left_out and data.digest == digest else []
    left_out = frozenset(row["sample_id"] for row in rows if row["split"] == whole)
    recipe = card.recipe
    others = recipe.get("initial"), recipe.get("pretrained"), (recipe.get("training") or {}).get("teacher_weight")
    return Leaks(whole, find_copies(samples, split, whole, left_out), whole is not None and not any(others))


@dataclass(frozen=True)
class Judged:
    """A model's calibration on the split that selected it, and its figures there, with and without copies of what it learned."""

    calibration: Calibration
    validation: SplitFigures
    without_training_images: SplitFigures | None
    """None where every image is a copy of a learned one."""


def judge(
    predictions: Predictions,
    copies: Copies,
    space: LabelSpace,
    certain_accuracy: float,
    vote_classes: tuple[str, ...],
    **how: Any,
) -> Judged:
    """Calibrate a model on the split that selected it and return its figures there; `how` are those of `SplitFigures`.

    Copies of learned images are left out of the fit, if that leaves any: they would make the model seem surer than it is.
    """
    fresh = predictions.without(copies.learned)
    fitted = fresh if len(fresh) else predictions
    logits, labels = torch.from_numpy(fitted.logits), torch.from_numpy(fitted.labels)
    calibration = calibrate(logits, labels, certain_accuracy)

    def figures(some: Predictions) -> SplitFigures:
        found = evaluate(some, space, calibration, vote_classes, copies.groups)
        return SplitFigures(**dict(found), selected_on_this_split=True, **how)

    return Judged(calibration, figures(predictions), figures(fresh) if len(fresh) else None)


def _calibration(
    predictions: Predictions, shipped: NDArray[np.float32], groups: Mapping[str, int] | None
) -> CalibrationComparison | None:
    labels = predictions.labels
    group = np.array([groups[sample] for sample in predictions.ids], np.int64) if groups else np.arange(len(labels))
    if len(labels) < FEWEST or len(np.unique(group)) < 2:
        return None
    logits, truth = torch.from_numpy(predictions.logits), torch.from_numpy(labels)
    fitted, temperatures = cross_fitted(logits, truth, group)
    before, as_shipped, after = (
        CalibrationFigures(
            ece=expected_calibration_error(probabilities, labels),
            log_loss=log_loss(probabilities, labels),
            reliability=reliability(probabilities.max(1), probabilities.argmax(1) == labels),
        )
        for probabilities in (softmax(predictions.logits, 1.0), shipped, fitted.numpy())
    )
    return CalibrationComparison(
        before=before, as_shipped=as_shipped, cross_fitted=after, temperatures_of_the_halves=temperatures
    )


def _against_votes(
    predicted: NDArray[np.int64],
    labels: NDArray[np.int64],
    votes: NDArray[np.float32],
    vote_classes: tuple[str, ...],
    space: LabelSpace,
) -> VoteFigures:
    """Compare predictions, and the dataset's own labels, with what most annotators said."""
    classes = mapping(vote_classes, space)
    shares = np.zeros((len(labels), len(space.classes)), np.float32)
    for column, index in enumerate(classes):
        if index is not None:
            shares[:, index] += votes[:, column]
    majority = np.array([-1 if index is None else index for index in classes])[votes.argmax(1)]
    tied = (votes == votes.max(1, keepdims=True)).sum(1) > 1
    clear = ~tied & (majority >= 0)
    if not clear.any():
        return VoteFigures(images=0, left_out=len(labels))
    return VoteFigures(
        images=int(clear.sum()),
        left_out=int((~clear).sum()),
        accuracy=float((predicted == majority)[clear].mean()),
        accuracy_of_the_labels=float((labels == majority)[clear].mean()),
        agreement=float(shares[np.arange(len(labels)), predicted][clear].mean()),
    )
