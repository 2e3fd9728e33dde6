"""Copies of images with covered faces: each becomes a few squares of its mean colours."""

from collections.abc import Sequence

import cv2
import numpy as np

from fer_pipeline.archive.fetch import Fetched
from fer_pipeline.archive.signatures import HEAD_BYTES, PNG, kind_of
from fer_pipeline.base.errors import RecordError
from fer_pipeline.faces.decode import decode
from fer_pipeline.faces.pixels import Pixels

CELLS, LEAST_PX = 6, 4
"""Squares along the longer side of a covered box, and the least side of one: a box of few pixels has fewer."""
BOX_SCALE = 1.4
"""Side of the covered box over that of the face's box, which leaves out hair, ears and chin."""
JPEG_ENDINGS, JPEG_QUALITY = (".jpg", ".jpeg", ".jpe", ".jfif"), 92


def covered_copy(data: Fetched, boxes_xywh: Sequence[Sequence[float]], max_pixels: int) -> tuple[bytes, tuple[str, ...]]:
    """Return an image with its boxes covered, as a PNG if it is one and else as a JPEG, and the endings that suit its name.

    It is the upright picture alone: no metadata, no thumbnail, no further frame. Raise RecordError as `decode` does.
    """
    pixels = mosaicked(decode(data, max_pixels).pixels, boxes_xywh)
    is_png = isinstance(data, bytes) and kind_of(data[:HEAD_BYTES]) is PNG
    endings, parameters = ((".png",), []) if is_png else (JPEG_ENDINGS, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    worked, copy = cv2.imencode(endings[0], pixels, parameters)
    if not worked:
        raise RecordError("too_large", f"no {endings[0][1:].upper()} holds {pixels.shape[1]} x {pixels.shape[0]} pixels")
    return copy.tobytes(), endings


def mosaicked(pixels: Pixels, boxes_xywh: Sequence[Sequence[float]]) -> Pixels:
    """Return a copy of a BGR image with a mosaic over each box (pixels of the image), which is enlarged by `BOX_SCALE`."""
    picture = pixels.copy()
    height, width = picture.shape[:2]
    for x, y, w, h in boxes_xywh:
        more_x, more_y = (BOX_SCALE - 1) / 2 * w, (BOX_SCALE - 1) / 2 * h
        left, top = max(0, int(np.floor(x - more_x))), max(0, int(np.floor(y - more_y)))
        right, bottom = min(width, int(np.ceil(x + w + more_x))), min(height, int(np.ceil(y + h + more_y)))
        if left >= right or top >= bottom:
            continue
        size = right - left, bottom - top
        most = min(CELLS, max(1, max(size) // LEAST_PX))
        cells = [max(1, round(most * side / max(size))) for side in size]
        small = cv2.resize(picture[top:bottom, left:right], cells, interpolation=cv2.INTER_AREA)
        picture[top:bottom, left:right] = cv2.resize(small, size, interpolation=cv2.INTER_NEAREST)
    return picture
