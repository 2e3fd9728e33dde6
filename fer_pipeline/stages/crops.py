"""Faces cut from a dataset's images, and what is measured of every sample: digest, perceptual hash, contrast."""

import hashlib

import cv2
import numpy as np

from fer_pipeline.core.framing import Framing
from fer_pipeline.sources.layouts.layout import DROPPED, MISLABELLED, AnnotatedFace
from fer_pipeline.stages.align import cut_face
from fer_pipeline.stages.decode import Pixels
from fer_pipeline.stages.detectors.detections import Detections, Detector

HASH_SIDE, HASH_IMAGE = 16, 32


class NoCrop(Exception):  # noqa: N818 (it says what happened)
    """No face can be cut from an image: the kind of exclusion, and why."""

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.kind, self.reason = kind, reason


class Cropper:
    """Cuts the face of a sample: the one that annotators marked, or else the largest that the detector finds."""

    def __init__(self, framing: Framing, side_px: int, detector: Detector) -> None:
        self.framing, self.side_px, self.detector = framing, side_px, detector

    def __call__(self, pixels: Pixels, face: AnnotatedFace | None) -> Pixels:
        """Return the crop, BGR uint8 (side_px, side_px, 3); raise NoCrop where there is no face in the image."""
        found = _marked(face, pixels) if face else self._largest(pixels)
        return cut_face(pixels, found, 0, self.framing, self.side_px)

    def _largest(self, pixels: Pixels) -> Detections:
        found = self.detector(pixels)
        if not len(found):
            raise NoCrop(DROPPED, "no face found")
        index = int(found.boxes_xywh[:, 2:].prod(1).argmax())
        return found[index : index + 1]


def _marked(face: AnnotatedFace, pixels: Pixels) -> Detections:
    x, y, width, height = face.box_xywh
    rows, columns = pixels.shape[:2]
    if width <= 0 or height <= 0 or x >= columns or y >= rows or x + width <= 0 or y + height <= 0:
        raise NoCrop(MISLABELLED, f"the box {x:g},{y:g},{width:g},{height:g} lies outside the image of {columns} x {rows} pixels")
    attributes = {"landmarks": np.array([face.landmarks], np.float32)} if face.landmarks else {}
    return Detections(np.array([face.box_xywh], np.float32), np.ones(1, np.float32), attributes)


def pixel_digest(pixels: Pixels) -> str:
    """Return the sha256 of pixels and their shape: equal for equal images, whatever their encoding."""
    return hashlib.sha256(str(pixels.shape).encode() + pixels.tobytes()).hexdigest()


def perceptual_hash(grey: Pixels) -> bytes:
    """Return 256 bits: which of the 16 x 16 lowest frequencies of the image at 32 x 32 pixels are above their median.

    After Zauner (2010), with four times the bits: on aligned faces 64 confuse different people.
    """
    small = cv2.resize(grey, (HASH_IMAGE, HASH_IMAGE), interpolation=cv2.INTER_AREA).astype(np.float32)
    lowest = cv2.dct(small)[:HASH_SIDE, :HASH_SIDE].ravel()
    return np.packbits(lowest > np.median(lowest[1:])).tobytes()
