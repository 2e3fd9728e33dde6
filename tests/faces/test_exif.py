"""When and with which camera a picture was taken, from real encoders: of images by Pillow, of videos by FFmpeg."""

import io
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pillow_heif
import pytest
from PIL import Image

from fer_pipeline.archive.capture import UNKNOWN, Capture
from fer_pipeline.archive.formats.spec import Frame
from fer_pipeline.archive.formats.videos import Video
from fer_pipeline.faces.decode import decode
from fer_pipeline.faces.exif import tiff_capture
from fer_pipeline.faces.phash import perceptual_hash
from tests.faces.dng import dng

TAKEN = Capture("2024-05-01T12:30:00+02:00", "Canon EOS R6")
PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 96, 3), np.uint8))


def exif(date: str = "2024:05:01 12:30:00", offset: str | None = "+02:00", tag: int = 36867) -> Image.Exif:
    made = Image.Exif()
    made[271], made[272], made[306] = "Canon", "Canon EOS R6", "2030:01:01 00:00:00"  # 306: when it was edited
    made.get_ifd(34665)[tag] = date
    if offset:
        made.get_ifd(34665)[tag + 14] = offset
    return made


def encoded(kind: str, **options: object) -> bytes:
    out = io.BytesIO()
    PICTURE.save(out, kind, **options)
    return out.getvalue()


def heic(data: Image.Exif) -> bytes:
    out = io.BytesIO()
    pillow_heif.from_pillow(PICTURE).save(out, exif=data.tobytes())
    return out.getvalue()


def tags(data: Image.Exif) -> dict[int, object]:
    """Return EXIF data as Pillow writes them into a TIFF."""
    return {**data, **({34665: dict(data.get_ifd(34665))} if data else {})}


FILES: dict[str, Callable[[Image.Exif], bytes]] = {
    "JPEG": lambda data: encoded("JPEG", exif=data),
    "PNG": lambda data: encoded("PNG", exif=data),
    "WEBP": lambda data: encoded("WEBP", exif=data),
    "AVIF": lambda data: encoded("AVIF", exif=data.tobytes()),
    "TIFF": lambda data: encoded("TIFF", tiffinfo=tags(data)),
    "TIFF with a larger second page": lambda data: encoded(
        "TIFF", tiffinfo=tags(data), save_all=True, append_images=[PICTURE.resize((192, 128))]
    ),
    "HEIC": heic,
}


@pytest.mark.parametrize("make", FILES.values(), ids=list(FILES))
def test_the_capture_of_an_image_is_what_its_file_says(make: Callable[[Image.Exif], bytes]) -> None:
    assert decode(make(exif()), 10**8).capture == TAKEN
    assert decode(make(exif(offset=None)), 10**8).capture.taken_at == "2024-05-01T12:30:00"
    assert decode(make(exif(tag=36868)), 10**8).capture == TAKEN  # scanned
    assert decode(make(exif("0000:00:00 00:00:00")), 10**8).capture == Capture(None, "Canon EOS R6")
    assert decode(make(Image.Exif()), 10**8).capture == UNKNOWN


def test_damaged_metadata_say_nothing() -> None:
    whole = FILES["JPEG"](exif())
    start, size = whole.index(b"Exif\0\0") + 6, len(exif().tobytes()) - 6
    rng, dates = np.random.default_rng(0), set()
    for _ in range(300):
        data = bytearray(whole)
        data[start + int(rng.integers(0, size))] = int(rng.integers(0, 256))
        dates.add(decode(bytes(data), 10**8).capture.taken_at)
    assert None in dates and TAKEN.taken_at in dates


def test_a_raw_photo_says_it_itself() -> None:
    pytest.importorskip("rawpy")
    for magic in (b"II*\0", b"IIRO", b"IIU\0"):
        assert tiff_capture(magic + dng()[4:]) == Capture(None, "Test camera")
    assert decode(dng(), 10**8).capture == Capture(None, "Test camera")


def video(path: Path, metadata: dict[str, str], **options: str) -> Path:
    with av.open(str(path), "w", options=options) as container:
        container.metadata.update(metadata)
        stream = container.add_stream("mpeg4", 10)
        stream.width, stream.height = PICTURE.size
        for _ in range(30):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.asarray(PICTURE), format="rgb24")))
        container.mux(stream.encode())
    return path


@pytest.mark.parametrize(
    ("name", "metadata", "expected"),
    [
        ("x.mp4", {"creation_time": "2024-05-01T12:30:00Z"}, Capture("2024-05-01T12:30:02")),  # UTC, or a camera's local time
        ("x.mp4", {}, UNKNOWN),
        ("x.mkv", {"creation_time": "2024-05-01T12:30:00Z"}, Capture("2024-05-01T12:30:02+00:00")),
        (
            "apple.mov",
            {
                "com.apple.quicktime.creationdate": "2024-05-01T12:30:00+0200",
                "com.apple.quicktime.make": "Apple",
                "com.apple.quicktime.model": "iPhone 15",
                "creation_time": "2024-05-01T10:30:00Z",
            },
            Capture("2024-05-01T12:30:02+02:00", "Apple iPhone 15"),
        ),
        (
            "android.mp4",
            {
                "com.android.version": "14",
                "com.android.manufacturer": "Google",
                "com.android.model": "Pixel 8",
                "creation_time": "2024-05-01T10:30:00Z",
            },
            Capture("2024-05-01T10:30:02+00:00", "Google Pixel 8"),
        ),
    ],
)
def test_the_capture_of_a_frame_is_its_moment(tmp_path: Path, name: str, metadata: dict[str, str], expected: Capture) -> None:
    source = Video(str(video(tmp_path / name, metadata, movflags="use_metadata_tags")))
    try:
        assert decode(Frame(source, 2000), 10**8).capture == expected
    finally:
        source.close()


def test_copies_of_other_size_and_encoding_have_almost_the_same_hash() -> None:
    rng = np.random.default_rng(0)

    def photo() -> Image.Image:
        return Image.fromarray(rng.integers(0, 255, (12, 16, 3), np.uint8)).resize((1600, 1200), Image.Resampling.BICUBIC)

    def bits(data: bytes) -> int:
        return int.from_bytes(perceptual_hash(decode(data, 10**8, 640).pixels))

    first, other = photo(), photo()
    out = io.BytesIO()
    first.resize((577, 433)).save(out, "JPEG", quality=40)
    large = io.BytesIO()
    first.save(large, "PNG")
    another = io.BytesIO()
    other.save(another, "PNG")
    assert (bits(out.getvalue()) ^ bits(large.getvalue())).bit_count() <= 12
    assert (bits(another.getvalue()) ^ bits(large.getvalue())).bit_count() >= 60
