"""Images as plain files: recognised by extension, or by their first bytes where the extension says nothing."""

import posixpath
from collections.abc import Callable, Iterator
from typing import Any

from fer_pipeline.core import storage
from fer_pipeline.core.errors import ChangedError
from fer_pipeline.core.manifest import Record
from fer_pipeline.sources.files import CONTAINER_ERRORS, File, Selection, valid_text
from fer_pipeline.sources.formats.spec import Ranged, ReadRange, SourceFormat

EXTENSIONS = "jpg jpeg jpe jfif png webp bmp dib gif tif tiff mpo jp2 avif heic heif ppm pgm pbm pnm jxl"
TEXT_EXTENSIONS = "txt json jsonl csv tsv xml html htm md yaml yml toml ini log cls py sh ipynb doc docx xls xlsx ppt pptx pdf"
DATA_EXTENSIONS = "npy npz pkl arrow db sqlite mp3 wav flac gz bz2 xz zst 7z rar"
LEFTOVER_EXTENSIONS = "ds_store lock tmp bak exe dll so"
NEVER_IMAGES = frozenset(f"{TEXT_EXTENSIONS} {DATA_EXTENSIONS} {LEFTOVER_EXTENSIONS}".split())
SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF8", b"BM", b"II*\x00", b"MM\x00*", b"RIFF")
PEEK_BYTES = 12


def list_image(file: File, selection: Selection) -> Iterator[Record | str]:
    """Yield the one record of a plain file."""
    uri = valid_text(file.uri)
    error = file.error or (None if uri == file.uri else "the file's name is not valid UTF-8: rename it")
    yield Record(uri, size_bytes=file.size_bytes, etag=file.etag, error=error)


class ImageFile(Ranged):
    """A plain file, read whole."""

    def read(self, record: Record, read_range: ReadRange) -> bytes:
        data = storage.read_bytes(record.uri, record.etag)
        if record.etag and len(data) != record.size_bytes:
            raise ChangedError
        return data


IMAGE = SourceFormat(
    name="image",
    extensions=tuple(f".{extension}" for extension in EXTENSIONS.split()),
    list_records=list_image,
    open=ImageFile,
    is_container=False,
)


def says_image(name: str) -> bool | None:
    """Tell by a file's name whether it is an image; None where the name says nothing."""
    base = posixpath.basename(name).lower()
    if base.startswith("._"):  # what macOS leaves beside a file
        return False
    if base.endswith(IMAGE.extensions):
        return True
    return False if "." in base and base.rpartition(".")[2] in NEVER_IMAGES else None


def is_image(name: str, open_member: Callable[[], Any]) -> bool:
    """Tell whether a member of a container is an image, by its name or, where that says nothing, by its first bytes."""
    said = says_image(name)
    if said is not None:
        return said
    try:
        with open_member() as member:
            return begins_like_image(member.read(PEEK_BYTES))
    except CONTAINER_ERRORS:
        return False


def peek(file: File) -> bool:
    """Tell whether a file whose name says nothing begins like an image, or cannot be read to find out."""
    if file.size_bytes == 0:
        return False
    try:
        return begins_like_image(storage.read_range(file.uri, 0, min(PEEK_BYTES, file.size_bytes)))
    except storage.STORAGE_ERRORS:
        return True  # a record: the attempt to read it says what is wrong


def begins_like_image(head: bytes) -> bool:
    """Tell whether the first `PEEK_BYTES` bytes of a file begin an image."""
    if head.startswith(b"RIFF"):
        return head[8:12] == b"WEBP"
    return head.startswith(SIGNATURES)
