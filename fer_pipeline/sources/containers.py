"""Tars and zips: which images are inside, and how to read one of them."""

import tarfile
import threading
import zipfile
import zlib
from collections.abc import Iterator
from typing import IO, Any

from fer_pipeline.core import storage
from fer_pipeline.core.errors import RecordError
from fer_pipeline.core.manifest import Record
from fer_pipeline.sources.kinds import kind_of, looks_like_image

BROKEN = (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, *storage.STORAGE_ERRORS)
"""What a damaged, encrypted or unreachable container raises (zipfile says RuntimeError for encryption)."""


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
        seekable = uri.lower().endswith(".tar")
        for info in tar:
            if not info.isfile():
                continue
            head = tar.extractfile(info) if kind_of(info.name) == "unknown" else None
            if kind_of(info.name) == "image" or (head and looks_like_image(head.read(12))):
                offset = info.offset_data if seekable and not info.issparse() else None
                yield Record(uri, valid_text(info.name), offset=offset, size_bytes=info.size, etag=etag)
            else:
                yield info.name


def _list_zip(file: IO[bytes], uri: str, etag: str) -> Iterator[Record | str]:
    with zipfile.ZipFile(file) as archive:
        for info in archive.infolist():
            if info.is_dir():
                continue
            if kind_of(info.filename) == "image" or (kind_of(info.filename) == "unknown" and _peek(archive, info)):
                yield Record(uri, info.filename, size_bytes=info.file_size, etag=etag)
            else:
                yield info.filename


def _peek(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bool:
    if info.flag_bits & 1:  # encrypted
        return False
    with archive.open(info) as member:
        return looks_like_image(member.read(12))


class Reader:
    """Reads records' bytes; containers stay open until it is closed. Safe to call from several threads."""

    def __init__(self) -> None:
        self._open: dict[str, tuple[threading.Lock, IO[bytes], Any]] = {}
        self._lock = threading.Lock()

    def read(self, record: Record) -> bytes:
        """Return the encoded image; raise RecordError `unreadable` where it cannot be had."""
        if record.error:
            raise RecordError("unreadable", record.error)
        try:
            by_name = record.member is not None and record.offset is None
            data = self._read_member(record) if by_name else _read_range(record)
        except BROKEN as error:
            raise RecordError("unreadable", f"{type(error).__name__}: {error}") from error
        except KeyError as error:
            raise RecordError("unreadable", "the member is gone from its container") from error
        if record.member is not None and len(data) != record.size_bytes:
            raise RecordError("unreadable", f"the container holds {len(data)} of the member's {record.size_bytes} bytes")
        return data

    def _read_member(self, record: Record) -> bytes:
        with self._lock:
            if record.uri not in self._open:
                fs, path = storage.open_filesystem(record.uri)
                file = fs.open(path, "rb")
                archive = tarfile.open(fileobj=file) if kind_of(record.uri) == "tar" else zipfile.ZipFile(file)
                self._open[record.uri] = (threading.Lock(), file, archive)
            lock, _, archive = self._open[record.uri]
        with lock:
            if isinstance(archive, zipfile.ZipFile):
                return archive.read(record.member or "")
            member = archive.extractfile(record.member or "")
            return member.read() if member else b""

    def close(self) -> None:
        """Close the containers that are open."""
        for _, file, archive in self._open.values():
            archive.close()
            file.close()
        self._open.clear()


def _read_range(record: Record) -> bytes:
    fs, path = storage.open_filesystem(record.uri)
    if record.offset is None:
        data: bytes = fs.cat_file(path)
    else:
        data = fs.cat_file(path, start=record.offset, end=record.offset + (record.size_bytes or 0))
    return data
