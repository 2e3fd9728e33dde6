"""What the EXIF data of an image say: its orientation, and when and with which camera it was taken."""

import io
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from PIL import Image

from fer_pipeline.archive.capture import UNKNOWN, Capture, camera_name, local_time
from fer_pipeline.faces.pixels import PILLOW_ERRORS

ORIENTATION, MAKE, MODEL, DETAILS = 274, 271, 272, 34665
TAKEN, SCANNED, TAKEN_OFFSET, SCANNED_OFFSET = 36867, 36868, 36881, 36882
"""DateTimeOriginal, DateTimeDigitized and their offsets; DateTime (306) is when the file was changed."""
DAMAGED = (ArithmeticError, TypeError, KeyError, AttributeError, *PILLOW_ERRORS)
"""Errors that Pillow raises on damaged EXIF data."""
TIFF_MAGIC = {b"II": b"II*\0", b"MM": b"MM\0*"}
MOST_METADATA_BYTES = 64 * 1024**2
"""Largest metadata of a PNG that is searched."""


def metadata_of(image: Image.Image, data: bytes) -> tuple[int, Capture]:
    """Return the orientation of an image with the encoded bytes `data`, and its capture, as EXIF or XMP say them.

    The orientation is 1 if neither says one. It is 1 for TIFF and HEIC, because their decoders turn images themselves.
    """
    orientation, capture = 1, UNKNOWN
    with _damage_ignored():
        exif = _exif_of(image, data)
        if image.format not in ("TIFF", "HEIF"):
            orientation = int(exif.get(ORIENTATION, 1))
        capture = _capture(exif)
    return orientation, capture


def tiff_capture(data: bytes) -> Capture:
    """Return the capture of a TIFF or of a RAW photo that is built like one; `UNKNOWN` for any other file.

    RAW photos replace the number in the header of a TIFF by their own.
    """
    exif, magic = Image.Exif(), TIFF_MAGIC.get(data[:2])
    with _damage_ignored():
        if magic:
            exif.load(data if data.startswith(magic) else magic + data[4:])
            return _capture(exif)
    return UNKNOWN


@contextmanager
def _damage_ignored() -> Iterator[None]:
    """End silently where EXIF data are damaged."""
    with suppress(*DAMAGED), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _exif_of(image: Image.Image, data: bytes) -> Image.Exif:
    if image.format != "PNG":
        return image.getexif()
    with Image.open(io.BytesIO(_without_pixels(data)), formats=("PNG",)) as metadata:
        return Image.Image.getexif(metadata)  # that of PNG files would decode pixels


def _capture(exif: Image.Exif) -> Capture:
    details = exif.get_ifd(DETAILS)
    taken = local_time(details.get(TAKEN), details.get(TAKEN_OFFSET))
    scanned = local_time(details.get(SCANNED), details.get(SCANNED_OFFSET))
    return Capture(taken or scanned, camera_name(exif.get(MAKE), exif.get(MODEL)))


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
