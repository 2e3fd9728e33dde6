"""Tars and zips: which images are inside, and how to read one of them.

A member is addressed by where it stands, not by its name, which another member may bear too: `offset` is where its bytes
begin in a tar (in the decompressed stream of a compressed one), and where its header begins in a zip.
"""

import contextlib
import lzma
import shutil
import tarfile
import tempfile
import threading
import zipfile
import zlib
from collections.abc import Iterator
from typing import IO, Any

from fer_pipeline.core import storage
from fer_pipeline.core.errors import RecordError
from fer_pipeline.core.manifest import Record
from fer_pipeline.sources.kinds import PEEK_BYTES, kind_of, looks_like_image

DAMAGE = (tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, ValueError, RuntimeError)
"""What a damaged or encrypted container raises (zipfile says RuntimeError or NotImplementedError for what it cannot do)."""
BROKEN = (*DAMAGE, *storage.STORAGE_ERRORS)
COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ")


def valid_text(name: str) -> str:
    """Return a file name as valid Unicode, bytes that are none escaped."""
    return name.encode("utf-8", "backslashreplace").decode()


def list_members(uri: str, size_bytes: int, etag: str) -> Iterator[Record | str]:
    """Yield a record for each image inside a container, the name of each member that is none.

    A container that breaks off yields one record for itself, with the error.
    """
    fs, path = storage.open_filesystem(uri)
    listing = _list_tar if kind_of(uri) == "tar" else _list_zip
    try:
        with fs.open(path, "rb") as file:
            yield from listing(file, uri, etag)
    except BROKEN as error:
        yield Record(uri, size_bytes=size_bytes, etag=etag, error=f"the container cannot be read: {error}")


def _list_tar(file: IO[bytes], uri: str, etag: str) -> Iterator[Record | str]:
    with tarfile.open(fileobj=file) as tar:
        for info in tar:
            if info.isdir():
                continue
            target = _target(tar, info)
            if target and _is_image(info.name, lambda target=target: tar.extractfile(target)):
                yield Record(uri, valid_text(info.name), offset=target.offset_data, size_bytes=target.size, etag=etag)
            else:
                yield info.name


def _target(tar: tarfile.TarFile, info: tarfile.TarInfo) -> tarfile.TarInfo | None:
    """Return the member that holds the bytes: a hard link's is another one; None for what is no plain file."""
    if info.islnk():
        try:
            info = tar.getmember(info.linkname)
        except KeyError:
            return None
    return info if info.isfile() and not info.issparse() else None


def _list_zip(file: IO[bytes], uri: str, etag: str) -> Iterator[Record | str]:
    with zipfile.ZipFile(file) as archive:
        for info in archive.infolist():
            if info.is_dir():
                continue
            if _is_image(info.filename, lambda info=info: archive.open(info)):
                name = valid_text(info.filename)
                yield Record(uri, name, offset=info.header_offset, size_bytes=info.file_size, etag=etag)
            else:
                yield info.filename


def _is_image(name: str, open_member: Any) -> bool:
    """Tell whether a member is an image, by its name or, where that says nothing, by its first bytes."""
    if kind_of(name) != "unknown":
        return kind_of(name) == "image"
    try:
        with open_member() as member:
            return looks_like_image(member.read(PEEK_BYTES))
    except DAMAGE:
        return False


class Reader:
    """Reads records' bytes; containers stay open until it is closed. Safe to call from several threads."""

    def __init__(self) -> None:
        self._zips: dict[str, tuple[zipfile.ZipFile, dict[int, zipfile.ZipInfo]]] = {}
        self._unpacked: dict[str, IO[bytes] | None] = {}
        self._lock = threading.Lock()

    def read(self, record: Record) -> bytes:
        """Return the encoded image; raise RecordError `unreadable` where it cannot be had."""
        if record.error:
            raise RecordError("unreadable", record.error)
        try:
            data = _read_file(record.uri) if record.offset is None else self._read_member(record, record.offset)
        except BROKEN as error:
            raise RecordError("unreadable", f"{type(error).__name__}: {error}") from error
        if record.member is not None and len(data) != record.size_bytes:
            raise RecordError("unreadable", f"the container holds {len(data)} of the member's {record.size_bytes} bytes")
        return data

    def _read_member(self, record: Record, offset: int) -> bytes:
        size = record.size_bytes or 0
        if kind_of(record.uri) == "zip":
            with self._lock:
                archive, members = self._zips.get(record.uri) or self._open_zip(record.uri)
                return archive.read(members[offset]) if offset in members else b""
        with self._lock:
            if record.uri not in self._unpacked:
                self._unpacked[record.uri] = _unpack(record.uri)
            unpacked = self._unpacked[record.uri]
            if unpacked:
                unpacked.seek(offset)
                return unpacked.read(size)
        return _read_range(record.uri, offset, size)

    def _open_zip(self, uri: str) -> tuple[zipfile.ZipFile, dict[int, zipfile.ZipInfo]]:
        fs, path = storage.open_filesystem(uri)
        archive = zipfile.ZipFile(fs.open(path, "rb"))
        self._zips[uri] = archive, {info.header_offset: info for info in archive.infolist()}
        return self._zips[uri]

    def close(self) -> None:
        """Close the containers that are open."""
        for archive, _ in self._zips.values():
            archive.close()
            if archive.fp:
                archive.fp.close()
        for unpacked in self._unpacked.values():
            if unpacked:
                unpacked.close()
        self._zips.clear()
        self._unpacked.clear()


def _unpack(uri: str) -> IO[bytes] | None:
    """Return a compressed tar's stream, as far as it goes, in a temporary file; None for a tar that is not compressed."""
    if not _read_range(uri, 0, 6).startswith(COMPRESSED):
        return None
    fs, path = storage.open_filesystem(uri)
    unpacked = tempfile.TemporaryFile()
    with fs.open(path, "rb") as file, tarfile.open(fileobj=file, mode="r:*") as tar:
        stream: Any = tar.fileobj
        stream.seek(0)
        with contextlib.suppress(*DAMAGE):  # what lies behind is found to be missing, member by member
            shutil.copyfileobj(stream, unpacked)
    return unpacked


def _read_file(uri: str) -> bytes:
    fs, path = storage.open_filesystem(uri)
    data: bytes = fs.cat_file(path)
    return data


def _read_range(uri: str, start: int, size: int) -> bytes:
    if size == 0:  # S3 answers an empty range with the whole object
        return b""
    fs, path = storage.open_filesystem(uri)
    data: bytes = fs.cat_file(path, start=start, end=start + size)
    return data
