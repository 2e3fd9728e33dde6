"""A file of an archive, what may be selected of it, and what damaged containers raise."""

import lzma
import posixpath
import tarfile
import zipfile
import zlib
from dataclasses import dataclass

import pyarrow as pa

from fer_pipeline.core import storage

CONTAINER_ERRORS = (
    tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, pa.ArrowException, EOFError, ValueError, RuntimeError
)  # fmt: skip
"""What a damaged container raises; zipfile says RuntimeError for an encrypted member, or a method that it does not know."""
MOST_BYTES = 2**62
"""Largest place or size in a container that is believed: offsets are signed 64-bit integers."""
MOST_CHARACTERS = 4096
"""In the name of a member: the longest path of common file systems."""


NOT_REGULAR = "this is not a regular file"
"""The error of a pipe, a socket or a device."""


@dataclass(frozen=True, slots=True)
class File:
    """A file of a listing."""

    uri: str
    size_bytes: int
    etag: str
    """The store's, or the mtime in nanoseconds on a local disk."""
    error: str | None = None
    """Why it cannot be read."""
    hides: bool = False
    """Whether other files may be below it, which cannot be listed: a folder, or a link that leads nowhere now."""
    is_folder: bool = False


@dataclass(frozen=True)
class Selection:
    """Which of an archive's images are records.

    Globs are matched with a record's path below the source; a member's path follows its container's. `*` matches `/` too.
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
    """Time that a container may take to open, or to name its next member."""
    max_members: int = 10_000_000
    """Most records of one container."""


def says_damage(error: BaseException) -> bool:
    """Tell whether an error of reading a container is the container's: of what a damaged one raises, or an OSError of a library.

    gzip, bz2 and Arrow raise OSErrors without a number for what they cannot decode.
    """
    return isinstance(error, (*CONTAINER_ERRORS, MemoryError)) or storage.says_damage(error)


def name_below(source: str, uri: str, member: str | None = None) -> str:
    """Return the path of a file below a source, or its name where it is the source; a member's goes on behind its container's."""
    name = uri.removeprefix(source).lstrip("/") or posixpath.basename(uri)
    return posixpath.join(name, member) if member else name


def valid_text(name: str) -> str:
    """Return a file name as valid Unicode; bytes that are not valid are escaped."""
    return name.encode("utf-8", "backslashreplace").decode()


def require_name(name: str) -> None:
    """Raise ValueError for a name that no member of a container can have: empty, over-long, or with a NUL in it."""
    if not name or len(name) > MOST_CHARACTERS or "\0" in name:
        raise ValueError(f"a member has the impossible name {name[:40]!r}")
