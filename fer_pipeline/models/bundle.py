"""The model bundle: a folder with `model.json` and the weights (`model.safetensors` or `model.onnx`). No pickle, no torch."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Any

import pyarrow as pa
from pydantic import ValidationError

from fer_pipeline.core import storage
from fer_pipeline.core.config import explain
from fer_pipeline.core.errors import UserError
from fer_pipeline.core.learned import LEARNED, MOST_IMAGES
from fer_pipeline.core.memory import ReadTooLargeError, bounded_read
from fer_pipeline.core.schema_version import require_schema_version
from fer_pipeline.models import registry
from fer_pipeline.models.card import SCHEMA_VERSION, ModelCard

MODEL_FILE, WEIGHTS_FILE, ONNX_FILE, INT8_FILE = "model.json", "model.safetensors", "model.onnx", "model.int8.onnx"
CARD_MARKDOWN, CARD_PAGE, HISTORY, CURVES, CONFUSION = (
    "MODEL_CARD.md",
    "model_card.html",
    "history.json",
    "curves.png",
    "confusion.png",
)
LEARNED_FILE = "learned.parquet"
BUNDLE_FILES = (
    MODEL_FILE, WEIGHTS_FILE, ONNX_FILE, INT8_FILE, LEARNED_FILE, CARD_MARKDOWN, CARD_PAGE, HISTORY, CURVES, CONFUSION
)  # fmt: skip
"""All files that a bundle may have."""
MOST_PARTS = 1_000_000
"""Messages in an ONNX file: nodes, their attributes, shapes; a ResNet-152 has some ten thousand."""
EMBEDDED = "embedded"
"""The name of the model that comes with the package."""


@dataclass(frozen=True)
class Bundle:
    """A bundle's card and the bytes of its weights; `digest` is the sha256 over both: the card names that of the int8 form."""

    card: ModelCard
    weights: bytes
    digest: str
    version: str | None = field(default=None, compare=False)
    """In a registry, and the alias by which it was asked for."""
    alias: str | None = field(default=None, compare=False)
    int8: bytes | None = field(default=None, compare=False)
    """The network in 8 bits, where the bundle has it."""

    def computing_in(self, precision: str) -> "Bundle":
        """Return the bundle that computes in a precision: for `int8` its form in 8 bits, an ONNX network calibrated on its own.

        Raise UserError where it has none.
        """
        if precision != "int8":
            return self
        if self.int8 is None or self.card.int8 is None:
            raise UserError(f"The model '{self.card.name}' has no int8 form: give it one by 'fer-pipeline models quantize'.")
        changes = {"format": "onnx", "calibration": self.card.int8.calibration}
        return replace(self, card=self.card.model_copy(update=changes), weights=self.int8)


def read_bundle(url: str) -> Bundle:
    """Return the bundle in the folder `url`, the embedded one, or the one that [REGISTRY/]NAME@ALIAS names.

    Raise UserError where there is none that is whole.
    """
    files = _open(url)
    try:
        text = files.read(MODEL_FILE)
        remedy = "train or export it again with this version, or label with the version that wrote it."
        require_schema_version(text, range(1, SCHEMA_VERSION + 1), f"The model '{url}'", remedy)
        card = ModelCard.model_validate_json(text)
        weights = files.read(weights_file(card))
        int8 = files.read(INT8_FILE) if card.int8 else None
    except storage.STORAGE_ERRORS as error:
        raise UserError(
            f"There is no model bundle at '{url}': it needs {MODEL_FILE}, and {WEIGHTS_FILE} or {ONNX_FILE}."
        ) from error
    except ValidationError as error:
        raise UserError(f"The card {MODEL_FILE} of the model at '{url}' cannot be used: {explain(error)}.") from error
    if card.int8 and int8 is not None and hashlib.sha256(int8).hexdigest() != card.int8.sha256:
        raise UserError(f"The {INT8_FILE} of the model at '{url}' is not the one that its card names: export it again.")
    _require_whole({weights_file(card): weights, INT8_FILE: int8}, url)
    digest = hashlib.sha256(text + weights).hexdigest()
    if isinstance(files, registry.Pushed):
        return Bundle(card, weights, digest, files.version.version, files.alias, int8)
    return Bundle(card, weights, digest, int8=int8)


def bundle_of(card: ModelCard, weights: bytes, int8: bytes | None = None) -> Bundle:
    """Return a bundle that stands in no folder yet."""
    return Bundle(card, weights, hashlib.sha256(card_json(card) + weights).hexdigest(), int8=int8)


def read_files(url: str) -> dict[str, bytes]:
    """Return a bundle's files by name, those beside card and weights too: pictures, history, pages."""
    files = _open(url)
    found = {name: files.read(name) for name in files.names() if name in BUNDLE_FILES}
    _require_whole(found, url)
    return found


def _require_whole(files: Mapping[str, bytes | None], url: str) -> None:
    """Raise UserError unless each ONNX network among the files of the bundle at `url` holds all of its weights itself."""
    for name, data in files.items():
        if name.endswith(".onnx") and data is not None:
            require_whole(data, f"The {name} of the model at '{url}'")


def require_whole(model: bytes, what: str) -> None:
    """Raise UserError unless an ONNX network holds all of its weights itself.

    Tensors may name other files, which ONNX Runtime reads below the current folder: a secret there would stand in the labels.
    Graphs, their subgraphs, functions and attributes hold tensors: every message within the file is looked at.
    """
    import onnx
    from google.protobuf.message import DecodeError

    try:
        with bounded_read(what):
            for count, message in enumerate(_messages(onnx.load_model_from_string(model))):
                if count > MOST_PARTS:
                    raise UserError(f"{what} has more than {MOST_PARTS:,} parts: no network of faces needs as many.")
                if isinstance(message, onnx.TensorProto) and (message.data_location or message.external_data):
                    raise UserError(f"{what} keeps weights in other files, which are not read: export it as one file.")
    except (DecodeError, ReadTooLargeError) as error:
        raise UserError(f"{what} is no ONNX network that can be read.") from error


def _messages(message: Any) -> Iterator[Any]:
    """Yield a message of Protocol Buffers and all that stand in it, one after the other."""
    pending = [iter([message])]
    while pending:
        one = next(pending[-1], None)
        if one is None:
            pending.pop()
            continue
        yield one
        for described, value in one.ListFields():
            if described.message_type is not None:
                pending.append(iter(value if described.is_repeated else [value]))


def read_learned(url: str, card: ModelCard) -> pa.Table | None:
    """Return the images that a bundle's model learned, as rows of `learned.LEARNED`; None where the card names no such file.

    Raise UserError for a file that is not the one that the card names.
    """
    if card.data.learned_sha256 is None:
        return None
    try:
        data = _open(url).read(LEARNED_FILE)
    except storage.STORAGE_ERRORS as error:
        raise UserError(f"The model at '{url}' lacks {LEARNED_FILE}, which its card names: copy the whole bundle.") from error
    if hashlib.sha256(data).hexdigest() != card.data.learned_sha256:
        raise UserError(f"The {LEARNED_FILE} of the model at '{url}' is not the one that its card names: copy the whole bundle.")
    file = storage.Parquet(pa.BufferReader(data), f"{url}/{LEARNED_FILE}")
    if file.schema_arrow != LEARNED or file.metadata.num_rows > MOST_IMAGES:
        raise UserError(f"The {LEARNED_FILE} of the model at '{url}' does not hold digests of at most {MOST_IMAGES} images.")
    return file.read()


def _open(url: str) -> "Folder | registry.Pushed":
    if url == EMBEDDED:
        return Folder(str(Path(str(resources.files("fer_pipeline"))) / "models" / EMBEDDED))
    folder = Folder(storage.normalize(url))
    if registry.is_reference(url) and not storage.exists(storage.join(folder.url, MODEL_FILE)):
        return registry.find(url)
    return folder


@dataclass(frozen=True)
class Folder:
    """A bundle's files in a folder of their own."""

    url: str

    def names(self) -> list[str]:
        return storage.list_names(self.url)

    def read(self, name: str) -> bytes:
        return registry.read_file(storage.join(self.url, name))


def weights_file(card: ModelCard) -> str:
    """Return the name of the file that holds the weights of the card's model."""
    return ONNX_FILE if card.format == "onnx" else WEIGHTS_FILE


def card_json(card: ModelCard) -> bytes:
    """Return the card as it is written to `model.json`."""
    return (json.dumps(card.model_dump(mode="json"), indent=2) + "\n").encode()


def save_bundle(url: str, bundle: Bundle) -> None:
    """Write a bundle into the folder `url`; the card, which makes it a bundle, comes last."""
    storage.write_bytes(storage.join(url, weights_file(bundle.card)), bundle.weights)
    if bundle.int8 is not None:
        storage.write_bytes(storage.join(url, INT8_FILE), bundle.int8)
    storage.write_bytes(storage.join(url, MODEL_FILE), card_json(bundle.card))
