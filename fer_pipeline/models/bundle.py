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

from fer_pipeline.base import storage
from fer_pipeline.base.config import explain
from fer_pipeline.base.errors import UserError
from fer_pipeline.base.memory import ReadTooLargeError, bounded_read
from fer_pipeline.base.schema_version import require_schema_version
from fer_pipeline.base.storage import parquet
from fer_pipeline.models import registry
from fer_pipeline.models.card import SCHEMA_VERSION, ModelCard

MODEL_FILE = "model.json"
WEIGHTS_FILE = "model.safetensors"
ONNX_FILE = "model.onnx"
INT8_FILE = "model.int8.onnx"
CARD_MARKDOWN = "MODEL_CARD.md"
CARD_PAGE = "model_card.html"
HISTORY = "history.json"
CURVES = "curves.png"
CONFUSION = "confusion.png"
LEARNED_FILE = "learned.parquet"
BUNDLE_FILES = (
    MODEL_FILE, WEIGHTS_FILE, ONNX_FILE, INT8_FILE, LEARNED_FILE, CARD_MARKDOWN, CARD_PAGE, HISTORY, CURVES, CONFUSION
)  # fmt: skip
"""All files that a bundle may have."""
MAX_ONNX_PARTS = 1_000_000
"""Limit on the nodes, attributes, shapes and other parts of an ONNX file. A ResNet-152 has some ten thousand."""
LEARNED = pa.schema(
    [
        pa.field("pixels", pa.binary(16), nullable=False),  # first 16 bytes of the sha256 of the pixels
        pa.field("phash", pa.binary(32)),  # perceptual hash; null for a blank image, which has no near copies
    ]
)
MOST_IMAGES = 2_000_000
"""Limit on the images in `learned.parquet`, 48 bytes each: 1.5 MB for 30,000 images, 48 MB for a million."""
EMBEDDED = "embedded"
"""The name of the model in the package."""


@dataclass(frozen=True)
class Bundle:
    """A bundle's card and the bytes of its weights. `digest` is the sha256 over both; the card holds that of the int8 form."""

    card: ModelCard
    weights: bytes
    digest: str
    version: str | None = field(default=None, compare=False)
    """The version in a registry; None outside one."""
    alias: str | None = field(default=None, compare=False)
    """The alias that was resolved to this version."""
    int8: bytes | None = field(default=None, compare=False)
    """The int8 form of the network, if the bundle has one."""

    def computing_in(self, precision: str) -> "Bundle":
        """Return the bundle for a precision: for `int8` its int8 form, an ONNX network with its own calibration.

        Raise UserError if it has no int8 form.
        """
        if precision != "int8":
            return self
        if self.int8 is None or self.card.int8 is None:
            raise UserError(f"The model '{self.card.name}' has no int8 form: add one with 'fer-pipeline models quantize'.")
        changes = {"format": "onnx", "calibration": self.card.int8.calibration}
        return replace(self, card=self.card.model_copy(update=changes), weights=self.int8)


def read_bundle(url: str) -> Bundle:
    """Return the bundle in the folder `url`, the embedded one, or the one that [REGISTRY/]NAME@ALIAS names.

    Raise UserError if there is no complete and valid bundle.
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
        raise UserError(f"The {INT8_FILE} of the model at '{url}' does not match its card: copy the whole bundle again.")
    _require_single_files({weights_file(card): weights, INT8_FILE: int8}, url)
    digest = hashlib.sha256(text + weights).hexdigest()
    if isinstance(files, registry.Pushed):
        return Bundle(card, weights, digest, files.version.version, files.alias, int8)
    return Bundle(card, weights, digest, int8=int8)


def bundle_of(card: ModelCard, weights: bytes, int8: bytes | None = None) -> Bundle:
    """Return a bundle that is not in a folder yet."""
    return Bundle(card, weights, hashlib.sha256(card_json(card) + weights).hexdigest(), int8=int8)


def read_files(url: str) -> dict[str, bytes]:
    """Return all files of a bundle by name: card, weights, pictures, history and pages."""
    files = _open(url)
    found = {name: files.read(name) for name in files.names() if name in BUNDLE_FILES}
    _require_single_files(found, url)
    return found


def _require_single_files(files: Mapping[str, bytes | None], url: str) -> None:
    """Raise UserError unless each ONNX network in these files of the bundle at `url` contains all of its weights."""
    for name, data in files.items():
        if name.endswith(".onnx") and data is not None:
            require_single_file(data, f"The {name} of the model at '{url}'")


def require_single_file(model: bytes, what: str) -> None:
    """Raise UserError unless an ONNX network contains all of its weights.

    Tensors may refer to other files, which ONNX Runtime reads below the current folder, so labels could reveal a secret there.
    Graphs, subgraphs, functions and attributes may hold tensors, so this function checks every message in the file.
    """
    import onnx
    from google.protobuf.message import DecodeError

    try:
        with bounded_read(what):
            for count, message in enumerate(_messages(onnx.load_model_from_string(model))):
                if count > MAX_ONNX_PARTS:
                    raise UserError(f"{what} has more than {MAX_ONNX_PARTS:,} parts: use a smaller network.")
                if isinstance(message, onnx.TensorProto) and (message.data_location or message.external_data):
                    raise UserError(f"{what} stores weights in other files, which are not read: export it as one file.")
    except (DecodeError, ReadTooLargeError) as error:
        raise UserError(f"{what} is not a readable ONNX network: export it again.") from error


def _messages(message: Any) -> Iterator[Any]:
    """Yield a Protocol Buffers message and all messages inside it."""
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
    """Return the images that a bundle's model learned, as rows of `LEARNED`; None if its card records none.

    Raise UserError if the file is missing or does not match the card.
    """
    if card.data.learned_sha256 is None:
        return None
    try:
        data = _open(url).read(LEARNED_FILE)
    except storage.STORAGE_ERRORS as error:
        raise UserError(f"The model at '{url}' lacks {LEARNED_FILE}, which its card requires: copy the whole bundle.") from error
    if hashlib.sha256(data).hexdigest() != card.data.learned_sha256:
        raise UserError(f"The {LEARNED_FILE} of the model at '{url}' does not match its card: copy the whole bundle.")
    file = parquet.Parquet(pa.BufferReader(data), f"{url}/{LEARNED_FILE}")
    if file.schema_arrow != LEARNED or file.metadata.num_rows > MOST_IMAGES:
        raise UserError(f"The {LEARNED_FILE} of the model at '{url}' must hold the digests of at most {MOST_IMAGES} images.")
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
    """The files of a bundle in a folder."""

    url: str

    def names(self) -> list[str]:
        return storage.list_names(self.url)

    def read(self, name: str) -> bytes:
        return registry.read_file(storage.join(self.url, name))


def weights_file(card: ModelCard) -> str:
    """Return the name of the file that holds the weights of the card's model."""
    return ONNX_FILE if card.format == "onnx" else WEIGHTS_FILE


def card_json(card: ModelCard) -> bytes:
    """Return the bytes of a card for `model.json`."""
    return (json.dumps(card.model_dump(mode="json"), indent=2) + "\n").encode()


def save_bundle(url: str, bundle: Bundle) -> None:
    """Write a bundle into the folder `url`. The card comes last, because it makes the folder a bundle."""
    storage.write_bytes(storage.join(url, weights_file(bundle.card)), bundle.weights)
    if bundle.int8 is not None:
        storage.write_bytes(storage.join(url, INT8_FILE), bundle.int8)
    storage.write_bytes(storage.join(url, MODEL_FILE), card_json(bundle.card))
