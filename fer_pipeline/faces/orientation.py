"""Turn and mirror an image as its EXIF orientation says."""

import cv2

from fer_pipeline.faces.pixels import Pixels

TRANSPOSE_AND_FLIP = {  # EXIF orientation: (whether to transpose, then OpenCV's flip code, None for no flip)
    2: (False, 1),
    3: (False, -1),
    4: (False, 0),
    5: (True, None),
    6: (True, 1),
    7: (True, -1),
    8: (True, 0),
}


def turned(pixels: Pixels, orientation: int) -> Pixels:
    """Return an image (h, w, 3) of an EXIF orientation upright; (w, h, 3) for orientations from 5 on."""
    transpose, flip = TRANSPOSE_AND_FLIP.get(orientation, (False, None))
    found = cv2.transpose(pixels) if transpose else pixels
    return found if flip is None else cv2.flip(found, flip)  # type: ignore[return-value]


def swaps_sides(orientation: int) -> bool:
    return TRANSPOSE_AND_FLIP.get(orientation, (False, None))[0]
