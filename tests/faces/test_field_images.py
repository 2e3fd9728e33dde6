"""Pictures as people have them: phones, scanners, cameras, against what Pillow, libheif and the camera's own JPEG show.

The comments say what commit 04c3eb5 did.
"""

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pillow_heif
import pillow_jxl
import pytest
from PIL import Image, TiffImagePlugin

from fer_pipeline.archive.files import Selection
from fer_pipeline.archive.formats.tiffs import largest, pages_of, single_page
from fer_pipeline.archive.listing import Listing
from fer_pipeline.archive.reader import RecordReader
from fer_pipeline.base.errors import RecordError
from fer_pipeline.faces import codecs
from fer_pipeline.faces.decode import decode
from fer_pipeline.faces.detectors import load_detector, resolve_detector
from fer_pipeline.faces.exif import ORIENTATION
from fer_pipeline.faces.pixels import Pixels, in_8_bits
from tests.faces.dng import dng

LIMIT = 10**8
YUNET_FILE = "face_detection_yunet_2023mar.onnx"
PICTURE: Pixels = np.asarray(cv2.resize(np.random.default_rng(0).integers(0, 255, (6, 9, 3), np.uint8), (144, 96)), np.uint8)
UPRIGHT: dict[int, Callable[[Pixels], Pixels]] = {
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.transpose(1, 0, 2),
    6: lambda x: np.rot90(x, -1),
    7: lambda x: np.rot90(x, 2).transpose(1, 0, 2),
    8: lambda x: np.rot90(x, 1),
}


def image() -> Image.Image:
    return Image.fromarray(PICTURE[:, :, ::-1])


def encoded(format_name: str, picture: Image.Image | None = None, **options: object) -> bytes:
    out = io.BytesIO()
    (picture or image()).save(out, format_name, **options)
    return out.getvalue()


def exif_of(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return exif


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_with(orientation: int, where: str, behind: bool) -> bytes:
    """Return a PNG whose orientation stands in eXIf, in ImageMagick's raw profile or in XMP, before or behind the pixels."""
    tiff = exif_of(orientation).tobytes().removeprefix(b"Exif\0\0")
    profile = b"\nexif\n%8d\n%s\n" % (len(tiff) + 6, (b"Exif\0\0" + tiff).hex().encode())
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="%d"/></x:xmpmeta>' % orientation
    metadata = {
        "eXIf": chunk(b"eXIf", tiff),
        "raw profile": chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(profile)),
        "XMP": chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp),
    }[where]
    data = encoded("PNG")
    place = data.index(b"IEND" if behind else b"IDAT") - 4
    return data[:place] + metadata + data[place:]


def heic(picture: Image.Image, **options: object) -> bytes:
    out = io.BytesIO()
    pillow_heif.from_pillow(picture).save(out, quality=90, **options)
    return out.getvalue()


def difference(data: bytes, expected: Pixels) -> float:
    found = decode(data, LIMIT)
    assert found.pixels.shape == expected.shape == (found.height, found.width, 3)
    return float(np.abs(found.pixels.astype(int) - expected).mean())


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("behind", [False, True])
@pytest.mark.parametrize("where", ["eXIf", "raw profile", "XMP"])
def test_a_png_is_upright_wherever_it_says_how(where: str, behind: bool, orientation: int) -> None:
    """04c3eb5 read eXIf before the pixels alone."""
    assert difference(png_with(orientation, where, behind), UPRIGHT[orientation](PICTURE)) == 0


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("format_name", ["JPEG", "WEBP", "AVIF", "TIFF", "HEIF"])
def test_every_format_is_upright(format_name: str, orientation: int) -> None:
    exif = exif_of(orientation)
    data = {
        "HEIF": lambda: heic(image(), exif=exif.tobytes()),
        "TIFF": lambda: encoded("TIFF", tiffinfo={ORIENTATION: orientation}),
    }.get(format_name, lambda: encoded(format_name, quality=92, exif=exif))()
    assert difference(data, UPRIGHT[orientation](PICTURE)) < 3


@pytest.mark.parametrize("brand", ["heic", "heix", "heim", "heis", "mif1", "mif2", "msf1"])
def test_a_heic_of_every_brand_is_decoded(brand: str) -> None:
    """04c3eb5 refused three of them, and did not know the others."""
    data = heic(image())
    assert difference(data[:8] + brand.encode() + data[12:], PICTURE) < 3


def test_the_primary_image_of_a_burst_is_decoded() -> None:
    burst = pillow_heif.from_pillow(Image.fromarray(255 - PICTURE))
    burst.add_from_pillow(image())
    out = io.BytesIO()
    burst.save(out, quality=90, primary_index=1)
    assert difference(out.getvalue(), PICTURE) < 3


def test_a_heic_of_tiles_of_10_bits_and_with_transparency_is_decoded() -> None:
    large = np.asarray(cv2.resize(PICTURE, (1440, 960)), np.uint8)
    assert difference(heic(Image.fromarray(large[:, :, ::-1]), tile_size=512), large) < 3
    deep, out = pillow_heif.from_bytes("RGB;16", (144, 96), (PICTURE[:, :, ::-1].astype(np.uint16) * 257).tobytes()), io.BytesIO()
    deep.save(out, quality=90)
    assert difference(out.getvalue(), PICTURE) < 3
    assert difference(heic(image().convert("RGBA")), PICTURE) < 3


def test_a_heic_above_the_pixel_limit_is_not_decoded() -> None:
    with pytest.raises(RecordError, match="144 x 96 pixels") as error:
        decode(heic(image()), 1000)
    assert error.value.status == "too_large"


@pytest.mark.parametrize("brand", ["avif", "avis", "mif1", "miaf", "MA1B"])
def test_an_avif_of_every_brand_is_decoded(brand: str) -> None:
    """04c3eb5 called mif1 HEIF, and did not know miaf."""
    data = encoded("AVIF", quality=92)
    assert b"avif" in data[16:40]
    if brand != "MA1B":  # a profile, which is no major brand of an image file
        assert difference(data[:8] + brand.encode() + data[12:], PICTURE) < 3


@pytest.mark.parametrize("size", [(8, 8), (16, 8), (256, 256), (257, 3), (1920, 1080), (3, 2048), (1200, 1000), (4000, 20)])
def test_the_size_of_a_jpeg_xl_is_read_before_it_is_decoded(size: tuple[int, int]) -> None:
    data = encoded("JXL", Image.new("RGB", size))
    assert codecs.jpeg_xl_size(data) == size
    with pytest.raises(RecordError, match="pixels are more than the limit") as error:
        decode(data, size[0] * size[1] - 1)
    assert error.value.status == "too_large"


def test_a_jpeg_xl_is_decoded_also_one_of_a_jpeg_or_in_a_container() -> None:
    """04c3eb5 said that it is no image."""
    assert difference(encoded("JXL", quality=95), PICTURE) < 3
    jpeg = encoded("JPEG", quality=95, exif=exif_of(6))
    rebuilt = pillow_jxl.Encoder(mode="RGB", lossless=True)(  # type: ignore[call-arg]
        jpeg, 144, 96, jpeg_encode=True
    )
    assert difference(bytes(rebuilt), UPRIGHT[6](PICTURE)) < 3
    deep = Image.fromarray(PICTURE[:, :, 0].astype(np.uint16) * 257)
    grey = cv2.cvtColor(PICTURE[:, :, 0], cv2.COLOR_GRAY2BGR)
    assert difference(encoded("JXL", deep, lossless=True), np.asarray(grey, np.uint8)) < 3
    assert difference(encoded("JXL", image().convert("RGBA"), quality=95), PICTURE) < 3


@pytest.mark.parametrize("cut", [1, 2, 20])
@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_that_lacks_its_end_is_labelled_and_marked(cut: int, progressive: bool, shared: Path) -> None:
    picture = Image.open(shared / "data" / "expressions" / "happy.jpg").convert("RGB")
    data = encoded("JPEG", picture, quality=90, progressive=progressive)
    found = decode(data[:-cut], LIMIT)
    assert found.note == codecs.NO_END and decode(data, LIMIT).note is None
    whole = np.asarray(picture)[:, :, ::-1]
    assert np.abs(found.pixels[: -codecs.TORN_ROWS].astype(int) - whole[: -codecs.TORN_ROWS]).mean() < 3


@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_that_lacks_more_is_undecodable(progressive: bool, shared: Path) -> None:
    picture = Image.open(shared / "data" / "expressions" / "happy.jpg").convert("RGB")
    data = encoded("JPEG", picture, quality=90, progressive=progressive)
    for share in (0.1, 0.5, 0.6):
        with pytest.raises(RecordError) as error:
            decode(data[: int(share * len(data))], LIMIT)
        assert error.value.status == "undecodable"


def tiff_of(*pages: tuple[Image.Image, dict[int, int]]) -> bytes:
    out = io.BytesIO()
    with TiffImagePlugin.AppendingTiffWriter(out) as writer:
        for picture, tags in pages:
            picture.save(writer, "TIFF", tiffinfo=tags)
            writer.newFrame()
    return out.getvalue()


def test_the_largest_page_of_a_tiff_is_decoded_never_its_thumbnail() -> None:
    """04c3eb5 labelled the first."""
    small = image().resize((36, 24))
    thumbnail_first = tiff_of((small, {254: 1}), (image(), {}))
    assert difference(thumbnail_first, PICTURE) == 0
    assert difference(tiff_of((small, {}), (image(), {ORIENTATION: 6})), UPRIGHT[6](PICTURE)) == 0
    copy_is_larger = tiff_of((image(), {}), (image().resize((288, 192)), {254: 1}))
    assert difference(copy_is_larger, PICTURE) == 0
    assert difference(encoded("TIFF", big_tiff=True), PICTURE) == 0


def test_a_picture_below_a_page_is_found_and_turned_like_the_page() -> None:
    """A DNG keeps its thumbnail first and the photo below it, which says nothing of its orientation."""
    main = tiff_of((image(), {}))
    data = bytearray(tiff_of((image().resize((36, 24)), {254: 1, ORIENTATION: 6, 330: 0})))
    data += b"\0" * (len(data) % 2)
    base = len(data)
    (directory,) = struct.unpack_from("<I", main, 4)
    moved = bytearray(main)
    (count,) = struct.unpack_from("<H", moved, directory)
    for index in range(count):  # the directory names places in its file
        place = directory + 2 + 12 * index
        tag, kind, number, value = struct.unpack_from("<HHII", moved, place)
        if tag == 273 or number * {1: 1, 2: 1, 3: 2, 4: 4, 5: 8}[kind] > 4:
            struct.pack_into("<I", moved, place + 8, value + base)
    (first,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, first)
    places = [first + 2 + 12 * index for index in range(count)]
    (below,) = [place for place in places if struct.unpack_from("<H", data, place) == (330,)]
    struct.pack_into("<HHII", data, below, 330, 4, 1, base + directory)
    assert difference(bytes(data + moved), UPRIGHT[6](PICTURE)) == 0


def test_each_page_of_a_scan_is_a_record_if_asked_for(tmp_path: Path) -> None:
    blank, path = Image.new("RGB", (144, 96), "white"), tmp_path / "scan.tif"
    path.write_bytes(tiff_of((blank, {}), (image(), {}), (image().resize((36, 24)), {254: 1}), (blank, {})))
    (tmp_path / "one.tif").write_bytes(tiff_of((image(), {})))
    (tmp_path / "broken.tif").write_bytes(b"II*\0 nothing")
    assert [record.member for record in Listing(str(path))] == [None]
    records, reader = list(Listing(str(tmp_path), Selection(pages="all"))), RecordReader()
    names = [(Path(record.uri).name, record.member) for record in records]
    pages = [("scan.tif", f"page {number}") for number in (1, 2, 3)]
    assert names == [("broken.tif", None), ("one.tif", None), *pages]
    some = list(Listing(str(tmp_path), Selection(pages="all", include=("*.tif",), exclude=("one*",))))
    assert [record.member for record in some] == [None, *(member for _, member in pages)], "the globs are for the file"
    again = [reader.read(record) for record in records[2:]]
    assert [reader.read(record) for record in records[2:]] == again
    whites = [float(decode(data, LIMIT).pixels.mean()) for data in again]
    assert (whites[0], whites[2]) == (255, 255) and whites[1] == pytest.approx(PICTURE.mean())
    reader.close()


def test_directories_in_a_circle_or_beyond_the_file_end_the_search() -> None:
    data = bytearray(tiff_of((image(), {}), (image(), {})))
    pages = pages_of(bytes(data))
    struct.pack_into("<I", data, pages[1].end, pages[0].offset)
    assert len(pages_of(bytes(data))) == 2 and largest(pages) == pages[0]
    struct.pack_into("<I", data, pages[1].end, len(data) - 1)
    assert len(pages_of(bytes(data))) == 2 and largest([]) is None
    assert len(single_page(bytes(data), pages[1])) == len(data)


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_few_bits_in_16_are_scaled_to_their_range(bits: int) -> None:
    """04c3eb5 decoded 10 bits in 16 as black."""
    grey = PICTURE[:, :, 1]
    deep = (grey.astype(np.uint32) * ((1 << bits) - 1) // 255).astype(np.uint16)
    deep[0, 0] = (1 << bits) - 1
    expected = np.asarray(cv2.cvtColor(grey, cv2.COLOR_GRAY2BGR), np.uint8)
    for format_name in ("TIFF", "PNG", "JPEG2000"):
        assert difference(encoded(format_name, Image.fromarray(deep)), expected) < 3, format_name


def test_floats_and_32_bits_are_scaled_to_their_range() -> None:
    grey = PICTURE[:, :, 1]
    expected = np.asarray(cv2.cvtColor(grey, cv2.COLOR_GRAY2BGR), np.uint8)
    assert difference(encoded("TIFF", Image.fromarray(grey.astype(np.float32) / 255)), expected) < 3
    assert difference(encoded("TIFF", Image.fromarray(grey.astype(np.int32) * 257)), expected) < 3
    assert in_8_bits(np.array([np.nan, np.inf, 0, 1], np.float32)).tolist() == [0, 0, 0, 255]
    assert in_8_bits(np.array([-5, 0, 70_000], np.int32)).tolist() == [0, 0, 136]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"%PDF-1.7\n", "PDF document: export it as JPEG or PNG"),
        (b"8BPS\0\1" + bytes(30), "Photoshop document"),
        (b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>', "SVG drawing"),
        (b"%!PS-Adobe-3.0 EPSF", "PostScript document"),
    ],
)
def test_what_is_no_photo_is_unsupported_and_named(data: bytes, reason: str) -> None:
    with pytest.raises(RecordError, match=reason) as error:
        decode(data, LIMIT)
    assert error.value.status == "unsupported"


def test_another_kind_of_file_under_the_name_of_an_image_is_named() -> None:
    with pytest.raises(RecordError, match="not an image, but a MP4 or QuickTime file") as error:
        decode(b"\0\0\0\x20ftypisom" + bytes(40), LIMIT)
    assert error.value.status == "undecodable"


def test_a_raw_photo_is_developed() -> None:
    pytest.importorskip("rawpy")
    photo = decode(dng(), LIMIT)
    assert max(photo.width, photo.height) > 400, "the thumbnail was labelled"
    columns = photo.pixels.mean(axis=(0, 2))
    assert columns[-40:].mean() > columns[:40].mean() + 50


def test_a_raw_photo_without_the_extra_is_unsupported_and_never_its_thumbnail(monkeypatch: pytest.MonkeyPatch) -> None:
    """04c3eb5 labelled the thumbnail."""
    monkeypatch.setitem(__import__("sys").modules, "rawpy", None)
    with pytest.raises(RecordError, match=r"RAW photo: install the extra `raw`") as error:
        decode(dng(), LIMIT)
    assert error.value.status == "unsupported"


HAPPY = (260, 37, 141, 196)
"""Box of the face in the picture from which the files of ../shared/data/field are made."""
FIELD = {
    "orient6_exif_after_idat.png", "orient3_rawprofile.png", "orient6_xmp.png",  # sideways, upside down
    "brand_heis.heic", "brand_heim.heic", "brand_msf1.heic", "brand_mif2.heic", "jxl.jxl", "jpeg_no_eoi.jpg",  # undecodable
    "mif1_major.avif", "noext_heic", "noext_avif", "x.heics", "x.avifs",  # unsupported, skipped
    "gray10in16.tif",  # no face
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(FIELD))
def test_a_face_of_the_field_is_where_it_is(name: str, shared: Path) -> None:
    (record,) = Listing(str(shared / "data" / "field" / name))
    photo = decode(RecordReader().read(record), LIMIT)
    detect = load_detector(resolve_detector("yunet", str(shared / "models" / YUNET_FILE)), 640, 0.6)
    faces, expected = detect(photo.pixels), HAPPY
    assert (photo.width, photo.height, len(faces)) == (500, 282, 1)
    if name.startswith("gray"):
        colours = decode((shared / "data" / "field" / "orient6_xmp.png").read_bytes(), LIMIT).pixels
        grey = cv2.cvtColor(cv2.cvtColor(colours, cv2.COLOR_BGR2GRAY), cv2.COLOR_GRAY2BGR)
        expected = detect(np.asarray(grey, np.uint8)).boxes_xywh[0]
    assert np.abs(faces.boxes_xywh[0] - expected).max() < 3


def test_a_dng_of_the_field_is_that_of_its_jpeg(shared: Path) -> None:
    detect = load_detector(resolve_detector("yunet", str(shared / "models" / YUNET_FILE)), 640, 0.6)
    files = [shared / "data" / "field" / f"raw_thumb_group{end}" for end in (".dng", "_reference.jpg")]
    found, expected = (np.sort(detect(decode(file.read_bytes(), LIMIT).pixels).boxes_xywh, 0) for file in files)
    assert len(found) == 4 and np.abs(found - expected).max() < 3


@pytest.mark.parametrize("name", ["panorama8000x1200.jpg", "phonepano6000x1500_face210.jpg"])
def test_the_faces_of_a_panorama_are_found(name: str, shared: Path) -> None:
    """04c3eb5 found none of three and one of three."""
    detect = load_detector(resolve_detector("yunet", str(shared / "models" / YUNET_FILE)), 640, 0.6)
    pixels = decode((shared / "data" / "field" / name).read_bytes(), LIMIT).pixels
    faces = detect(pixels)
    assert len(faces) == 3
    for x, y, w, h in faces.boxes_xywh.round().astype(int).tolist():
        left, top = max(0, x - 200), max(0, y - 200)
        around = pixels[top : y + h + 200, left : x + w + 200]
        a, b, c, d = detect(around).boxes_xywh[0] + (left, top, 0, 0)
        shared_px = max(0, min(a + c, x + w) - max(a, x)) * max(0, min(b + d, y + h) - max(b, y))
        assert shared_px / (c * d + w * h - shared_px) > 0.85
