"""What a file is, by its extension; only files with an unknown extension are peeked at."""

import posixpath
from typing import Literal

Kind = Literal["image", "tar", "zip", "parquet", "video", "other", "unknown"]

IMAGES = frozenset("jpg jpeg jpe jfif png webp bmp dib gif tif tiff mpo jp2 avif heic heif ppm pgm pbm pnm jxl".split())
VIDEOS = frozenset("mp4 m4v mov avi mkv webm".split())
TARS = (".tar", ".tar.gz", ".tgz")
TEXTS = "txt json jsonl csv tsv xml html htm md yaml yml toml ini log cls py sh ipynb doc docx xls xlsx ppt pptx pdf"
DATA = "npy npz pkl arrow db sqlite mp3 wav flac gz bz2 xz zst 7z rar"
LEFTOVERS = "ds_store lock tmp bak exe dll so"
OTHERS = frozenset(f"{TEXTS} {DATA} {LEFTOVERS}".split())
SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF8", b"BM", b"II*\x00", b"MM\x00*", b"RIFF")
PEEK_BYTES = 12


def kind_of(name: str) -> Kind:
    """Return what the file called `name` is, as far as its name says."""
    base = posixpath.basename(name).lower()
    extension = base.rpartition(".")[2] if "." in base else ""
    if base.startswith("._"):  # what macOS leaves beside a file
        return "other"
    if base.endswith(TARS):
        return "tar"
    if extension == "zip":
        return "zip"
    if extension == "parquet":
        return "parquet"
    if extension in VIDEOS:
        return "video"
    if extension in IMAGES:
        return "image"
    return "other" if extension in OTHERS else "unknown"


def looks_like_image(head: bytes) -> bool:
    """Tell whether the first `PEEK_BYTES` bytes of a file begin an image."""
    if head.startswith(b"RIFF"):
        return head[8:12] == b"WEBP"
    return head.startswith(SIGNATURES)
