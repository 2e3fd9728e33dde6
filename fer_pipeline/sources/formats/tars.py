"""Tars, WebDataset shards among them: a member is addressed by where its bytes begin, so that it is read by its byte range.

In a compressed tar that is a place in the decompressed stream, which has to be unpacked first.
"""

import tarfile
import tempfile
import threading
from collections.abc import Iterator
from functools import partial
from typing import IO, Any

from fer_pipeline.core import storage
from fer_pipeline.core.manifest import Record
from fer_pipeline.sources.files import CONTAINER_ERRORS, MOST_BYTES, File, Selection, require_name, valid_text
from fer_pipeline.sources.formats.images import is_image
from fer_pipeline.sources.formats.spec import Ranged, ReadRange, SourceFormat, byte_span, keyed_by_file
from fer_pipeline.sources.sparse import open_sparsely

CHUNK_BYTES, UNPACK_BYTES = 64 * 1024, 8 * 1024**2
LEAST_UNPACKED_BYTES, MOST_RATIO = 256 * 1024**2, 200
"""How much of a compressed tar is unpacked: so many bytes at least, and beyond them so many for each byte of the file."""
COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ")


def list_tar(file: File, selection: Selection) -> Iterator[Record | str]:
    """Yield a record for each image in a tar, the name of each member that is none."""
    with open_sparsely(file) as opened, tarfile.open(fileobj=opened) as tar:
        seen: dict[int, int] = {}
        """Offset and size of each member, in one number, by the hash of its name: hard links repeat one of millions."""
        for info in sane_members(tar):
            if info.isdir():
                continue
            if info.islnk() and (place := seen.get(hash(info.linkname))):
                info.type = tarfile.REGTYPE
                info.offset_data, info.size = divmod(place, MOST_BYTES)
            plain = info.isfile() and not info.issparse()
            if plain:
                seen[hash(info.name)] = info.offset_data * MOST_BYTES + info.size
            if plain and is_image(info.name, partial(tar.extractfile, info)):
                yield Record(file.uri, valid_text(info.name), info.offset_data, size_bytes=info.size, etag=file.etag)
            else:
                yield info.name
        _require_end(tar)


def _require_end(tar: tarfile.TarFile) -> None:
    """Raise ReadError unless the listing ended where the tar does: tarfile takes a damaged header for the end."""
    stream: Any = tar.fileobj
    stream.seek(tar.offset)
    end = stream.read(2 * tarfile.BLOCKSIZE)
    if end.strip(b"\0"):
        raise tarfile.ReadError(f"the header at byte {tar.offset} is damaged, what stands behind it cannot be found")


def sane_members(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Yield the members of a tar; raise ReadError where a header says what cannot be.

    Python's tarfile follows a negative size backwards without end (CVE-2025-8194).
    """
    behind = 0
    for info in tar:
        if info.size < 0 or info.offset < behind or info.offset_data + info.size > MOST_BYTES:
            raise tarfile.ReadError(f"the header at byte {info.offset} gives an impossible size of {info.size} bytes")
        require_name(info.name)
        behind = info.offset + tarfile.BLOCKSIZE
        yield info
        tar.members = []  # type: ignore[attr-defined]  # millions of members do not stay in memory


def unpack(uri: str, etag: str | None = None) -> IO[bytes] | None:
    """Return a compressed tar's stream, as far as it goes, in a temporary file; None for a tar that is not compressed.

    Raise ChangedError where it is not the version of that etag.
    """
    if not storage.read_range(uri, 0, 6, etag).startswith(COMPRESSED):
        return None
    fs, path = storage.open_filesystem(uri)
    unpacked, left = tempfile.TemporaryFile(), max(LEAST_UNPACKED_BYTES, MOST_RATIO * int(fs.size(path) or 0))
    with storage.open_version(uri, etag, UNPACK_BYTES) as file, tarfile.open(fileobj=file, mode="r:*") as tar:
        stream: Any = tar.fileobj
        stream.seek(0)
        try:
            while left > 0 and (data := stream.read1(CHUNK_BYTES)):  # `read` would lose what precedes the damage
                unpacked.write(data)
                left -= len(data)
        except CONTAINER_ERRORS:
            pass  # what lies behind is found to be missing, member by member
        except OSError as error:
            if storage.says_changed(error) or not storage.says_damage(error):
                raise
    storage.require_unchanged(uri, etag)
    return unpacked


class OpenTar(Ranged):
    """A tar whose members are byte ranges, of the file or, where it is compressed, of its stream, which is unpacked once."""

    def __init__(self, uri: str, etag: str | None = None, image_column: str | None = None) -> None:
        super().__init__(uri, etag)
        self._lock = threading.Lock()
        self._stream: IO[bytes] | None = None
        self._looked = False

    def read(self, record: Record, read_range: ReadRange) -> bytes:
        with self._lock:
            if not self._looked:
                self._stream = unpack(self.uri, self.etag)
                self._looked = True
            if self._stream:
                self._stream.seek(record.offset or 0)
                return self._stream.read(record.size_bytes or 0)
        data: bytes = super().read(record, read_range)
        return data

    def close(self) -> None:
        if self._stream:
            self._stream.close()


TAR = SourceFormat(
    name="tar",
    extensions=(".tar", ".tar.gz", ".tgz"),
    list_records=list_tar,
    open=OpenTar,
    span=byte_span,
    index_key=keyed_by_file,
)
