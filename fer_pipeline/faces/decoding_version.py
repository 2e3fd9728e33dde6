"""The version of decoding: which rows of earlier versions a night labels again although neither bytes nor settings changed."""

import posixpath

from fer_pipeline.faces.shapes import is_extreme

DECODING = 2
"""Raised when unchanged bytes give other pixels, other moments or other views to the detector. Rows without one are of version 1.

2: orientation of PNGs behind the pixels, in raw profiles and XMP; more than 8 bits; the largest page of a TIFF; the best stream
of a video, its clock, mirrored and non-square pixels; tiles of extreme shapes; new codecs.
"""
SAME_SINCE_1 = frozenset("jpg jpeg jpe jfif mpo gif bmp dib webp avif ppm pgm pbm pnm".split())
"""Extensions of images that version 2 decodes as version 1 did, except failed ones and extreme shapes."""


def is_outdated(name: str, is_frame: bool, labelled: bool, size: tuple[int | None, int | None], detect_px: int) -> bool:
    """Return whether this version may label a record of version 1 differently.

    `name`: of the file or member. `size`: its width and height in pixels. `labelled`: whether it did not fail.
    """
    if is_frame or not labelled:
        return True
    width, height = size
    if width and height and is_extreme(width, height, detect_px):
        return True
    return posixpath.splitext(name)[1].lower().lstrip(".") not in SAME_SINCE_1
