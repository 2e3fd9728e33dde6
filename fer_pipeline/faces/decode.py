"""Decode: bytes to upright pixels. The content decides the codec, and an image over the pixel limit is never decoded."""

import io
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

from fer_pipeline.archive import signatures
from fer_pipeline.archive.capture import UNKNOWN, Capture
from fer_pipeline.archive.fetch import Fetched, fetch
from fer_pipeline.archive.formats import tiffs
from fer_pipeline.archive.formats.images import IMAGE
from fer_pipeline.archive.formats.spec import Frame
from fer_pipeline.archive.record import Record
from fer_pipeline.archive.signatures import HEAD_BYTES, kind_of
from fer_pipeline.base.boundary import as_record_error
from fer_pipeline.base.errors import RecordError
from fer_pipeline.base.isolated import IsolatedProcess, ProcessDiedError, TimedOutError
from fer_pipeline.faces import codecs
from fer_pipeline.faces.exif import metadata_of, tiff_capture
from fer_pipeline.faces.orientation import swaps_sides, turned
from fer_pipeline.faces.pixels import PILLOW_ERRORS, Pixels, as_bgr, in_8_bits
from fer_pipeline.faces.shapes import seen_px

cv2.setNumThreads(1)
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
codecs.register_heif()
Image.init()  # register all codecs, so that `PILLOW_FORMATS` can name any of them
Image.MAX_IMAGE_PIXELS = None  # `decode` checks its limit on the header, before decoding

PILLOW_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "DIB", "GIF", "TIFF", "JPEG2000", "AVIF", "PPM", "HEIF")
DEEP = ("PNG", "TIFF", "JPEG2000")
"""Formats that OpenCV reads with more than 8 bits if it is told to."""


@dataclass(frozen=True)
class Photo:
    """An upright image: BGR uint8 (h, w, 3), possibly reduced. `width` and `height` are the full size in pixels."""

    pixels: Pixels
    width: int
    height: int
    note: str | None = None
    """What is wrong with a file that is decoded all the same."""
    capture: Capture = UNKNOWN

    @property
    def reduction(self) -> float:
        """Full size over reduced size, along one side."""
        return self.width / float(self.pixels.shape[1])


def decode(data: Fetched, max_pixels: int, enough_px: int | None = None) -> Photo:
    """Return the upright image (the first frame of an animation, the largest page of a TIFF) or frame of a video.

    A JPEG of which detection sees less than 2, 4 or 8 times `enough_px` is decoded at that fraction of its size, which costs
    less than decoding and shrinking. Raise RecordError `undecodable`, `unsupported` or `too_large`. If `data` is a RecordError,
    raise it.
    """
    if isinstance(data, RecordError):
        raise data
    if isinstance(data, Frame):
        return _decode_frame(data, max_pixels)
    if not data:
        raise RecordError("undecodable", "the file is empty")
    kind = kind_of(data[:HEAD_BYTES])
    if kind and kind.format != IMAGE.name:
        raise RecordError("undecodable", f"the content is not an image, but a {kind.name}")
    if kind is signatures.JPEG_XL:
        _require_pixels(codecs.jpeg_xl_size(data), max_pixels)
        return _decoded(codecs.decode_jpeg_xl(data), max_pixels, enough_px)
    if kind is signatures.RAW:
        return _decode_raw(data, max_pixels, enough_px)
    if kind is signatures.TIFF:
        return _decode_tiff(data, max_pixels, enough_px)
    if kind and kind.remedy:
        raise RecordError("unsupported", kind.reason)
    return _decode_image(codecs.with_brand(data, kind) if kind else data, max_pixels, enough_px)


def _require_pixels(size: tuple[int, int], max_pixels: int) -> None:
    width, height = size
    if width * height > max_pixels:
        raise RecordError("too_large", f"{width} x {height} pixels are more than the limit of {max_pixels}")


def _decoded(found: bytes | Pixels, max_pixels: int, enough_px: int | None) -> Photo:
    """Return the photo that a codec gave as pixels or as a JPEG."""
    if isinstance(found, bytes):
        return decode(found, max_pixels, enough_px)
    _require_pixels((found.shape[1], found.shape[0]), max_pixels)
    return Photo(found, found.shape[1], found.shape[0])


def _decode_frame(frame: Frame, max_pixels: int) -> Photo:
    _require_pixels(frame.source.size_px, max_pixels)
    pixels = frame.source.at(frame.time_ms)
    _require_pixels((pixels.shape[1], pixels.shape[0]), max_pixels)  # a picture may grow in the middle
    return Photo(pixels, pixels.shape[1], pixels.shape[0], capture=frame.source.capture.after(frame.time_ms))


def _decode_raw(data: bytes, max_pixels: int, enough_px: int | None) -> Photo:
    """Decode a RAW photo. Its own EXIF data say more than those of the preview in it."""
    photo = _decoded(codecs.decode_raw(data, max_pixels), max_pixels, enough_px)
    own, its = tiff_capture(data), photo.capture
    return replace(photo, capture=Capture(own.taken_at or its.taken_at, own.camera or its.camera))


def _decode_tiff(data: bytes, max_pixels: int, enough_px: int | None) -> Photo:
    """Decode the largest page of a TIFF; a RAW photo is a TIFF with the data of a sensor."""
    pages = tiffs.pages_of(data)
    if any(page.is_sensor_data for page in pages):
        return _decode_raw(data, max_pixels, enough_px)
    page = tiffs.largest(pages)
    if page is None or page is pages[0]:
        return _decode_image(data, max_pixels, enough_px)
    photo = _decode_image(tiffs.single_page(data, page), max_pixels, enough_px)
    pixels = turned(photo.pixels, page.inherited_orientation)
    capture = tiff_capture(data)  # of the whole file
    return Photo(np.ascontiguousarray(pixels), pixels.shape[1], pixels.shape[0], photo.note, capture)


def _decode_image(data: bytes, max_pixels: int, enough_px: int | None) -> Photo:
    """Decode an image of one of `PILLOW_FORMATS`."""
    image = _header(data)
    width, height = image.size
    _require_pixels(image.size, max_pixels)
    orientation, capture = metadata_of(image, data)
    pixels, note = _pixels(image, data, enough_px), None
    if pixels is None:
        pixels, note = _decode_with_pillow(image, data)
    if swaps_sides(orientation):
        width, height = height, width
    return Photo(np.ascontiguousarray(turned(pixels, orientation)), width, height, note, capture)


def _pixels(image: Image.Image, data: bytes, enough_px: int | None) -> Pixels | None:
    """Decode an image with OpenCV; None if that cannot."""
    flags = cv2.IMREAD_COLOR
    if enough_px and image.format in ("JPEG", "MPO"):
        side = seen_px(*image.size, enough_px)
        factor = max((f for f in (2, 4, 8) if side >= f * enough_px), default=1)
        flags = {2: cv2.IMREAD_REDUCED_COLOR_2, 4: cv2.IMREAD_REDUCED_COLOR_4, 8: cv2.IMREAD_REDUCED_COLOR_8}.get(factor, flags)
    if image.format in DEEP:
        flags |= cv2.IMREAD_ANYDEPTH
    try:
        pixels: Any = cv2.imdecode(np.frombuffer(data, np.uint8), flags | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error:
        return None
    return None if pixels is None else in_8_bits(pixels)


def _header(data: bytes) -> Image.Image:
    """Return the image with its header read but no pixels decoded."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return Image.open(io.BytesIO(data), formats=PILLOW_FORMATS)
    except UnidentifiedImageError as error:
        raise RecordError("undecodable", "the content is not an image of a supported format") from error
    except PILLOW_ERRORS as error:
        raise RecordError("undecodable", f"the image header is damaged: {error}") from error


def _decode_with_pillow(image: Image.Image, data: bytes) -> tuple[Pixels, str | None]:
    """Decode an image that OpenCV cannot decode; Pillow's message says what is wrong with a file. Return a note, too."""
    try:
        is_deep = image.mode.startswith(("I", "F"))
        return as_bgr(np.asarray(image if is_deep else image.convert("RGB"))), None
    except PILLOW_ERRORS as error:
        if image.format in ("JPEG", "MPO") and (torn := codecs.decode_torn_jpeg(data)) is not None:
            return torn, codecs.NO_END
        raise RecordError("undecodable", str(error)) from error


def decodes(record: dict[str, Any], max_pixels: int, max_bytes: int) -> Iterator[bool]:
    """Yield whether a record decodes. It runs in an isolated process, which the record may kill."""
    with fetch([Record(**record)], max_bytes) as fetched:
        (data,) = fetched
    try:
        decode(data, max_pixels)
        yield True
    except Exception as error:  # noqa: BLE001 (the boundary around one record)
        as_record_error(error, "undecodable")
        yield False


def survives(process: IsolatedProcess, record: Record, max_pixels: int, max_bytes: int, timeout_s: float) -> RecordError | None:
    """Decode a record in another process. Return a RecordError if that process dies or times out, else None."""
    function = f"{decodes.__module__}:{decodes.__name__}"
    try:
        list(process.call(function, asdict(record), max_pixels, max_bytes, timeout_s=timeout_s))
    except ProcessDiedError as error:
        return RecordError("crashed", str(error))
    except TimedOutError as error:
        return RecordError("timed_out", str(error))
    except ValueError:
        return None  # the caller raises the same error when it decodes the record
    return None
