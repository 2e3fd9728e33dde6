"""Cut faces from a dataset's images, and compute the digest of every sample."""

import hashlib

import numpy as np

from fer_pipeline.datasets.layouts.layout import DROPPED, MISLABELLED, AnnotatedFace
from fer_pipeline.faces.align import cut_face
from fer_pipeline.faces.detectors.detections import Detections, Detector
from fer_pipeline.faces.pixels import Pixels
from fer_pipeline.models.framing import Framing


class NoCropError(Exception):
    """No face can be cut from an image; `kind` says how the sample is excluded (DROPPED, MISLABELLED), `reason` why."""

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.kind, self.reason = kind, reason


class Cropper:
    """Cuts the face of a sample: the face that annotators marked, otherwise the largest face that the detector finds."""

    def __init__(self, framing: Framing, side_px: int, detector: Detector) -> None:
        self.framing, self.side_px, self.detector = framing, side_px, detector

    def __call__(self, pixels: Pixels, face: AnnotatedFace | None) -> Pixels:
        """Return the crop, BGR uint8 (side_px, side_px, 3). Raise NoCropError if the image shows no face."""
        detection = _as_detection(face, pixels) if face else self._largest(pixels)
        return cut_face(pixels, detection, 0, self.framing, self.side_px)

    def _largest(self, pixels: Pixels) -> Detections:
        detections = self.detector(pixels)
        if not len(detections):
            raise NoCropError(DROPPED, "no face found")
        index = int(detections.boxes_xywh[:, 2:].prod(1).argmax())
        return detections[index : index + 1]


def _as_detection(face: AnnotatedFace, pixels: Pixels) -> Detections:
    x, y, width, height = face.box_xywh
    rows, columns = pixels.shape[:2]
    if width <= 0 or height <= 0 or x >= columns or y >= rows or x + width <= 0 or y + height <= 0:
        raise NoCropError(
            MISLABELLED, f"the box {x:g},{y:g},{width:g},{height:g} is outside the image of {columns} x {rows} pixels"
        )
    attributes = {"landmarks": np.array([face.landmarks], np.float32)} if face.landmarks else {}
    return Detections(np.array([face.box_xywh], np.float32), np.ones(1, np.float32), attributes)


def pixel_digest(pixels: Pixels) -> str:
    """Return the sha256 of the pixels and their shape; it does not depend on the encoding of the image."""
    return hashlib.sha256(str(pixels.shape).encode() + pixels.tobytes()).hexdigest()
