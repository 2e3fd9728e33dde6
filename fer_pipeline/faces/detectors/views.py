"""The views of a photo that a detector gets: the photo shrunk, and tiles of a panorama or a long screenshot."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from fer_pipeline.faces.detectors.detections import Detections, Detector, Floats, joined, no_faces
from fer_pipeline.faces.pixels import Pixels
from fer_pipeline.faces.shapes import is_extreme, seen_px

OVERLAP = 1 / 3
"""Share of its side by which a tile overlaps the next one. A face that is larger is found in the photo shrunk whole."""
SAME_FACE = 0.5
"""Two boxes are of one face if they share this much of the smaller one: a tile may hold only a part of a face."""
EDGE_PX = 2.0
"""A box this close to the edge of a tile may be a part of a face."""


@dataclass(frozen=True)
class View:
    """A part of a photo, shrunk for detection."""

    pixels: Pixels
    factor: float
    """Side of a pixel of the view, in pixels of the photo as decoded."""
    x: int = 0
    y: int = 0
    """Where its upper left corner is in the photo as decoded."""


def shrink(pixels: Pixels, size_px: int) -> tuple[Pixels, float]:
    """Return the image with a long side of at most `size_px`, and the original size over the returned size (1 or more)."""
    height, width = pixels.shape[:2]
    scale = size_px / max(height, width)
    if scale >= 1:
        return pixels, 1.0
    size = max(1, round(width * scale)), max(1, round(height * scale))
    # Below twice this size (as `decode` returns JPEGs) area averaging takes four times as long and finds no more faces.
    small = cv2.resize(pixels, size, interpolation=cv2.INTER_LINEAR if scale >= 0.5 else cv2.INTER_AREA)
    return np.asarray(small, np.uint8), 1 / scale


def views_of(pixels: Pixels, reduction: float, size_px: int) -> list[View]:
    """Return the photo, shrunk to a long side of `size_px`; for an extreme shape also its tiles.

    `reduction`: side of a pixel, in pixels of the full size.
    """
    height, width = pixels.shape[:2]
    whole = View(*shrink(pixels, size_px))
    full_width, full_height = round(width * reduction), round(height * reduction)
    if not is_extreme(full_width, full_height, size_px):
        return [whole]
    side = max(1, round(seen_px(full_width, full_height, size_px) / reduction))
    places = [(x, y) for y in _starts(height, side) for x in _starts(width, side)]
    return [whole, *(View(*shrink(pixels[y : y + side, x : x + side], size_px), x, y) for x, y in places)]


def _starts(length: int, side: int) -> list[int]:
    """Return where tiles of a side start, so that they cover a length evenly and overlap by at least `OVERLAP`."""
    if length <= side:
        return [0]
    count = math.ceil((length - side) / (side * (1 - OVERLAP))) + 1
    return [round(index * (length - side) / (count - 1)) for index in range(count)]


def merged(views: Sequence[View], found: Sequence[Detections]) -> Detections:
    """Return the faces of a photo, in its pixels as decoded, from those of each view.

    Of several boxes of one face, the one with the highest score stays; one at the edge of a tile only if there is no other.
    """
    placed = [faces.scaled(view.factor).moved(view.x, view.y) for view, faces in zip(views, found, strict=True)]
    if len(placed) == 1:
        return placed[0]
    parts = [faces for faces in placed if len(faces)]
    if not parts:
        return no_faces()
    in_tiles = [_at_edge(view, faces) for view, faces in zip(views[1:], found[1:], strict=True)]
    at_edge = np.concatenate([np.zeros(len(found[0]), bool), *in_tiles])
    together = joined(parts)
    order, kept = np.lexsort((-together.scores, at_edge)), list[int]()
    for index in order.tolist():
        if (_shared(together.boxes_xywh[index], together.boxes_xywh[kept]) < SAME_FACE).all():
            kept.append(index)
    return together[sorted(kept, key=lambda index: -float(together.scores[index]))]


def _at_edge(view: View, faces: Detections) -> NDArray[np.bool_]:
    """Return which faces of a tile (n,) may be parts of faces."""
    height, width = view.pixels.shape[:2]
    x, y, w, h = faces.boxes_xywh.T
    return np.asarray((x < EDGE_PX) | (y < EDGE_PX) | (x + w > width - EDGE_PX) | (y + h > height - EDGE_PX))


def _shared(one: Floats, others: Floats) -> Floats:
    """Return the area that a box (4,) shares with each of others (n, 4), over the area of the smaller of the two: (n,)."""
    size = np.minimum(one[:2] + one[2:], others[:, :2] + others[:, 2:]) - np.maximum(one[:2], others[:, :2])
    smaller = np.minimum(one[2] * one[3], others[:, 2] * others[:, 3])
    return np.asarray(np.maximum(size, 0).prod(1) / np.maximum(smaller, 1e-6), np.float32)


class Bounded:
    """Runs a detector on the views of an image, which are at most `size_px` long, and merges the detections."""

    def __init__(self, detector: Detector, size_px: int) -> None:
        self.detector, self.size_px = detector, size_px

    def __call__(self, pixels: Pixels) -> Detections:
        views = views_of(pixels, 1.0, self.size_px)
        return merged(views, [self.detector(view.pixels) for view in views])
