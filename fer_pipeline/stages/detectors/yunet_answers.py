"""What YuNet takes and what its answers mean, whatever computes them."""

import cv2
import numpy as np
from numpy.typing import NDArray

from fer_pipeline.stages.decode import Pixels
from fer_pipeline.stages.detectors.detections import Detections, Floats

STRIDES = (8, 16, 32)
OVERLAP = 0.3
"""IoU above which the weaker of two boxes is dropped."""


def pad(pixels: Pixels) -> Pixels:
    """Return an image with black rows and columns below and right of it, up to multiples of 32, which the network needs."""
    height, width = pixels.shape[:2]
    return np.asarray(cv2.copyMakeBorder(pixels, 0, -height % 32, 0, -width % 32, cv2.BORDER_CONSTANT), np.uint8)


def faces_at(
    places: NDArray[np.integer], columns: int, stride: int, products: Floats, box: Floats, points: Floats
) -> tuple[Floats, Floats, Floats]:
    """Return boxes (n, 4), scores (n,) and landmarks (n, 5, 2) in pixels, from the network's answers at n anchors of a stride.

    `products`: of its class and object scores; `box` (n, 4), `points` (n, 10): as it gives them.
    """
    anchors = np.stack([places % columns, places // columns], 1).astype(np.float32)
    size = np.exp(box[:, 2:]) * stride
    corner = (anchors + box[:, :2]) * stride - size / 2
    landmarks = (points.reshape(-1, 5, 2) + anchors[:, None]) * stride
    return np.concatenate([corner, size], 1), np.sqrt(products), landmarks


def strongest(boxes: Floats, scores: Floats, landmarks: Floats, threshold: float) -> Detections:
    """Return the faces of one image, the best first, without the weaker ones of those that overlap."""
    kept = cv2.dnn.NMSBoxes(boxes.tolist(), scores.tolist(), threshold, OVERLAP)
    order = np.asarray(kept, np.int64).ravel()
    return Detections(boxes[order], scores[order], {"landmarks": landmarks[order]})
