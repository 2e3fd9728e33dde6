"""Decode: bytes to upright pixels. The codec goes by content, and no image over the pixel limit is ever decoded."""

import io
import struct
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from fer_pipeline.core.boundary import as_record_error
from fer_pipeline.core.errors import RecordError
from fer_pipeline.core.isolated import IsolatedProcess, ProcessDiedError, TimedOutError
from fer_pipeline.core.manifest import Record
from fer_pipeline.sources.formats.spec import Frame
from fer_pipeline.stages.fetch import Fetched, fetch

cv2.setNumThreads(1)
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
Image.init()  # every codec, so that `PILLOW_FORMATS` can name them
Image.MAX_IMAGE_PIXELS = None  # the limit below is checked on the header, before any decoding

Pixels = NDArray[np.uint8]

EXIF_ORIENTATION = 274
UPRIGHT = {  # EXIF orientation to what makes it upright: transpose first, then flip (OpenCV's code; None: no flip)
    2: (False, 1),
    3: (False, -1),
    4: (False, 0),
    5: (True, None),
    6: (True, 1),
    7: (True, -1),
    8: (True, 0),
}
REDUCED = {2: cv2.IMREAD_REDUCED_COLOR_2, 4: cv2.IMREAD_REDUCED_COLOR_4, 8: cv2.IMREAD_REDUCED_COLOR_8}
UNSUPPORTED = {b"ftypheic": "HEIC", b"ftypheix": "HEIC", b"ftyphevc": "HEIC", b"ftypmif1": "HEIF"}


PILLOW_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "DIB", "GIF", "TIFF", "JPEG2000", "AVIF", "PPM")
PILLOW_ERRORS = (OSError, ValueError, SyntaxError, EOFError, IndexError, RuntimeError, struct.error)
"""What Pillow's decoders raise on damaged files (NotImplementedError is a RuntimeError)."""


@dataclass(frozen=True)
class Photo:
    """An upright image: BGR uint8 (h, w, 3), perhaps reduced; `width` and `height` are the full size in pixels."""

    pixels: Pixels
    width: int
    height: int

    @property
    def reduction(self) -> float:
        """How many full-size pixels one pixel stands for."""
        return self.width / float(self.pixels.shape[1])


def decode(data: Fetched, max_pixels: int, enough_px: int | None = None) -> Photo:
    """Return the (first frame of the) image, or the frame of a video, upright.

    A JPEG whose long side is at least 2, 4 or 8 times `enough_px` is decoded at that fraction of its size, which costs
    less than decoding and shrinking. Raise RecordError `undecodable`, `unsupported` or `too_large`, or the one that
    stands in place of the data.
    """
    if isinstance(data, RecordError):
        raise data
    if isinstance(data, Frame):
        return _decode_frame(data, max_pixels)
    image = _header(data)
    width, height = image.size
    if width * height > max_pixels:
        raise RecordError("too_large", f"{width} x {height} pixels are more than the limit of {max_pixels}")
    flags = cv2.IMREAD_COLOR
    if enough_px and image.format in ("JPEG", "MPO"):
        factor = max((f for f in (2, 4, 8) if max(width, height) >= f * enough_px), default=1)
        flags = REDUCED.get(factor, flags)
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error:
        pixels = None
    if pixels is None:
        pixels = _decode_slowly(image)
    orientation = _orientation(image)
    transposed, flip = UPRIGHT.get(orientation, (False, None))
    if transposed:
        pixels, width, height = cv2.transpose(pixels), height, width
    if flip is not None:
        pixels = cv2.flip(pixels, flip)
    return Photo(np.ascontiguousarray(pixels, np.uint8), width, height)


def _decode_frame(frame: Frame, max_pixels: int) -> Photo:
    width, height = frame.source.size_px
    if width * height > max_pixels:
        raise RecordError("too_large", f"{width} x {height} pixels are more than the limit of {max_pixels}")
    pixels = frame.source.at(frame.time_ms)
    return Photo(pixels, pixels.shape[1], pixels.shape[0])


def _header(data: bytes) -> Image.Image:
    """Return the image with its header read and no pixel decoded."""
    if not data:
        raise RecordError("undecodable", "the file is empty")
    if data[4:12] in UNSUPPORTED:
        raise RecordError("unsupported", f"{UNSUPPORTED[data[4:12]]} images are not supported; convert them to JPEG first")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return Image.open(io.BytesIO(data), formats=PILLOW_FORMATS)
    except UnidentifiedImageError as error:
        raise RecordError("undecodable", "the content is no image that is known here") from error
    except PILLOW_ERRORS as error:
        raise RecordError("undecodable", f"the image header is damaged: {error}") from error


def _decode_slowly(image: Image.Image) -> Any:
    """Decode with Pillow what OpenCV could not; its message says what is wrong with the file."""
    try:
        return cv2.cvtColor(np.asarray(image.convert("RGB")), cv2.COLOR_RGB2BGR)
    except PILLOW_ERRORS as error:
        raise RecordError("undecodable", str(error)) from error


def _orientation(image: Image.Image) -> int:
    if image.format == "PNG" and "exif" not in image.info:
        return 1  # Pillow would decode the image to look for EXIF behind the pixels
    if image.format == "TIFF":
        return 1  # both libraries turn TIFFs themselves
    try:
        return int(image.getexif().get(EXIF_ORIENTATION, 1))
    except (TypeError, *PILLOW_ERRORS):  # damaged EXIF in an image that decodes
        return 1


def decodes(record: dict[str, Any], max_pixels: int, max_bytes: int) -> Iterator[bool]:
    """Yield whether a record decodes; for `core/isolated.py`, to find out whether a process dies of it."""
    with fetch([Record(**record)], max_bytes) as fetched:
        (data,) = fetched
    try:
        decode(data, max_pixels)
        yield True
    except Exception as error:  # noqa: BLE001 (the boundary around one record)
        as_record_error(error, "undecodable")
        yield False


def survives(process: IsolatedProcess, record: Record, max_pixels: int, max_bytes: int, timeout_s: float) -> RecordError | None:
    """Decode a record in another process; return the error of its row where that process dies of it or never ends."""
    function = f"{decodes.__module__}:{decodes.__name__}"
    try:
        list(process.call(function, asdict(record), max_pixels, max_bytes, timeout_s=timeout_s))
    except ProcessDiedError as error:
        return RecordError("crashed", str(error))
    except TimedOutError as error:
        return RecordError("timed_out", str(error))
    except ValueError:
        return None  # it is refused here as it was there
    return None
