"""The declaration of a detector, and the search for its weights."""

import hashlib
import logging
import os
import threading
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fer_pipeline.base import storage
from fer_pipeline.base.errors import UserError
from fer_pipeline.faces.detectors.detections import BatchDetector, Detector

log = logging.getLogger(__name__)

MODELS_VARIABLE = "FER_PIPELINE_MODELS"
"""Environment variable that names the folder to search first for weights."""
DOWNLOAD_TIMEOUT_S = 5.0
"""Time limit for a download."""


@dataclass(frozen=True)
class ResolvedDetector:
    """A detector and its weights. The driver resolves them once, so every worker, retry and resume uses the same bytes."""

    name: str
    digest: str
    """sha256 of the weights."""
    weights: bytes = b""
    """Empty if they come with a package that every worker has."""
    origin: str = ""
    """Where the weights were found, for the log."""


@dataclass(frozen=True)
class DetectorSpec:
    """The declaration of a detector."""

    name: str
    help: str
    """One line for the help of commands."""
    threshold: float
    """Default minimum detection score of a face."""
    resolve: Callable[[str | None], ResolvedDetector]
    """Finds the weights, at the given path or in the usual places. Raises WeightsNotFound, or UserError for a wrong file."""
    load: Callable[[bytes, float], Detector]
    """Creates the detector from weights and threshold, in a worker. Heavy packages are imported only there."""
    load_for_device: Callable[[bytes, float, str, str], BatchDetector] | None = None
    """Creates the detector for batches from weights, threshold, torch device and precision; None if it has none."""
    pitch_gain: float = 1.0
    """What the pitch that its landmarks show is multiplied with (`faces/quality.py`)."""
    finds_faces: bool = True
    """If False, every image is one face crop, and nothing is cut."""


class WeightsNotFound(UserError):  # noqa: N818 (it names what happened)
    """The weights are not available. `auto` then tries the next detector."""


@dataclass
class WeightsFile:
    """A weights file: its digest identifies it, and its official URL provides it."""

    detector: str
    name: str
    sha256: str
    url: str

    def resolve(self, path: str | None) -> ResolvedDetector:
        """Return the detector with the weights at `path`, in $FER_PIPELINE_MODELS, in the cache, or from their URL."""
        if path:
            return self._read(Path(path), "--detector-weights")
        if local := self.local_file():
            return self._read(*local)
        cache = storage.cache_folder()
        data = _download(self.url)
        if data is None or hashlib.sha256(data).hexdigest() != self.sha256:
            raise WeightsNotFound(
                f"The weights of '{self.detector}' are not available: put {self.name} into ${MODELS_VARIABLE}, name "
                "it with --detector-weights, or use --detector mtcnn."
            )
        try:
            storage.write_bytes(str(cache / self.name), data)
        except OSError as error:
            log.warning("The weights of %s could not be cached in %s: %s", self.detector, cache, error)
        return ResolvedDetector(self.detector, self.sha256, data, "its official URL")

    def local_file(self) -> tuple[Path, str] | None:
        """Return the file on this machine and its place, in words; None if it must be downloaded."""
        places = {f"${MODELS_VARIABLE}": os.environ.get(MODELS_VARIABLE), "the cache": str(storage.cache_folder())}
        for origin, folder in places.items():
            if folder and (found := Path(folder).expanduser() / self.name).is_file():
                return found, origin
        return None

    def _read(self, path: Path, origin: str) -> ResolvedDetector:
        try:
            data = path.read_bytes()
        except OSError as error:
            raise UserError(f"The detector weights '{path}' cannot be read: {error.strerror}.") from error
        digest = hashlib.sha256(data).hexdigest()
        if digest != self.sha256:
            raise UserError(
                f"'{path}' is not {self.name}: its sha256 is {digest[:12]}..., not {self.sha256[:12]}... Download it again."
            )
        return ResolvedDetector(self.detector, digest, data, origin)


def _download(url: str) -> bytes | None:
    """Return the bytes at `url`; None if the download fails or, name look-up included, exceeds `DOWNLOAD_TIMEOUT_S`."""
    got: list[bytes] = []

    def fetch() -> None:
        try:
            with urllib.request.urlopen(url, timeout=DOWNLOAD_TIMEOUT_S) as response:
                got.append(response.read(4_000_000))
        except (OSError, ValueError) as error:
            log.debug("download of %s failed: %s", url, error)

    thread = threading.Thread(target=fetch, daemon=True)
    thread.start()
    thread.join(DOWNLOAD_TIMEOUT_S)
    return got[0] if got else None
