"""Export a model to ONNX and compare it with the bundle. Runs on this machine, without Ray."""

from typing import Any

import numpy as np
from pydantic import Field

from fer_pipeline.base import storage
from fer_pipeline.base.config import Config
from fer_pipeline.base.errors import UserError
from fer_pipeline.cli.models import require_empty, write_card
from fer_pipeline.datasets.dataset import read_dataset
from fer_pipeline.datasets.training_data import SplitReader, class_indices, left_out_by_class
from fer_pipeline.faces.classify import Classifier, read_tried
from fer_pipeline.models.bundle import LEARNED_FILE, Bundle, bundle_of, read_files, read_learned, save_bundle
from fer_pipeline.models.card import ModelCard, ModelMetrics
from fer_pipeline.models.export import to_int8, to_onnx
from fer_pipeline.models.figures import ExportFigures
from fer_pipeline.models.metrics import softmax

MAX_DIFFERENCE = 1e-4
"""Largest accepted difference of a probability between the bundle and its fp32 export."""


class ExportConfig(Config):
    """Export a model to ONNX, as a bundle that can label archives."""

    model: str
    """Folder of a model bundle, NAME@ALIAS, or `embedded`."""
    out: str
    """Folder of the exported bundle: new or empty."""
    int8: bool = False
    """Export 8-bit weights and activations, a quarter of the size. Needs --data."""
    data: str | None = None
    """Ingested dataset on which the export is checked; noise by default."""
    split: str = "validation"
    """Split of the dataset on which the export is checked."""
    calibration_split: str = "train"
    """Split whose first images calibrate the ranges of int8."""
    calibration_images: int = Field(1024, ge=1)
    """Number of images that calibrate the ranges of int8."""


class Exported(ExportFigures):
    """Result of the export; the exported card holds it too, under `metrics.export`."""

    out: str


def run(config: ExportConfig) -> Exported:
    """Write the exported bundle. Raise UserError, with nothing written, if the input is invalid or the export differs."""
    out, bundle = require_empty(config.out), read_tried(config.model, "fp32")
    if config.int8 and not config.data:
        raise UserError("--int8 needs images to calibrate the ranges of activations: name an ingested dataset with --data.")
    ranges = _images(config, bundle.card, config.calibration_split, config.calibration_images)[0] if config.int8 else None
    images, labels = _images(config, bundle.card, config.split)
    model = to_onnx(bundle)
    exported = _as_onnx(bundle, model)
    logits = {"bundle": Classifier(bundle, "fp32").logits(images), "fp32": Classifier(exported, "fp32").logits(images)}
    temperature = bundle.card.calibration.temperature
    difference = float(np.abs(softmax(logits["bundle"], temperature) - softmax(logits["fp32"], temperature)).max())
    if not difference < MAX_DIFFERENCE:
        raise UserError(f"Nothing was exported: the export differs from the bundle by {difference:.1e} in a probability.")
    if ranges is not None:
        exported = _as_onnx(bundle, to_int8(model, ranges))
        logits["int8"] = Classifier(exported, "fp32").logits(images)
    figures = ExportFigures(
        precision="int8" if config.int8 else "fp32",
        bytes=len(exported.weights),
        parity_max_difference=difference,
        parity_images="noise" if labels is None else config.split,
        accuracy=None if labels is None else {name: _accuracy(values, labels) for name, values in logits.items()},
        images=None if labels is None else len(labels),
        of=bundle.digest,
    )
    metrics = ModelMetrics() if config.int8 else bundle.card.metrics  # the bundle's figures do not hold for int8
    metrics = metrics.model_copy(update={"export": figures})
    exported = bundle_of(exported.card.model_copy(update={"metrics": metrics}), exported.weights)
    write_card(out, exported, None)
    if read_learned(config.model, bundle.card) is not None:  # the same bytes, because the card names their digest
        storage.write_bytes(storage.join(out, LEARNED_FILE), read_files(config.model)[LEARNED_FILE])
    save_bundle(out, exported)
    return Exported(out=out, **dict(figures))


def _images(config: ExportConfig, card: ModelCard, split: str, limit: int | None = None) -> tuple[Any, Any]:
    """Return images and labels of a split of the dataset; without a dataset, 256 images of noise and None."""
    network = card.network
    if not config.data:
        shape = (256, network.channels, network.image_px, network.image_px)
        return np.random.default_rng(0).integers(0, 256, shape, np.uint8), None
    data = storage.normalize(config.data)
    dataset = read_dataset(data)
    left_out_by_class(dataset, split, card.label_space)
    reader = SplitReader(data, split, network, class_indices(dataset.label_space.classes, card.label_space))
    if not limit:
        loaded = reader.load()
        return loaded.images, loaded.labels
    chunks: list[Any] = []
    for chunk in reader.chunks(limit):
        chunks.append(chunk)
        if sum(map(len, chunks)) >= limit:
            break
    return np.concatenate([chunk.images for chunk in chunks])[:limit], None


def _as_onnx(bundle: Bundle, model: bytes) -> Bundle:
    return bundle_of(bundle.card.model_copy(update={"format": "onnx", "int8": None}), model)


def _accuracy(logits: Any, labels: Any) -> float:
    return float((logits.argmax(1) == labels).mean())
