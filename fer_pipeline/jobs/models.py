"""Work on model bundles: the registry's versions and aliases, model cards, export to ONNX. On this machine, without Ray."""

import logging
from typing import Any

import numpy as np
from pydantic import Field

from fer_pipeline.core import storage
from fer_pipeline.core.config import Config
from fer_pipeline.core.dataset import read_card
from fer_pipeline.core.errors import UserError
from fer_pipeline.models.card import (
    CARD,
    CARD_MARKDOWN,
    CARD_PAGE,
    HISTORY,
    BundleFiles,
    ModelCard,
    bundle_of,
    read_bundle,
    read_files,
)
from fer_pipeline.models.registry import Registry, Version, open_registry, require_alias
from fer_pipeline.report.card import card_markdown, card_page

log = logging.getLogger(__name__)

PARITY = 1e-4
"""Largest difference of a probability between torch and ONNX in fp32."""
NOISE = 256
"""Images of noise on which parity is checked where no dataset is named."""


class PushConfig(Config):
    """Keep a model bundle as a new version of a registry."""

    model: str
    """Folder of a model bundle, NAME@ALIAS, or `embedded`."""
    name: str
    """Under which name."""
    version: str | None = None
    """A new version; by default the next whole number."""
    alias: tuple[str, ...] = ()
    """Aliases to move onto it, such as `production`."""
    registry: str | None = None
    """Folder or s3:// URL; by default $FER_PIPELINE_REGISTRY."""


class AliasConfig(Config):
    """Move an alias onto a version."""

    name: str
    """The model's name."""
    alias: str
    """Such as `production`."""
    version: str
    """A version of it, or another alias."""
    registry: str | None = None
    """Folder or s3:// URL; by default $FER_PIPELINE_REGISTRY."""


class ListConfig(Config):
    """List a registry's models, versions and aliases."""

    registry: str | None = None
    """Folder or s3:// URL; by default $FER_PIPELINE_REGISTRY."""


class CardConfig(Config):
    """Write a model's card as Markdown and as a page."""

    model: str
    """Folder of a model bundle, NAME@ALIAS, or `embedded`."""
    out: str
    """Folder of the two files, which replace former ones."""


class PullConfig(Config):
    """Copy a model out of a registry."""

    model: str
    """NAME@ALIAS or NAME@VERSION, or another bundle."""
    out: str
    """Folder of the copy: new or empty."""


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


class ModelVersions(Config):
    """What a registry holds of one model."""

    name: str
    versions: list[Version]
    aliases: dict[str, str]


class Listing(Config):
    """All models of a registry."""

    registry: str
    models: list[ModelVersions]


class ModelFiles(Config):
    """Which model, and the folder that was written."""

    out: str
    name: str
    digest: str


class Exported(Config):
    """What the export came to; it stands in the exported card too, under `metrics.export`."""

    out: str
    precision: str
    bytes: int
    parity_max_difference: float
    """Largest difference of a probability between the bundle and its fp32 export."""
    parity_images: str
    """What that was measured on."""
    accuracy: dict[str, float] | None
    """Of the bundle, its fp32 export and, if asked for, int8, on the split."""
    images: int | None


def push(config: PushConfig) -> Version:
    """Push the bundle and move the aliases. Raise UserError before anything is written."""
    registry = open_registry(config.registry)
    bundle = read_bundle(config.model)
    check(bundle)
    for name in config.alias:
        require_alias(name)
    version = registry.push(config.name, read_files(config.model), config.version)
    for name in config.alias:
        registry.point(config.name, name, version.version)
    log.info("%s@%s in %s", version.name, version.version, registry.url)
    return version


def alias(config: AliasConfig) -> Version:
    """Move the alias and return the version that it stands for now."""
    registry = open_registry(config.registry)
    version = registry.resolve(config.name, config.version)
    registry.point(config.name, config.alias, version.version)
    return version


def list_models(config: ListConfig) -> Listing:
    """Return what the registry holds."""
    registry = open_registry(config.registry)
    storage.require_access(registry.url)
    models = [_versions(registry, name) for name in registry.names()]
    for model in models:
        for version in model.versions:
            names = [name for name, target in model.aliases.items() if target == version.version]
            log.info("%s@%s  %s  %s  %s", model.name, version.version, version.created_at, version.digest[:12], " ".join(names))
    return Listing(registry=registry.url, models=models)


def _versions(registry: Registry, name: str) -> ModelVersions:
    return ModelVersions(name=name, versions=registry.versions(name), aliases=registry.aliases(name))


def pull(config: PullConfig) -> ModelFiles:
    """Copy a bundle's files, the card last."""
    out = _empty(config.out)
    bundle, files = read_bundle(config.model), read_files(config.model)
    for name in sorted(files, key=lambda name: name == CARD):
        storage.write_bytes(storage.join(out, name), files[name])
    return ModelFiles(out=out, name=bundle.card.name, digest=bundle.digest)


def card(config: CardConfig) -> ModelFiles:
    """Write the model's card."""
    bundle, out = read_bundle(config.model), storage.normalize(config.out)
    _write_card(out, bundle, read_files(config.model).get(HISTORY))
    log.info("%s", storage.join(out, CARD_PAGE))
    return ModelFiles(out=out, name=bundle.card.name, digest=bundle.digest)


def _write_card(out: str, bundle: BundleFiles, history: bytes | None) -> None:
    markdown, page = card_markdown(bundle.card, bundle.digest), card_page(bundle.card, bundle.digest, history)
    storage.write_bytes(storage.join(out, CARD_MARKDOWN), markdown.encode())
    storage.write_bytes(storage.join(out, CARD_PAGE), page.encode())


def check(bundle: BundleFiles) -> None:
    """Raise UserError where a bundle's weights do not fit its card."""
    from fer_pipeline.stages.classify import Classifier  # torch takes seconds to import

    Classifier(bundle, "fp32")


def export(config: ExportConfig) -> Exported:
    """Write the exported bundle. Raise UserError before anything is written, also where the export differs from the bundle."""
    from fer_pipeline.models.bundle import save_bundle
    from fer_pipeline.models.export import to_int8, to_onnx
    from fer_pipeline.stages.classify import Classifier

    out, bundle = _empty(config.out), read_bundle(config.model)
    if config.int8 and not config.data:
        raise UserError("Int8 takes the ranges of activations from images: name an ingested dataset with --data.")
    ranges = _images(config, bundle.card, config.calibration_split, config.calibration_images)[0] if config.int8 else None
    images, labels = _images(config, bundle.card, config.split)
    model = to_onnx(bundle)
    exported = _as_onnx(bundle, model)
    logits = {"bundle": Classifier(bundle, "fp32").logits(images), "fp32": Classifier(exported, "fp32").logits(images)}
    difference = float(np.abs(_probabilities(logits["bundle"], bundle.card) - _probabilities(logits["fp32"], bundle.card)).max())
    if not difference < PARITY:
        raise UserError(f"The export is of no use: it differs from the bundle by {difference:.1e} in a probability.")
    if ranges is not None:
        exported = _as_onnx(bundle, to_int8(model, ranges))
        logits["int8"] = Classifier(exported, "fp32").logits(images)
    figures = None if labels is None else {name: _accuracy(values, labels) for name, values in logits.items()}
    result = Exported(
        out=out,
        precision="int8" if config.int8 else "fp32",
        bytes=len(exported.weights),
        parity_max_difference=difference,
        parity_images="noise" if labels is None else config.split,
        accuracy=figures,
        images=None if labels is None else len(labels),
    )
    metrics = {} if config.int8 else bundle.card.metrics  # those of the bundle are not int8's
    metrics = metrics | {"export": result.model_dump(mode="json", exclude={"out"}) | {"of": bundle.digest}}
    exported = bundle_of(exported.card.model_copy(update={"metrics": metrics}), exported.weights)
    _write_card(out, exported, None)
    save_bundle(out, exported)
    return result


def _images(config: ExportConfig, card: ModelCard, split: str, limit: int | None = None) -> tuple[Any, Any]:
    """Return images and labels of a split of the dataset, or noise and no labels without one."""
    from fer_pipeline.stages.samples import SplitReader, class_indices, left_out_by_class

    network = card.network
    if not config.data:
        shape = (NOISE, network.channels, network.image_px, network.image_px)
        return np.random.default_rng(0).integers(0, 256, shape, np.uint8), None
    data = storage.normalize(config.data)
    dataset = read_card(data)
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


def _as_onnx(bundle: BundleFiles, model: bytes) -> BundleFiles:
    return bundle_of(bundle.card.model_copy(update={"format": "onnx"}), model)


def _probabilities(logits: Any, card: ModelCard) -> Any:
    scaled = np.exp((logits - logits.max(1, keepdims=True)) / card.calibration.temperature)
    return scaled / scaled.sum(1, keepdims=True)


def _accuracy(logits: Any, labels: Any) -> float:
    return float((logits.argmax(1) == labels).mean())


def _empty(url: str) -> str:
    """Return the folder `url`; raise UserError where it holds anything."""
    out = storage.normalize(url)
    storage.require_access(out)
    if storage.list_names(out):
        raise UserError(f"'{out}' is not empty: choose a new folder for --out.")
    return out
