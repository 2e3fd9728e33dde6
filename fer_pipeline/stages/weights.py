"""Which detector a run uses and with which weights: decided once, on the driver, so that every worker uses the same bytes."""

import hashlib
import importlib.util
import logging
import os
import threading
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fer_pipeline.core import storage
from fer_pipeline.core.errors import UserError

log = logging.getLogger(__name__)

DetectorName = Literal["yunet", "mtcnn", "none"]

YUNET_FILE = "face_detection_yunet_2023mar.onnx"
YUNET_SHA256 = "8f2383e4dd3cfbb4553ea8718107fc0423210dc964f9f4280604804ed2552fa4"
YUNET_URL = f"https://media.githubusercontent.com/media/opencv/opencv_zoo/main/models/face_detection_yunet/{YUNET_FILE}"
"""OpenCV's model zoo; MIT licence (Wu et al., 2023, "YuNet: A Tiny Millisecond-level Face Detector")."""

THRESHOLDS: dict[DetectorName, float] = {"yunet": 0.6, "mtcnn": 0.9, "none": 0.0}
"""Least detection score of a face, by detector."""
PATIENCE_S = 5.0
"""How long a download may go without result before it is given up."""


@dataclass(frozen=True)
class DetectorWeights:
    """A resolved detector. `weights` is empty where they come with a package that every worker has."""

    name: DetectorName
    digest: str
    weights: bytes
    origin: str
    """Where the weights were found, for the log."""


def resolve_detector(name: str, weights: str | None = None) -> DetectorWeights:
    """Return the detector called `name` with its weights; `auto` is YuNet where its weights can be had, MTCNN otherwise.

    YuNet's weights are looked for at `weights`, in $FER_PIPELINE_MODELS, in the user's cache and at their official
    address. Raise UserError where they are asked for and cannot be had.
    """
    if name == "none":
        return DetectorWeights("none", "none", b"", "the images are face crops")
    if name == "mtcnn":
        return _mtcnn("as asked for")
    if weights:
        return _yunet(Path(weights), "--detector-weights")
    for folder, origin in (
        (os.environ.get("FER_PIPELINE_MODELS"), "$FER_PIPELINE_MODELS"),
        (str(storage.cache_folder()), "the cache"),
    ):
        if folder and (path := Path(folder).expanduser() / YUNET_FILE).is_file():
            return _yunet(path, origin)
    data = _download(YUNET_URL)
    if data is not None:
        try:
            storage.write_bytes(str(storage.cache_folder() / YUNET_FILE), data)
        except OSError as error:
            log.warning("The YuNet weights could not be kept in %s: %s", storage.cache_folder(), error)
        return DetectorWeights("yunet", YUNET_SHA256, data, "its official address")
    if name == "yunet":
        raise UserError(
            f"The YuNet weights cannot be had: put {YUNET_FILE} into $FER_PIPELINE_MODELS, name it with --detector-weights, "
            "or take --detector mtcnn."
        )
    return _mtcnn(f"{YUNET_FILE} was not found and could not be downloaded; set $FER_PIPELINE_MODELS to use YuNet")


def _yunet(path: Path, origin: str) -> DetectorWeights:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"The detector weights '{path}' cannot be read: {error.strerror}.") from error
    digest = hashlib.sha256(data).hexdigest()
    if digest != YUNET_SHA256:
        raise UserError(
            f"'{path}' is not {YUNET_FILE}: its sha256 is {digest[:12]}..., not {YUNET_SHA256[:12]}...; fetch it again."
        )
    return DetectorWeights("yunet", digest, data, origin)


def _mtcnn(reason: str) -> DetectorWeights:
    spec = importlib.util.find_spec("facenet_pytorch")  # found, not imported: torch is for the workers
    if spec is None or not spec.submodule_search_locations:
        raise UserError("The detector 'mtcnn' needs the package facenet-pytorch: install it, or take --detector yunet.")
    folder = Path(spec.submodule_search_locations[0]) / "data"
    digest = hashlib.sha256(b"".join((folder / f"{net}net.pt").read_bytes() for net in "pro")).hexdigest()
    return DetectorWeights("mtcnn", digest, b"", reason)


def _download(url: str) -> bytes | None:
    """Return the YuNet file, or None where it does not come whole within `PATIENCE_S` (name look-ups have no time limit)."""
    got: list[bytes] = []

    def fetch() -> None:
        try:
            with urllib.request.urlopen(url, timeout=PATIENCE_S) as response:
                got.append(response.read(4_000_000))
        except (OSError, ValueError) as error:
            log.debug("download of %s failed: %s", url, error)

    thread = threading.Thread(target=fetch, daemon=True)
    thread.start()
    thread.join(PATIENCE_S)
    return got[0] if got and hashlib.sha256(got[0]).hexdigest() == YUNET_SHA256 else None
