"""Codecs beside those of OpenCV and Pillow: HEIF, JPEG XL, RAW, and JPEGs that lack their end."""

import io
from typing import Any

import numpy as np
from PIL import Image

from fer_pipeline.archive import signatures
from fer_pipeline.base.errors import RecordError
from fer_pipeline.faces.orientation import turned
from fer_pipeline.faces.pixels import PILLOW_ERRORS, Pixels, as_bgr

HEIF_BRANDS = signatures.HEVC_BRANDS | {b"mif1", b"msf1"}
"""Major brands that libheif takes for an image; files of the others say in their compatible brands that they are one."""
LIBRAW_FLIPS = {3: 3, 5: 8, 6: 6}
"""LibRaw's flip as EXIF orientation."""
ENOUGH_PREVIEW_PX = 1000
"""A preview in a RAW photo with a long side of at least this is labelled instead of the sensor's data."""
TORN_ROWS = 32
"""Most rows that a JPEG may lack at its end: two rows of blocks."""
PROGRESSIVE, SCAN = (0xC2, 0xC6, 0xCA, 0xCE), 0xDA
"""Markers of a JPEG: of a progressive frame, and of a scan."""
NO_END = "the file breaks off at its end"
"""The note of a JPEG that lacks its end."""


def with_brand(data: bytes, kind: signatures.Kind) -> bytes:
    """Return an AVIF or HEIF file under a major brand that its decoder accepts."""
    if kind is signatures.AVIF and data[8:12] != b"avif" and not (data[8:12] == b"avis" and b"avif" not in data[16:64]):
        return data[:8] + b"avif" + data[12:]
    if kind in (signatures.HEIC, signatures.HEIF) and data[8:12] not in HEIF_BRANDS:
        return data[:8] + b"mif1" + data[12:]
    return data


def register_heif() -> None:
    """Make Pillow open HEIF: the primary image, which libheif turns upright and Pillow shows in 8 bits."""
    import pi_heif

    pi_heif.options.DECODE_THREADS = 1
    pi_heif.register_heif_opener(thumbnails=False, depth_images=False, aux_images=False)


def jpeg_xl_size(data: bytes) -> tuple[int, int]:
    """Return width and height in pixels as the header of a JPEG XL file says (ISO/IEC 18181-1, SizeHeader).

    Raise RecordError `undecodable` if there is no header.
    """
    bits = _Bits(_codestream(data)[2:40])
    small = bits.take(1)
    height = 8 * (bits.take(5) + 1) if small else _long(bits)
    ratio = bits.take(3)
    if ratio:
        by, to = ((1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))[ratio - 1]
        return height * by // to, height
    return (8 * (bits.take(5) + 1) if small else _long(bits)), height


class _Bits:
    """Bits of bytes, the lowest first."""

    def __init__(self, data: bytes) -> None:
        self.left = int.from_bytes(data, "little")

    def take(self, count: int) -> int:
        found, self.left = self.left & ((1 << count) - 1), self.left >> count
        return found


def _long(bits: _Bits) -> int:
    return 1 + bits.take((9, 13, 18, 30)[bits.take(2)])


def _codestream(data: bytes) -> bytes:
    """Return the codestream of a JPEG XL file, or its first part, from its box."""
    if data.startswith(b"\xff\x0a"):
        return data
    place = 0
    while place + 8 <= len(data):
        size, kind = int.from_bytes(data[place : place + 4], "big"), data[place + 4 : place + 8]
        start = place + 8
        if size == 1:
            size, start = int.from_bytes(data[start : start + 8], "big"), start + 8
        if kind in (b"jxlc", b"jxlp"):
            return data[start + (4 if kind == b"jxlp" else 0) :]
        if size < 8:
            break
        place += size
    raise RecordError("undecodable", "the JPEG XL file holds no image")


def decode_jpeg_xl(data: bytes) -> bytes | Pixels:
    """Return the upright pixels of a JPEG XL image, or the JPEG that it was made from."""
    try:
        from pillow_jxl import Decoder
    except ImportError as error:  # no wheel for this platform
        raise RecordError("unsupported", f"JPEG XL needs pillow-jxl-plugin: {signatures.CONVERT}") from error
    try:
        is_jpeg, info, decoded, _, _ = Decoder(num_threads=0)(data)
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise RecordError("undecodable", f"the JPEG XL image is damaged: {error}") from error
    if is_jpeg:
        return bytes(decoded)
    kinds: dict[str, Any] = {"I;16": np.uint16, "F": np.float32, "F;16": np.float16}
    pixels = np.frombuffer(decoded, kinds.get(info.mode, np.uint8)).reshape(info.height, info.width, -1)
    return as_bgr(pixels if pixels.shape[2] > 2 else pixels[:, :, 0])


def decode_raw(data: bytes, max_pixels: int) -> bytes | Pixels:
    """Return the upright pixels of a RAW photo, or its largest preview as a JPEG if that is large. Needs the extra `raw`."""
    try:
        import rawpy
    except ImportError as error:
        raise RecordError("unsupported", signatures.RAW.reason) from error
    try:
        with rawpy.imread(io.BytesIO(data)) as raw:
            sizes = raw.sizes
            if sizes.raw_width * sizes.raw_height > max_pixels:
                size = f"{sizes.raw_width} x {sizes.raw_height}"
                raise RecordError("too_large", f"{size} pixels are more than the limit of {max_pixels}")
            preview = _preview(rawpy, raw)
            if preview is not None:
                return preview
            return as_bgr(raw.postprocess(use_camera_wb=True, output_bps=8))
    except rawpy.LibRawError as error:
        raise RecordError("undecodable", f"the RAW photo cannot be read: {error}") from error


def _preview(rawpy: Any, raw: Any) -> bytes | Pixels | None:
    """Return the largest preview of a RAW photo; None if it has none that is large."""
    try:
        found = raw.extract_thumb()
    except rawpy.LibRawError:
        return None
    if found.format == rawpy.ThumbFormat.BITMAP:
        return turned(as_bgr(found.data), LIBRAW_FLIPS.get(raw.sizes.flip, 1)) if _is_enough(found.data.shape[:2]) else None
    try:
        with Image.open(io.BytesIO(found.data), formats=("JPEG",)) as image:
            return bytes(found.data) if _is_enough(image.size) else None
    except PILLOW_ERRORS:
        return None


def _is_enough(size: tuple[int, ...]) -> bool:
    return max(size) >= ENOUGH_PREVIEW_PX


def decode_torn_jpeg(data: bytes) -> Pixels | None:
    """Return the pixels of a JPEG that lacks only its end; None if more is missing, or anything else is wrong.

    The decoder of a sequential JPEG leaves rows that it has not reached black. A progressive one must have begun the last scan of
    its brightness, so that only its finest details are missing.
    """
    markers = _markers(data)
    progressive = next((segment for marker, segment in markers if marker in PROGRESSIVE), None)
    if progressive is not None:
        if not _has_last_scan(markers, progressive[6:7]):
            return None
        data = data + b"\xff\xd9"
    with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
        try:
            image.load()
        except PILLOW_ERRORS as error:
            if "truncated" not in str(error):
                return None
            image.tile = []  # what is left to decode: nothing
        if image.mode not in ("L", "RGB"):
            return None
        pixels = np.asarray(image)
    rows = np.flatnonzero(pixels.reshape(len(pixels), -1).any(axis=1))
    missing = len(pixels) - 1 - (rows[-1] if len(rows) else -1)
    return as_bgr(pixels) if missing <= min(TORN_ROWS, len(pixels) // 4) else None


def _markers(data: bytes) -> list[tuple[int, bytes]]:
    """Return the markers of a JPEG up to its end, each with its segment."""
    found, place = list[tuple[int, bytes]](), 2
    while (place := data.find(b"\xff", place)) >= 0 and place + 4 <= len(data):
        marker = data[place + 1]
        if marker in (0x00, 0x01, 0xFF) or 0xD0 <= marker <= 0xD9:  # stuffed bytes, restarts, markers without a segment
            place += 1 if marker == 0xFF else 2
            continue
        size = int.from_bytes(data[place + 2 : place + 4], "big")
        found.append((marker, data[place + 4 : place + 2 + size]))
        place += 2 + size
    return found


def _has_last_scan(markers: list[tuple[int, bytes]], component: bytes) -> bool:
    """Tell whether a progressive JPEG has begun the scan with the last bits of a component's details."""
    scans = [segment for marker, segment in markers if marker == SCAN and len(segment) >= 6]
    return any(scan[:1] == b"\1" and scan[1:2] == component and scan[4] == 63 and not scan[5] & 15 for scan in scans)
