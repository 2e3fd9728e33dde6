"""YuNet's input and the meaning of its outputs, for any runtime."""

import cv2
import numpy as np
from numpy.typing import NDArray

from fer_pipeline.faces.detectors.detections import Detections, Floats
from fer_pipeline.faces.pixels import Pixels

STRIDES = (8, 16, 32)


def pad(pixels: Pixels) -> Pixels:
    """Return the image with black padding at the bottom and right, to multiples of 32, which the network needs."""
    height, width = pixels.shape[:2]
    return np.asarray(cv2.copyMakeBorder(pixels, 0, -height % 32, 0, -width % 32, cv2.BORDER_CONSTANT), np.uint8)


def decode_anchors(
    cells: NDArray[np.integer], columns: int, stride: int, products: Floats, box: Floats, points: Floats
) -> tuple[Floats, Floats, Floats]:
    """Return boxes (n, 4), scores (n,) and landmarks (n, 5, 2) in pixels, from the network's outputs at n anchors of a stride.

    `cells` (n,) number the anchors row by row, `products` (n,) are class score times object score, `box` (n, 4) and `points`
    (n, 10) are raw outputs.
    """
    anchors = np.stack([cells % columns, cells // columns], 1).astype(np.float32)
    size = np.exp(box[:, 2:]) * stride
    corner = (anchors + box[:, :2]) * stride - size / 2
    landmarks = (points.reshape(-1, 5, 2) + anchors[:, None]) * stride
    return np.concatenate([corner, size], 1), np.sqrt(products), landmarks


def suppress_overlaps(boxes: Floats, scores: Floats, landmarks: Floats, threshold: float) -> Detections:
    """Return the faces of one image, highest score first. Of two boxes with an IoU above 0.3, the weaker one is dropped."""
    kept = cv2.dnn.NMSBoxes(boxes.tolist(), scores.tolist(), threshold, 0.3)
    order = np.asarray(kept, np.int64).ravel()
    return Detections(boxes[order], scores[order], {"landmarks": landmarks[order]})
