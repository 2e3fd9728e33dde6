"""The files of an archive, the selection of records, and the errors of damaged containers."""

import lzma
import posixpath
import tarfile
import zipfile
import zlib
from dataclasses import dataclass
from typing import Literal

import pyarrow as pa
from backports import zstd

from fer_pipeline.base import storage

CONTAINER_ERRORS = (
    tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, zstd.ZstdError, pa.ArrowException, EOFError, ValueError,
    RuntimeError,
)  # fmt: skip
"""The errors of a damaged container. zipfile raises RuntimeError for an encrypted member or an unknown method."""
MOST_BYTES = 2**62
"""Largest plausible offset or size in a container: offsets are signed 64-bit integers."""
NOT_REGULAR = "this is not a regular file"
"""The error text for a pipe, a socket or a device."""


LINK = "link to a folder that is listed"
"""The error text for a link that is not followed, because what it leads to is listed under another name."""


Pages = Literal["largest", "all"]


@dataclass(frozen=True, slots=True)
class File:
    """A listed file."""

    uri: str
    size_bytes: int
    etag: str
    """The etag of the store, or the mtime in nanoseconds on a local disk."""
    error: str | None = None
    """Why the file cannot be read."""
    hides: bool = False
    """Whether files below it may be missing from the listing: it is an unreadable folder or a broken link."""
    is_folder: bool = False


@dataclass(frozen=True)
class Selection:
    """Selects the images of an archive that become records.

    Globs match the path of a record below the source; the path of a member follows that of its container. `*` matches `/` too.
    """

    include: tuple[str, ...] = ()
    """If there are any, one of them must match."""
    exclude: tuple[str, ...] = ()
    """None of them may match. A matching container is not opened."""
    fps: float | None = None
    """Frames sampled per second of video; None: videos are skipped."""
    image_column: str | None = None
    """The column of Parquet files that holds the images; by default chosen by name and type."""
    timeout_s: float = 60.0
    """Time limit to open a container, and to list each next member."""
    pages: Pages = "largest"
    """Pages of a TIFF that become records."""
    max_members: int = 10_000_000
    """Largest number of entries in one container."""
    zip_encoding: str | None = None
    """Code page of member names in zips that do not say that they are UTF-8; None: UTF-8 where they are valid, else 437."""
    unopened: tuple[str, ...] = ()
    """Names of members that are not opened to be listed: a process died of them, or hung."""


def says_damage(error: BaseException) -> bool:
    """Return whether an error means that the container is damaged, and not that its storage failed.

    gzip, bz2 and Arrow raise an OSError without a number for damaged data.
    """
    return isinstance(error, (*CONTAINER_ERRORS, MemoryError)) or storage.says_damage(error)


def name_below(source: str, uri: str, member: str | None = None) -> str:
    """Return the path of a file below a source, or its name if it is the source. The path of a member follows its container's."""
    name = uri.removeprefix(source).lstrip("/") or posixpath.basename(uri)
    return posixpath.join(name, member) if member else name


def inner_path(name: str) -> str:
    """Return a path without the parts that lead elsewhere: empty ones, `.` and `..`."""
    return "/".join(part for part in name.split("/") if part not in ("", ".", "..")) or "unnamed"


def with_ending(name: str, mark: str, *endings: str) -> str:
    """Return the name of a file's copy in another format: with one of some endings, or else with `.MARK` and the first of them.

    Different names stay different: one that has the mark already gets it again.
    """
    lower = name.lower()
    is_fit = lower.endswith(endings) and not lower.endswith(tuple(f".{mark}{ending}" for ending in endings))
    return name if is_fit else f"{name}.{mark}{endings[0]}"


def valid_text(name: str) -> str:
    """Return a file name as valid Unicode; invalid bytes are escaped."""
    return name.encode("utf-8", "backslashreplace").decode()


def require_name(name: str) -> None:
    """Raise ValueError for an impossible member name: empty, with a NUL, or longer than the paths of common file systems."""
    if not name or len(name) > 4096 or "\0" in name:
        raise ValueError(f"a member has the impossible name {name[:40]!r}")
