"""Tars, such as WebDataset shards. A member is addressed by the offset of its content and read as a byte range.

In a compressed tar the offset counts in the decompressed stream, so the stream is unpacked first.
"""

import bz2
import gzip
import io
import lzma
import os
import tarfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import IO, Any

from backports import zstd

from fer_pipeline.archive.files import MOST_BYTES, File, Selection, require_name, valid_text
from fer_pipeline.archive.formats.members import OpenVideos, Part, entries_of, open_part, part_of_copy
from fer_pipeline.archive.formats.spec import Frame, ReadRange, SourceFormat, byte_span, keyed_by_fps
from fer_pipeline.archive.record import Opening, Record, Skipped
from fer_pipeline.archive.sparse import open_sparsely
from fer_pipeline.archive.unpacked import PIECE_BYTES, limit_of, shared_copy, up_to_damage, write_copy
from fer_pipeline.base import storage
from fer_pipeline.base.errors import RecordError

MOST_ZEROS = 64 * 1024**2
"""Most zeros between a tar and one that was joined to it."""
SIGNATURE_BYTES, READ_AT_ONCE_BYTES = 6, 64 * 1024
READ_BYTES = 8 * 1024**2
"""Size of a request for a compressed tar on a store."""
COMPRESSIONS: dict[bytes, Callable[[Any], Any]] = {
    b"\x1f\x8b": lambda opened: gzip.GzipFile(fileobj=opened),
    b"BZh": bz2.BZ2File,
    b"\xfd7zXZ": lzma.LZMAFile,
    b"\x28\xb5\x2f\xfd": zstd.ZstdFile,
    **{bytes([0x50 + number]) + b"\x2a\x4d\x18": zstd.ZstdFile for number in range(16)},  # pzstd begins with a frame to skip
}
"""Functions that open what begins with these bytes."""


def list_tar(file: File, selection: Selection) -> Iterator[Record | Skipped | Opening]:
    """Yield a record for each image and each sampled frame in a tar, and every other member as skipped."""
    with open_sparsely(file) as opened, open_tar(opened) as tar:
        is_packed = tar.fileobj is not opened
        seen: dict[int, int] = {}
        """The offset and size of each member, packed in one integer, by the hash of its name, to resolve hard links."""
        for info in sane_members(tar):
            if info.isdir():
                continue
            if info.islnk() and (packed := seen.get(hash(info.linkname))):
                info.type = tarfile.REGTYPE
                info.offset_data, info.size = divmod(packed, MOST_BYTES)
            plain = info.isfile() and not info.issparse()
            if plain:
                seen[hash(info.name)] = info.offset_data * MOST_BYTES + info.size
            if not plain:
                yield Skipped(info.name)
                continue
            record = Record(file.uri, valid_text(info.name), info.offset_data, size_bytes=info.size, etag=file.etag)
            open_member: Callable[[], Any] = partial(tar.extractfile, info)
            size = min(info.size, limit_of(file.size_bytes))
            video_opener = partial(_copied, open_member, size) if is_packed else lambda opened=open_member: opened
            yield from entries_of(record, selection, open_member, video_opener)


def _copied(open_member: Callable[[], Any], size_bytes: int) -> Callable[[], Part]:
    """Return a function that opens a member of a compressed tar, which can only be read forwards, in a copy."""
    with open_member() as member:
        return partial(part_of_copy, write_copy(up_to_damage(iter(partial(member.read, PIECE_BYTES), b"")), size_bytes))


@contextmanager
def open_tar(opened: Any) -> Iterator[tarfile.TarFile]:
    """Open a tar, compressed or not, for one pass over an open file."""
    with _stream(opened) as stream, tarfile.open(fileobj=stream, mode="r:") as tar:
        yield tar


@contextmanager
def _stream(opened: Any) -> Iterator[Any]:
    """Yield the stream of a tar: an open file itself, or what it unpacks to."""
    head = opened.read(SIGNATURE_BYTES)
    opened.seek(0)
    unpack = next((unpack for beginning, unpack in COMPRESSIONS.items() if head.startswith(beginning)), None)
    if unpack is None:
        yield opened
        return
    with unpack(opened) as stream:
        yield stream


def _goes_on(tar: tarfile.TarFile) -> bool:
    """Return whether another tar follows the zeros at the end of one, and move to its first header: they were joined by `cat`.

    Raise ReadError if anything else follows. Tarfile itself treats zeros, and a damaged header, as the end.
    """
    stream: Any = tar.fileobj
    stream.seek(tar.offset)
    for offset in range(tar.offset, tar.offset + MOST_ZEROS, tarfile.BLOCKSIZE):
        block = stream.read(tarfile.BLOCKSIZE)
        if len(block) < tarfile.BLOCKSIZE and not block.strip(b"\0"):
            return False
        if block.strip(b"\0"):
            try:
                tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
            except tarfile.HeaderError:
                what = f"the header at byte {offset} is damaged, so the members after it cannot be found"
                raise tarfile.ReadError(what) from None
            if offset == tar.offset:
                raise tarfile.ReadError(f"the header at byte {offset} cannot be read")
            tar.offset = offset
            return True
    raise tarfile.ReadError(f"{MOST_ZEROS} zeros follow its end at byte {tar.offset}: what is after them is not looked at")


def sane_members(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Yield the members of a tar, or of several that were joined. Raise ReadError for a header with impossible values.

    Python's tarfile loops forever on a negative size (CVE-2025-8194).
    """
    end = 0
    while True:
        info = tar.next()
        if info is None:
            if _goes_on(tar):
                continue
            return
        if info.size < 0 or info.offset < end or info.offset_data + info.size > MOST_BYTES:
            raise tarfile.ReadError(f"the header at byte {info.offset} gives an impossible size of {info.size} bytes")
        require_name(info.name)
        end = info.offset + tarfile.BLOCKSIZE
        yield info
        tar.members = []  # type: ignore[attr-defined]  # keeps millions of members out of memory


def unpacked(uri: str, etag: str | None) -> IO[bytes] | None:
    """Return a copy of what a compressed tar holds, up to any damage; None for an uncompressed tar.

    The processes of a machine share it. Raise ChangedError if the file is not the version of that etag.
    """
    if not storage.read_range(uri, 0, SIGNATURE_BYTES, etag).startswith(tuple(COMPRESSIONS)):
        return None

    def make(beat: Callable[[], None]) -> IO[bytes]:
        with storage.open_version(uri, etag, READ_BYTES) as opened, _stream(opened) as stream:
            size_bytes = opened.seek(0, io.SEEK_END)
            opened.seek(0)
            pieces = iter(partial(stream.read1, READ_AT_ONCE_BYTES), b"")  # `read` would lose the bytes before any damage
            copy = write_copy(up_to_damage(pieces), limit_of(size_bytes), beat)
        storage.require_unchanged(uri, etag)
        return copy

    return shared_copy(f"{uri}|{etag}", make) if etag else make(lambda: None)


class OpenTar:
    """A tar whose members are byte ranges of the file or, if it is compressed, of its stream, which is unpacked once."""

    def __init__(self, uri: str, etag: str | None = None, image_column: str | None = None) -> None:
        self._uri, self._etag = uri, etag
        self._lock = threading.Lock()
        self._copy: IO[bytes] | RecordError | None = None
        self._is_checked = False
        self._videos = OpenVideos(uri, etag, self._video_opener)

    def read(self, record: Record, read_range: ReadRange) -> bytes | Frame:
        if record.time_ms is not None:
            return self._videos.frame(record)
        offset, size = record.offset or 0, record.size_bytes or 0
        copy = self._unpacked()
        return read_range(offset, size) if copy is None else os.pread(copy.fileno(), size, offset)

    def _unpacked(self) -> IO[bytes] | None:
        """Return the copy of a compressed tar, made at the first call; None for an uncompressed tar."""
        with self._lock:
            if not self._is_checked:
                try:
                    self._copy = unpacked(self._uri, self._etag)
                except RecordError as error:
                    self._copy = error
                self._is_checked = True
        if isinstance(self._copy, RecordError):
            raise self._copy
        return self._copy

    def _video_opener(self, record: Record) -> Callable[[], Part]:
        offset, size, copy = record.offset or 0, record.stored_bytes or 0, self._unpacked()
        if copy is None:
            return partial(open_part, self._uri, self._etag, offset, size)
        return partial(part_of_copy, copy, offset, size)

    def close(self) -> None:
        self._videos.close()
        if self._copy is not None and not isinstance(self._copy, RecordError):
            self._copy.close()


TAR = SourceFormat(
    name="tar",
    extensions=(".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tbz", ".tar.xz", ".txz", ".tar.zst", ".tzst"),
    list_records=list_tar,
    open=OpenTar,
    span=byte_span,
    index_key=keyed_by_fps,
)
