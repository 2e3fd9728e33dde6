"""The detector `none`, for images that already are face crops."""

import numpy as np

from fer_pipeline.base.errors import UserError
from fer_pipeline.faces.detectors.detections import Detections
from fer_pipeline.faces.detectors.spec import DetectorSpec, ResolvedDetector
from fer_pipeline.faces.pixels import Pixels


class WholeImage:
    """Returns the whole image as one face."""

    def __call__(self, pixels: Pixels) -> Detections:
        height, width = pixels.shape[:2]
        return Detections(np.array([[0, 0, width, height]], np.float32), np.ones(1, np.float32))


def _resolve(weights: str | None) -> ResolvedDetector:
    if weights:
        raise UserError("The detector 'none' has no weights: leave out --detector-weights.")
    return ResolvedDetector("none", "none", origin="the images are face crops")


NONE = DetectorSpec(
    name="none",
    help="the images are face crops",
    threshold=0.0,
    resolve=_resolve,
    load=lambda weights, threshold: WholeImage(),
    finds_faces=False,
)
