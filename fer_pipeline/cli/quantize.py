"""Add an int8 form to a bundle, which labelling on CPUs uses. Runs on this machine, without Ray."""

import hashlib
import logging
from typing import Any

import numpy as np
from pydantic import Field

from fer_pipeline.base import storage
from fer_pipeline.base.config import Config
from fer_pipeline.base.errors import UserError
from fer_pipeline.cli.models import write_card
from fer_pipeline.datasets import duplicates
from fer_pipeline.datasets.dataset import DatasetInfo, read_dataset, read_flagged, read_samples
from fer_pipeline.datasets.layouts.layout import AUDIT
from fer_pipeline.datasets.leaks import find_leaks
from fer_pipeline.datasets.training_data import SplitReader, class_indices, left_out_by_class
from fer_pipeline.faces.classify import Classifier, read_tried
from fer_pipeline.models.bundle import EMBEDDED, HISTORY, Bundle, bundle_of, read_files, read_learned, save_bundle
from fer_pipeline.models.card import Calibration, Int8Form, ModelCard
from fer_pipeline.models.evaluation import Judged, Predictions, judge
from fer_pipeline.models.export import to_int8, to_onnx
from fer_pipeline.models.labelled_images import LabelledImages
from fer_pipeline.models.recipe import asked_calibration
from fer_pipeline.models.registry import is_reference

log = logging.getLogger(__name__)


class QuantizeConfig(Config):
    """Add int8 weights and activations to a model bundle, with their own calibration and figures."""

    model: str
    """Folder of the model bundle to change."""
    data: str
    """Ingested dataset: that of the model's training, or another one."""
    split: str = "validation"
    """Split on which the int8 form is calibrated and measured."""
    ranges_split: str = "train"
    """Split whose images calibrate the ranges of activations."""
    ranges_images: int = Field(512, ge=1)
    """Number of these images, drawn at random."""
    certain_accuracy: float | None = Field(None, gt=0, lt=1)
    """Target accuracy of the labels that are not `uncertain`; by default that of the model's recipe."""


class Quantized(Config):
    """Figures of the int8 form, compared with fp32."""

    model: str
    digest: str
    """New digest of the bundle, whose card has changed."""
    bytes: int
    images: int
    accuracy: float
    accuracy_fp32: float
    same_label: float
    """Share of the images to which int8 and fp32 give the same label."""
    ece_cross_fitted: float | None


def run(config: QuantizeConfig) -> Quantized:
    """Write `model.int8.onnx` and the cards again. Raise UserError, with nothing written, for bad input."""
    if config.model == EMBEDDED or is_reference(config.model):
        raise UserError("Registry versions and the embedded model cannot be changed: name the folder of a bundle, then push it.")
    bundle, data = read_tried(config.model, "fp32"), storage.normalize(config.data)
    dataset = read_dataset(data)
    settings = config.model_dump(mode="json", exclude={"model", "data"}) | {"data": dataset.digest}
    settings |= {"weights": hashlib.sha256(bundle.weights).hexdigest()}
    out = storage.normalize(config.model)
    if done := _done_before(bundle, settings, out):
        return done
    images = _read_split(bundle, dataset, data, config.ranges_split).images
    chosen = np.random.default_rng(0).permutation(len(images))[: config.ranges_images]
    int8 = to_int8(to_onnx(bundle), images[np.sort(chosen)])
    split = _read_split(bundle, dataset, data, config.split)
    uncalibrated = _with_int8(bundle, Int8Form(sha256="", calibration=Calibration()), int8)
    fp32_logits = Classifier(uncalibrated, "fp32").logits(split.images)
    int8_logits = Classifier(uncalibrated, "int8").logits(split.images)
    predictions = Predictions(np.array(split.ids, object), int8_logits, split.labels, split.votes)
    judged = _judged(config, bundle.card, data, predictions, dataset)
    form = Int8Form(
        sha256=hashlib.sha256(int8).hexdigest(),
        calibration=judged.calibration,
        validation=judged.validation,
        validation_without_training_images=judged.without_training_images,
        accuracy_fp32=float((fp32_logits.argmax(1) == split.labels).mean()),
        same_label=float((fp32_logits.argmax(1) == int8_logits.argmax(1)).mean()),
        settings=settings,
    )
    quantized = _with_int8(bundle, form, int8)
    write_card(out, quantized, read_files(config.model).get(HISTORY))
    save_bundle(out, quantized)
    return _quantized(quantized, form, out)


def _done_before(bundle: Bundle, settings: dict[str, Any], out: str) -> Quantized | None:
    """Return the earlier result if the bundle has an int8 form with equal settings; another form is replaced."""
    form = bundle.card.int8
    if form is None or bundle.int8 is None or form.settings != settings or form.validation is None:
        return None
    log.info("The model has this int8 form already, there is nothing to do")
    return _quantized(bundle, form, out)


def _quantized(bundle: Bundle, form: Int8Form, out: str) -> Quantized:
    validation = form.validation
    assert validation and bundle.int8 is not None and form.accuracy_fp32 is not None and form.same_label is not None
    return Quantized(
        model=out,
        digest=bundle.digest,
        bytes=len(bundle.int8),
        images=validation.images,
        accuracy=validation.accuracy,
        accuracy_fp32=form.accuracy_fp32,
        same_label=form.same_label,
        ece_cross_fitted=validation.calibration.cross_fitted.ece if validation.calibration else None,
    )


def _read_split(bundle: Bundle, dataset: DatasetInfo, data: str, split: str) -> LabelledImages:
    """Return a split of the dataset in the model's input size and classes. Raise UserError if they share no class."""
    if split == AUDIT:
        raise UserError(f"The split '{AUDIT}' measures models and calibrates none: choose another split.")
    left_out_by_class(dataset, split, bundle.card.label_space)
    classes = class_indices(dataset.label_space.classes, bundle.card.label_space)
    return SplitReader(data, split, bundle.card.network, classes, tuple(range(len(dataset.vote_classes)))).load()


def _judged(config: QuantizeConfig, card: ModelCard, data: str, predictions: Predictions, dataset: DatasetInfo) -> Judged:
    samples = read_samples(data, duplicates.DUPLICATE_COLUMNS)
    learned = read_learned(config.model, card)
    copies = find_leaks(card, learned, samples, config.split, read_flagged(data), dataset.layout, dataset.digest).copies
    views = 2 if card.network.flip_averaging else 1
    how = {"split": config.split, "views": views, "precision": "int8"}
    certain = config.certain_accuracy or asked_calibration(card).certain_accuracy
    return judge(predictions, copies.learned, copies.groups, card.label_space, certain, dataset.vote_classes, **how)


def _with_int8(bundle: Bundle, form: Int8Form, int8: bytes) -> Bundle:
    return bundle_of(bundle.card.model_copy(update={"int8": form}), bundle.weights, int8)
