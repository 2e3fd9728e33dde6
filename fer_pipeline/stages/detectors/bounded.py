"""Detection in images shrunk to a bounded size."""

import cv2
import numpy as np

from fer_pipeline.stages.decode import Pixels
from fer_pipeline.stages.detectors.detections import Detections, Detector


def shrink(pixels: Pixels, size_px: int) -> tuple[Pixels, float]:
    """Return an image with a long side of at most `size_px`, and how many of the given pixels one of its pixels stands for."""
    height, width = pixels.shape[:2]
    scale = size_px / max(height, width)
    if scale >= 1:
        return pixels, 1.0
    size = max(1, round(width * scale)), max(1, round(height * scale))
    # Up to twice this size (JPEGs come so, see `decode`) area averaging costs four times as much and finds no more.
    small = cv2.resize(pixels, size, interpolation=cv2.INTER_LINEAR if scale >= 0.5 else cv2.INTER_AREA)
    return np.asarray(small, np.uint8), 1 / scale


class Bounded:
    """Runs a detector on images shrunk to a long side of at most `size_px`, and scales what it finds back."""

    def __init__(self, detector: Detector, size_px: int) -> None:
        self.detector, self.size_px = detector, size_px

    def __call__(self, pixels: Pixels) -> Detections:
        small, factor = shrink(pixels, self.size_px)
        return self.detector(small).scaled(factor)
