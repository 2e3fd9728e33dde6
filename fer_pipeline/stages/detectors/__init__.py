"""Detectors: faces as boxes, landmarks and whatever else they find. One file each, and the table `DETECTORS`."""

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from fer_pipeline.core.errors import UserError
from fer_pipeline.stages.detectors.bounded import Bounded
from fer_pipeline.stages.detectors.detections import BatchDetector, Detector
from fer_pipeline.stages.detectors.mtcnn import MTCNN
from fer_pipeline.stages.detectors.spec import MODELS, DetectorSpec, ResolvedDetector, WeightsNotFound
from fer_pipeline.stages.detectors.whole_image import NONE
from fer_pipeline.stages.detectors.yunet import WEIGHTS, YUNET

log = logging.getLogger(__name__)

DETECTORS: dict[str, DetectorSpec] = {spec.name: spec for spec in (YUNET, MTCNN, NONE)}
"""Every detector, in the order in which `auto` tries those that find faces."""
AUTO = "auto"

if TYPE_CHECKING:
    DetectorName = str
else:
    DetectorName = Literal[AUTO, *DETECTORS]

DETECTOR_HELP = f"`{AUTO}`: the first of these whose weights can be had; " + "; ".join(
    f"`{spec.name}`: {spec.help} (least score {spec.threshold:g})" for spec in DETECTORS.values()
)


def resolve_detector(name: str, weights: str | None = None) -> ResolvedDetector:
    """Return the detector called `name` with its weights, those at the path `weights` where one is given.

    Raise UserError where there is no such detector or its weights cannot be had.
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
            log.warning("%s finds the faces in the place of a faster detector: %s", found.name, " ".join(missing))
        return found
    raise UserError(" ".join(missing))


def fetched_from(name: str, weights: str | None) -> str | None:
    """Return the address from which resolving a detector fetches its weights; None where it need not."""
    needed = name in (AUTO, YUNET.name) and not weights and not WEIGHTS.kept()
    return WEIGHTS.url if needed else None


def require_first_choice(name: str, resolved: ResolvedDetector, where: Callable[[], str]) -> None:
    """Raise UserError where `auto` fell back and that is not harmless: `where` says where it is not.

    A cluster is not to work at a ninth of the speed because of one failed download, and a table not to be labelled anew.
    """
    first = next(iter(DETECTORS))
    if name == AUTO and resolved.name != first:
        raise UserError(
            f"{where()} {first} is not replaced by {resolved.name}, which is slower and finds other faces: put the weights of "
            f"{first} into ${MODELS}, name them with --detector-weights, or say --detector {resolved.name}."
        )


def load_batch_detector(resolved: ResolvedDetector, threshold: float, device: str, precision: str) -> BatchDetector:
    """Return a resolved detector for images that were shrunk before, on a torch device if it has a form for that."""
    spec = DETECTORS[resolved.name]
    if spec.load_for_device:
        return spec.load_for_device(resolved.weights, threshold, device, precision)
    detector = spec.load(resolved.weights, threshold)
    return lambda images: [detector(pixels) for pixels in images]


def load_detector(resolved: ResolvedDetector, size_px: int, threshold: float) -> Detector:
    """Return a resolved detector, ready to run on one core, on images shrunk to a long side of `size_px`."""
    spec = DETECTORS[resolved.name]
    detector = spec.load(resolved.weights, threshold)
    return Bounded(detector, size_px) if spec.finds_faces else detector
