"""Commands for model bundles: versions and aliases of a registry, and model cards. They run on this machine, without Ray."""

import logging

from fer_pipeline.base import storage
from fer_pipeline.base.config import Config
from fer_pipeline.base.errors import UserError
from fer_pipeline.faces.classify import read_tried
from fer_pipeline.labelling.audits import Score
from fer_pipeline.models.bundle import CARD_MARKDOWN, CARD_PAGE, HISTORY, MODEL_FILE, Bundle, read_bundle, read_files
from fer_pipeline.models.registry import Registry, Version, open_registry, require_alias
from fer_pipeline.report.card import card_markdown, card_page

log = logging.getLogger(__name__)


class PushConfig(Config):
    """Add a model bundle to a registry as a new version."""

    model: str
    """Folder of a model bundle, NAME@ALIAS, or `embedded`."""
    name: str
    """Name of the model in the registry."""
    version: str | None = None
    """Name of the new version; by default the next whole number."""
    alias: tuple[str, ...] = ()
    """Aliases to move to the new version, such as `production`."""
    registry: str | None = None
    """Folder or s3:// URL; by default $FER_PIPELINE_REGISTRY."""


class AliasConfig(Config):
    """Move an alias to a version."""

    name: str
    """Name of the model."""
    alias: str
    """The alias, such as `production`."""
    version: str
    """Version of the model, or another alias."""
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
    """Folder for the two files; existing cards are overwritten."""
    labels: str | None = None
    """A run folder or a published table with labels of this model: the card says how right they are by their latest audit."""


class PullConfig(Config):
    """Copy a model out of a registry."""

    model: str
    """NAME@ALIAS, NAME@VERSION, or another bundle."""
    out: str
    """Folder for the copy: new or empty."""


class ModelVersions(Config):
    """Versions and aliases of one model in a registry."""

    name: str
    versions: list[Version]
    aliases: dict[str, str]


class RegistryContents(Config):
    """All models of a registry."""

    registry: str
    models: list[ModelVersions]


class ModelFiles(Config):
    """A model, and the folder to which it was written."""

    out: str
    name: str
    digest: str


def push(config: PushConfig) -> Version:
    """Push the bundle, move the aliases and return the new version. Raise UserError, with nothing written, for bad input."""
    registry = open_registry(config.registry)
    bundle = read_tried(config.model, "fp32", "int8")
    for name in config.alias:
        require_alias(name)
    version = registry.push(config.name, read_files(config.model), config.version, bundle.digest)
    for name in config.alias:
        registry.point(config.name, name, version.version)
    log.info("%s@%s in %s", version.name, version.version, registry.url)
    return version


def alias(config: AliasConfig) -> Version:
    """Move the alias and return its new version."""
    registry = open_registry(config.registry)
    version = registry.resolve(config.name, config.version)
    registry.point(config.name, config.alias, version.version)
    return version


def list_models(config: ListConfig = ListConfig()) -> RegistryContents:
    """Return and log the models, versions and aliases of the registry."""
    registry = open_registry(config.registry)
    storage.require_access(registry.url)
    models = [_versions(registry, name) for name in registry.names()]
    for model in models:
        for version in model.versions:
            names = [name for name, target in model.aliases.items() if target == version.version]
            log.info(
                "%s@%s  %s  %s  %s",
                model.name,
                version.version,
                version.created_at,
                (version.digest or "–")[:12],
                " ".join(names),
            )
    return RegistryContents(registry=registry.url, models=models)


def _versions(registry: Registry, name: str) -> ModelVersions:
    return ModelVersions(name=name, versions=registry.versions(name), aliases=registry.aliases(name))


def pull(config: PullConfig) -> ModelFiles:
    """Copy a bundle's files, the card last, and return the model."""
    out = require_empty(config.out)
    bundle, files = read_bundle(config.model), read_files(config.model)
    for name in sorted(files, key=lambda name: name == MODEL_FILE):
        storage.write_bytes(storage.join(out, name), files[name])
    return ModelFiles(out=out, name=bundle.card.name, digest=bundle.digest)


def card(config: CardConfig) -> ModelFiles:
    """Write the model's card and return the model. Raise UserError if the labels have no audit of this model."""
    bundle, out = read_bundle(config.model), storage.normalize(config.out)
    write_card(out, bundle, read_files(config.model).get(HISTORY), _score(config.labels, bundle.digest))
    log.info("%s", storage.join(out, CARD_PAGE))
    return ModelFiles(out=out, name=bundle.card.name, digest=bundle.digest)


def _score(labels: str | None, model_digest: str) -> Score | None:
    if labels is None:
        return None
    from fer_pipeline.api.labels import open_labels  # imports Ray, which no other command for models needs
    from fer_pipeline.api.reviews import score_of_model

    return score_of_model(open_labels(labels), model_digest)


def write_card(out: str, bundle: Bundle, history: bytes | None, score: Score | None = None) -> None:
    """Write the card of a bundle into `out`; `history` is the content of its `history.json`, if it has one.

    `score`: how right its labels of an archive are.
    """
    markdown, page = card_markdown(bundle.card, bundle.digest, score), card_page(bundle.card, bundle.digest, history, score)
    storage.write_bytes(storage.join(out, CARD_MARKDOWN), markdown.encode())
    storage.write_bytes(storage.join(out, CARD_PAGE), page.encode())


def require_empty(url: str) -> str:
    """Return the normalized URL of a folder. Raise UserError if it is not empty."""
    out = storage.normalize(url)
    storage.require_access(out)
    if storage.list_names(out):
        raise UserError(f"'{out}' is not empty: choose a new folder for --out.")
    return out
