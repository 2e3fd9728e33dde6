"""Export a model to ONNX, checked against the bundle. On this machine, without Ray."""

from typing import Any

import numpy as np
from pydantic import Field

from fer_pipeline.core import storage
from fer_pipeline.core.config import Config
from fer_pipeline.core.dataset import read_dataset
from fer_pipeline.core.errors import UserError
from fer_pipeline.core.figures import ExportFigures
from fer_pipeline.core.metrics import softmax
from fer_pipeline.local.models import require_empty, write_card
from fer_pipeline.models.bundle import LEARNED_FILE, Bundle, bundle_of, read_files, read_learned, save_bundle
from fer_pipeline.models.card import ModelCard, ModelMetrics
from fer_pipeline.models.export import to_int8, to_onnx
from fer_pipeline.stages.classify import Classifier, read_tried
from fer_pipeline.stages.training_data import SplitReader, class_indices, left_out_by_class

PARITY = 1e-4
"""Largest difference of a probability between torch and ONNX in fp32."""
NOISE = 256
"""Images of noise on which parity is checked where no dataset is named."""


class ExportConfig(Config):
    """Export a model to ONNX; the result is a bundle that labels archives itself."""

    model: str
    """Folder of a model bundle, NAME@ALIAS, or `embedded`."""
    out: str
    """Folder of the exported bundle: new or empty."""
    int8: bool = False
    """Weights and activations in 8 bits: a quarter of the size. Needs --data."""
    data: str | None = None
    """Ingested dataset whose images the export is checked on."""
    split: str = "validation"
    """Which of its splits."""
    calibration_split: str = "train"
    """On whose first images the ranges of int8 are taken."""
    calibration_images: int = Field(1024, ge=1)
    """How many."""


class Exported(ExportFigures):
    """What the export came to; the exported card holds it too, under `metrics.export`."""

    out: str


def run(config: ExportConfig) -> Exported:
    """Write the exported bundle. Raise UserError before anything is written, also where the export differs from the bundle."""
    out, bundle = require_empty(config.out), read_tried(config.model, "fp32")
    if config.int8 and not config.data:
        raise UserError("Int8 takes the ranges of activations from images: name an ingested dataset with --data.")
    ranges = _images(config, bundle.card, config.calibration_split, config.calibration_images)[0] if config.int8 else None
    images, labels = _images(config, bundle.card, config.split)
    model = to_onnx(bundle)
    exported = _as_onnx(bundle, model)
    logits = {"bundle": Classifier(bundle, "fp32").logits(images), "fp32": Classifier(exported, "fp32").logits(images)}
    temperature = bundle.card.calibration.temperature
    difference = float(np.abs(softmax(logits["bundle"], temperature) - softmax(logits["fp32"], temperature)).max())
    if not difference < PARITY:
        raise UserError(f"The export is of no use: it differs from the bundle by {difference:.1e} in a probability.")
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
    metrics = ModelMetrics() if config.int8 else bundle.card.metrics  # those of the bundle are not int8's
    metrics = metrics.model_copy(update={"export": figures})
    exported = bundle_of(exported.card.model_copy(update={"metrics": metrics}), exported.weights)
    write_card(out, exported, None)
    if read_learned(config.model, bundle.card) is not None:  # its very bytes: the card names their digest
        storage.write_bytes(storage.join(out, LEARNED_FILE), read_files(config.model)[LEARNED_FILE])
    save_bundle(out, exported)
    return Exported(out=out, **dict(figures))


def _images(config: ExportConfig, card: ModelCard, split: str, limit: int | None = None) -> tuple[Any, Any]:
    """Return images and labels of a split of the dataset, or noise and no labels without one."""
    network = card.network
    if not config.data:
        shape = (NOISE, network.channels, network.image_px, network.image_px)
        return np.random.default_rng(0).integers(0, 256, shape, np.uint8), None
    data = storage.normalize(config.data)
    dataset = read_dataset(data)
    left_out_by_class(dataset, split, card.label_space)
    reader = SplitReader(data, split, network, class_indices(dataset.label_space.classes, card.label_space))
    if not limit:
        whole = reader.load()
        return whole.images, whole.labels
    first: list[Any] = []
    for chunk in reader.chunks(limit):
        first.append(chunk)
        if sum(map(len, first)) >= limit:
            break
    return np.concatenate([chunk.images for chunk in first])[:limit], None


def _as_onnx(bundle: Bundle, model: bytes) -> Bundle:
    return bundle_of(bundle.card.model_copy(update={"format": "onnx", "int8": None}), model)


def _accuracy(logits: Any, labels: Any) -> float:
    return float((logits.argmax(1) == labels).mean())
