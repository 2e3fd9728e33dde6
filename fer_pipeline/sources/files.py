"""A file of an archive, and what can be said of it without decoding it."""

import lzma
import tarfile
import zipfile
import zlib
from dataclasses import dataclass
from typing import Any

from fer_pipeline.core import storage
from fer_pipeline.sources.kinds import PEEK_BYTES, kind_of, looks_like_image

DAMAGE = (tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, ValueError, RuntimeError)
"""What a damaged tar or zip raises; zipfile says RuntimeError for an encrypted member, or a method that it does not know."""


@dataclass(frozen=True, slots=True)
class File:
    """A file of a listing. `etag` is the store's, or the mtime in nanoseconds on a local disk."""

    uri: str
    size_bytes: int
    etag: str
    error: str | None = None
    """Why it cannot be read."""


@dataclass(frozen=True)
class Selection:
    """Which of an archive's images are records.

    Globs are held against a record's path below the source, a member's going on behind its container's; `*` matches `/` too.
    """

    include: tuple[str, ...] = ()
    """Where there are any, one of them must match."""
    exclude: tuple[str, ...] = ()
    """None of them may match; a container that one matches is not opened."""
    fps: float | None = None
    """Frames sampled from a second of video; None: videos are no records."""
    image_column: str | None = None
    """The column of Parquet files that holds the images; by default the one its name and type speak for."""
    timeout_s: float = 60.0
    """Time that opening a video may take."""


def valid_text(name: str) -> str:
    """Return a file name as valid Unicode, bytes that are none escaped."""
    return name.encode("utf-8", "backslashreplace").decode()


def is_image(name: str, open_member: Any) -> bool:
    """Tell whether a member is an image, by its name or, where that says nothing, by its first bytes."""
    if kind_of(name) != "unknown":
        return kind_of(name) == "image"
    try:
        with open_member() as member:
            return looks_like_image(member.read(PEEK_BYTES))
    except DAMAGE:
        return False


def peek(file: File) -> bool:
    """Tell whether a file that its name says nothing of begins like an image, or cannot be read to find out."""
    if file.size_bytes == 0:
        return False
    try:
        return looks_like_image(storage.read_range(file.uri, 0, min(PEEK_BYTES, file.size_bytes)))
    except storage.STORAGE_ERRORS:
        return True  # a record: the attempt to read it says what is wrong
