"""What a detector declares of itself, and how the files of its weights are had."""

import hashlib
import logging
import os
import threading
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fer_pipeline.core import storage
from fer_pipeline.core.errors import UserError
from fer_pipeline.stages.detectors.detections import BatchDetector, Detector

log = logging.getLogger(__name__)

MODELS = "FER_PIPELINE_MODELS"
"""Environment variable: the folder in which weights are looked for first."""
PATIENCE_S = 5.0
"""How long a download may take before it is given up."""


@dataclass(frozen=True)
class ResolvedDetector:
    """A detector and its weights, decided once on the driver, so that every worker, retry and resume uses the same bytes."""

    name: str
    digest: str
    """sha256 of the weights."""
    weights: bytes = b""
    """Empty where they come with a package that every worker has."""
    origin: str = ""
    """Where the weights were found, for the log."""


@dataclass(frozen=True)
class DetectorSpec:
    """The declaration of a detector."""

    name: str
    help: str
    """One line for the help of commands."""
    threshold: float
    """Least detection score of a face, where the user does not say."""
    resolve: Callable[[str | None], ResolvedDetector]
    """Finds the weights, at the path given or where they usually are. Raises WeightsNotFound, or UserError for a wrong file."""
    load: Callable[[bytes, float], Detector]
    """Makes the detector from weights and threshold, in a worker: what is heavy to import is imported there."""
    load_for_device: Callable[[bytes, float, str, str], BatchDetector] | None = None
    """Makes the detector for batches from weights, threshold, torch device and precision, where it has such a form."""
    finds_faces: bool = True
    """False: every image counts as one face crop, and nothing is cut."""


class WeightsNotFound(UserError):  # noqa: N818 (it names what happened)
    """Weights that cannot be had; `auto` then takes the next detector."""


@dataclass
class WeightsFile:
    """A file of weights that is known by its digest, and its official address."""

    detector: str
    name: str
    sha256: str
    url: str

    def resolve(self, path: str | None) -> ResolvedDetector:
        """Return the detector with the weights at `path`, in $FER_PIPELINE_MODELS, in the cache, or at their address."""
        if path:
            return self._read(Path(path), "--detector-weights")
        if kept := self.kept():
            return self._read(*kept)
        cache = storage.cache_folder()
        data = _download(self.url)
        if data is None or hashlib.sha256(data).hexdigest() != self.sha256:
            raise WeightsNotFound(
                f"The weights of '{self.detector}' cannot be had: put {self.name} into ${MODELS}, name it with "
                "--detector-weights, or take --detector mtcnn."
            )
        try:
            storage.write_bytes(str(cache / self.name), data)
        except OSError as error:
            log.warning("The weights of %s could not be kept in %s: %s", self.detector, cache, error)
        return ResolvedDetector(self.detector, self.sha256, data, "its official address")

    def kept(self) -> tuple[Path, str] | None:
        """Return the file on this machine and where that is, in words; None where it must be fetched."""
        for folder, origin in ((os.environ.get(MODELS), f"${MODELS}"), (str(storage.cache_folder()), "the cache")):
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
                f"'{path}' is not {self.name}: its sha256 is {digest[:12]}..., not {self.sha256[:12]}...; fetch it again."
            )
        return ResolvedDetector(self.detector, digest, data, origin)


def _download(url: str) -> bytes | None:
    """Return what is at `url`, or None where it does not come whole within `PATIENCE_S` (name look-ups have no time limit)."""
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
    return got[0] if got else None
