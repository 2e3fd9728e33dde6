"""What a file is by its first bytes: one table for plain files and members of containers.

Sources: the Library of Congress' format descriptions, ISO/IEC 14496-12 and its registry of brands (mp4ra.org), PKWARE APPNOTE,
ISO/IEC 13818-1. The packages that were looked at (puremagic, filetype) do not tell the HEIF brands apart.
"""

from dataclasses import dataclass

HEAD_BYTES = 512
"""First bytes of a file that tell its kind: a tar says so at byte 257, a transport stream in three packets."""


@dataclass(frozen=True)
class Kind:
    """A kind of file."""

    name: str
    """As a noun, such as `HEIC image`."""
    format: str | None = None
    """The name of the source format (`archive.formats.FORMATS`) that reads it; None: it is not read."""
    remedy: str = ""
    """What the user can do about a kind that is not read, or only with an extra."""

    @property
    def reason(self) -> str:
        """Why a file of this kind is not read: what it is and, if there is one, the remedy."""
        return f"{self.name}: {self.remedy}" if self.remedy else self.name


CONVERT = "export it as JPEG or PNG"
JPEG, PNG, GIF, BMP, WEBP, TIFF, JPEG_2000, AVIF = (
    Kind(f"{name} image", "image") for name in ("JPEG", "PNG", "GIF", "BMP", "WebP", "TIFF", "JPEG 2000", "AVIF")
)
HEIC, HEIF, JPEG_XL = (Kind(f"{name} image", "image") for name in ("HEIC", "HEIF", "JPEG XL"))
PSD, SVG, EPS, PDF = (
    Kind(name, "image", CONVERT) for name in ("Photoshop document", "SVG drawing", "PostScript document", "PDF document")
)
RAW = Kind("RAW photo", "image", "install the extra `raw` (pip install 'fer-pipeline[raw]'), or export it as JPEG")
MP4, MATROSKA, AVI, ASF, FLV, OGG, MXF, DV = (
    Kind(f"{name} file", "video") for name in ("MP4 or QuickTime", "Matroska", "AVI", "ASF", "Flash", "Ogg", "MXF", "DV")
)
TRANSPORT_STREAM, PROGRAM_STREAM, MPEG_VIDEO = (
    Kind(name, "video") for name in ("MPEG transport stream", "MPEG program stream", "MPEG video")
)
ZIP, TAR, PARQUET = Kind("zip", "zip"), Kind("tar", "tar"), Kind("Parquet file", "parquet")
UNPACK = "unpack it"
COMPRESSED = {
    b"\x1f\x8b": Kind("gzip file", remedy=UNPACK),
    b"BZh": Kind("bzip2 file", remedy=UNPACK),
    b"\xfd7zXZ\x00": Kind("xz file", remedy=UNPACK),
    b"\x28\xb5\x2f\xfd": Kind("zstd file", remedy=UNPACK),
    b"7z\xbc\xaf\x27\x1c": Kind("7z archive", remedy=UNPACK),
    b"Rar!\x1a\x07": Kind("RAR archive", remedy=UNPACK),
}
BEGINNINGS: dict[bytes, Kind] = {
    b"\xff\xd8\xff": JPEG,
    b"\x89PNG\r\n\x1a\n": PNG,
    b"GIF8": GIF,
    b"II*\x00": TIFF,
    b"MM\x00*": TIFF,
    b"II+\x00\x08\x00\x00\x00": TIFF,
    b"MM\x00+\x00\x08\x00\x00": TIFF,
    b"\x00\x00\x00\x0cjP  \r\n\x87\n": JPEG_2000,
    b"\xff\x4f\xff\x51": JPEG_2000,
    b"\x00\x00\x00\x0cJXL \r\n\x87\n": JPEG_XL,
    b"\xff\x0a": JPEG_XL,
    b"8BPS": PSD,
    b"%PDF-": PDF,
    b"%!PS": EPS,
    b"FUJIFILMCCD-RAW": RAW,  # Fujifilm RAF
    b"IIRO": RAW,  # Olympus ORF
    b"IIRS": RAW,
    b"MMOR": RAW,
    b"IIU\x00": RAW,  # Panasonic RW2
    b"\x1a\x45\xdf\xa3": MATROSKA,
    b"\x30\x26\xb2\x75\x8e\x66\xcf\x11": ASF,
    b"FLV\x01": FLV,
    b"OggS": OGG,
    b"\x06\x0e\x2b\x34\x02\x05\x01\x01": MXF,
    b"\x1f\x07\x00\x3f": DV,
    b"\x1f\x07\x00\xbf": DV,
    b"\x00\x00\x01\xba": PROGRAM_STREAM,
    b"\x00\x00\x01\xb3": MPEG_VIDEO,
    b"PK\x03\x04": ZIP,
    b"PK\x05\x06": ZIP,
    b"PAR1": PARQUET,
    b"ARROW1": Kind("Arrow file", "arrow"),
    **COMPRESSED,
}
RIFF = {b"WEBP": WEBP, b"AVI ": AVI, b"WAVE": Kind("WAVE sound")}
BMP_HEADERS = (12, 40, 52, 56, 64, 108, 124)
"""Sizes of the header behind that of the file."""
BOXES = (b"moov", b"mdat", b"wide", b"pnot", b"skip", b"free")
"""With which QuickTime files without a brand begin."""
HEVC_BRANDS = frozenset((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"))
IMAGE_BRANDS = frozenset(
    (b"mif1", b"mif2", b"msf1", b"miaf", b"MiHE", b"MiPr", b"avci", b"avcs", b"jpeg", b"jpgs", b"j2ki", b"unif")
)
"""Of image files whatever their codec, which only the other brands tell."""


def kind_of(head: bytes) -> Kind | None:
    """Return the kind of a file from its first `HEAD_BYTES` bytes, or all that it has; None for what is not in the table."""
    found = next((kind for beginning, kind in BEGINNINGS.items() if head.startswith(beginning)), None)
    if found is TIFF and head[8:10] == b"CR":  # Canon CR2
        return RAW
    if found:
        return found
    if head.startswith(b"RIFF"):
        return RIFF.get(head[8:12])
    if head[4:8] == b"ftyp":
        return _by_brand(head)
    if head[4:8] in BOXES and head[0] == 0 and int.from_bytes(head[:4], "big") != 0:
        return MP4
    if head.startswith(b"BM") and int.from_bytes(head[14:18], "little") in BMP_HEADERS:
        return BMP
    if any(head[first : first + 3 * size : size] == b"GGG" for first, size in ((0, 188), (4, 192), (0, 204))):
        return TRANSPORT_STREAM
    if head[257:262] == b"ustar":
        return TAR
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    return SVG if text.startswith(b"<svg") or (text.startswith((b"<?xml", b"<!--")) and b"<svg" in text) else None


def _by_brand(head: bytes) -> Kind:
    """Return the kind of a file of the ISO base media format by its major brand and those it is compatible with."""
    size = max(16, min(int.from_bytes(head[:4], "big"), len(head)))
    major, brands = head[8:12], {head[8:12], *(head[place : place + 4] for place in range(16, size - 3, 4))}
    if major == b"crx ":  # Canon CR3
        return RAW
    if major == b"jxl ":
        return JPEG_XL
    if major in (b"jp2 ", b"jpx "):
        return JPEG_2000
    if not (major in HEVC_BRANDS or major in IMAGE_BRANDS or major in (b"avif", b"avis")):
        return MP4
    if brands & {b"avif", b"avis"} and major not in HEVC_BRANDS:
        return AVIF
    return HEIC if brands & HEVC_BRANDS else HEIF
