"""Detectors: they find faces as boxes, landmarks and other attributes. One file each, and the table `DETECTORS`."""

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from fer_pipeline.base.errors import UserError
from fer_pipeline.faces.detectors.detections import BatchDetector, Detector
from fer_pipeline.faces.detectors.mtcnn import MTCNN
from fer_pipeline.faces.detectors.spec import MODELS_VARIABLE, DetectorSpec, ResolvedDetector, WeightsNotFound
from fer_pipeline.faces.detectors.views import Bounded
from fer_pipeline.faces.detectors.whole_image import NONE
from fer_pipeline.faces.detectors.yunet import WEIGHTS, YUNET

log = logging.getLogger(__name__)

DETECTORS: dict[str, DetectorSpec] = {spec.name: spec for spec in (YUNET, MTCNN, NONE)}
"""All detectors. `auto` tries those that find faces in this order."""
AUTO = "auto"

if TYPE_CHECKING:
    DetectorName = str
else:
    DetectorName = Literal[AUTO, *DETECTORS]

DETECTOR_HELP = f"`{AUTO}`: the first of these with available weights; " + "; ".join(
    f"`{spec.name}`: {spec.help} (minimum score {spec.threshold:g})" for spec in DETECTORS.values()
)


def resolve_detector(name: str, weights: str | None = None) -> ResolvedDetector:
    """Return the detector called `name` with its weights, from the path `weights` if given.

    Raise UserError if there is no such detector or its weights are not available.
    """
    if name in DETECTORS:
        return DETECTORS[name].resolve(weights)
    if name != AUTO:
        raise UserError(f"There is no detector '{name}': choose {AUTO} or one of {', '.join(DETECTORS)}.")
    missing: list[str] = []
    for spec in DETECTORS.values():
        try:
            found = spec.resolve(weights)
        except WeightsNotFound as error:
            missing.append(str(error))
            continue
        if missing:
            log.warning("The slower detector %s finds the faces. %s", found.name, " ".join(missing))
        return found
    raise UserError(" ".join(missing))


def fetched_from(name: str, weights: str | None) -> str | None:
    """Return the URL from which resolving a detector downloads its weights; None if it needs no download."""
    needed = name in (AUTO, YUNET.name) and not weights and not WEIGHTS.local_file()
    return WEIGHTS.url if needed else None


def require_first_choice(name: str, resolved: ResolvedDetector, where: Callable[[], str]) -> None:
    """Raise UserError if `auto` fell back to a slower detector. `where` says why that matters here.

    One failed download must not slow a cluster down to a ninth of its speed, nor make a whole table be labelled again.
    """
    first = next(iter(DETECTORS))
    if name == AUTO and resolved.name != first:
        raise UserError(
            f"{where()} {first} is not replaced by {resolved.name}, which is slower and finds other faces: put the weights of "
            f"{first} into ${MODELS_VARIABLE}, name them with --detector-weights, or use --detector {resolved.name}."
        )


def load_batch_detector(resolved: ResolvedDetector, threshold: float, device: str, precision: str) -> BatchDetector:
    """Return a resolved detector for batches of already shrunk images, on a torch device if it supports one."""
    spec = DETECTORS[resolved.name]
    if spec.load_for_device:
        return spec.load_for_device(resolved.weights, threshold, device, precision)
    detector = spec.load(resolved.weights, threshold)
    return lambda images: [detector(pixels) for pixels in images]


def load_detector(resolved: ResolvedDetector, size_px: int, threshold: float) -> Detector:
    """Return a resolved detector for one core, which shrinks images to a long side of at most `size_px`."""
    spec = DETECTORS[resolved.name]
    detector = spec.load(resolved.weights, threshold)
    return Bounded(detector, size_px) if spec.finds_faces else detector
