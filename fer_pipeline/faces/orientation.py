"""How an image must be turned and mirrored to be upright."""

import io
import struct
from collections.abc import Iterator

import cv2
from PIL import Image

from fer_pipeline.faces.pixels import PILLOW_ERRORS, Pixels

EXIF_ORIENTATION = 274
TRANSPOSE_AND_FLIP = {  # EXIF orientation: (whether to transpose, then OpenCV's flip code, None for no flip)
    2: (False, 1),
    3: (False, -1),
    4: (False, 0),
    5: (True, None),
    6: (True, 1),
    7: (True, -1),
    8: (True, 0),
}
MOST_METADATA_BYTES = 64 * 1024**2
"""Largest metadata of a PNG that is searched."""


def turned(pixels: Pixels, orientation: int) -> Pixels:
    """Return an image (h, w, 3) of an EXIF orientation upright; (w, h, 3) for orientations from 5 on."""
    transpose, flip = TRANSPOSE_AND_FLIP.get(orientation, (False, None))
    found = cv2.transpose(pixels) if transpose else pixels
    return found if flip is None else cv2.flip(found, flip)  # type: ignore[return-value]


def swaps_sides(orientation: int) -> bool:
    return TRANSPOSE_AND_FLIP.get(orientation, (False, None))[0]


def orientation_of(image: Image.Image, data: bytes) -> int:
    """Return the orientation of an image with the encoded bytes `data`, as EXIF or XMP says it; 1 if neither does.

    The decoders of TIFF and HEIC turn images themselves, so theirs is 1.
    """
    if image.format in ("TIFF", "HEIF"):
        return 1
    try:
        if image.format == "PNG":
            with Image.open(io.BytesIO(_without_pixels(data)), formats=("PNG",)) as metadata:
                exif = Image.Image.getexif(metadata)  # that of PNG files would decode pixels
                return int(exif.get(EXIF_ORIENTATION, 1))
        return int(image.getexif().get(EXIF_ORIENTATION, 1))
    except (TypeError, *PILLOW_ERRORS):  # damaged metadata of an image that decodes
        return 1


def _without_pixels(data: bytes) -> bytes:
    """Return a PNG without pixels: its metadata may stand behind them, where Pillow would look only after decoding."""
    return data[:8] + b"".join(chunk for kind, chunk in _chunks(data) if kind not in (b"IDAT", b"fdAT"))[:MOST_METADATA_BYTES]


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield the type and the bytes of each whole chunk of a PNG."""
    place = 8
    while place + 12 <= len(data):
        (size,) = struct.unpack_from(">I", data, place)
        if place + 12 + size > len(data):
            return
        yield data[place + 4 : place + 8], data[place : place + 12 + size]
        place += 12 + size
