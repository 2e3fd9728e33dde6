"""Reads zip files. A member is addressed by the offset of its header and read as a byte range, without the zip's directory."""

import bz2
import io
import lzma
import struct
import threading
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

import inflate64
from backports import zstd

from fer_pipeline.archive.files import File, Selection, require_name, valid_text
from fer_pipeline.archive.formats.members import OpenVideos, Part, entries_of, open_part, part_of_copy
from fer_pipeline.archive.formats.spec import Frame, ReadRange, SourceFormat, keyed_by_fps
from fer_pipeline.archive.record import Opening, Record, Skipped
from fer_pipeline.archive.signatures import HEAD_BYTES
from fer_pipeline.archive.sparse import open_sparsely
from fer_pipeline.archive.unpacked import PIECE_BYTES, limit_of, write_copy
from fer_pipeline.base import storage

DEFLATE64, ZSTD, XZ = 9, 93, 95
"""Compression methods that Python's zipfile does not have. The Explorer of Windows writes the first above 2 GB."""
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA, DEFLATE64, ZSTD, XZ)
PEEKED_BYTES = 4096
"""Bytes read at a time to learn the kind of a member from its beginning."""
INFLATE_BYTES = 256
"""Size of a piece of input; the output may have 20,000 times that."""
UTF_8 = 0x800
"""Flag of a name in UTF-8."""
HEADER = struct.Struct("<4s2xHH4xI8xHH")
"""Signature, flags, method, CRC, lengths of name and extra field of a local file header (PKWARE APPNOTE 4.3.7)."""
DESCRIPTOR_BYTES = 8
"""Size of the signature of a descriptor, which it may lack, and of the CRC."""
MEMBER_OVERHEAD_BYTES = HEADER.size + 512
"""Bytes read for a member's header, name, extra field and descriptor. If these parts are longer, a second request follows."""


def list_zip(file: File, selection: Selection) -> Iterator[Record | Skipped | Opening]:
    """Yield a record for each image and each sampled frame in a zip, and every other member as skipped."""
    with open_sparsely(file) as opened, zipfile.ZipFile(opened) as archive:
        for info in archive.infolist():
            require_name(info.filename)
            if info.is_dir():
                continue
            if (
                not 0 <= info.header_offset <= file.size_bytes
                or not 0 <= info.compress_size <= file.size_bytes
                or info.file_size < 0
            ):
                raise zipfile.BadZipFile(f"the zip directory places '{info.filename[:40]}' outside the file")
            name, error = _name_of(info, selection.zip_encoding)
            stored = info.compress_size
            record = Record(file.uri, name, info.header_offset, stored, None, info.file_size, file.etag, error)
            open_video = partial(video_opener, file.uri, file.etag, info.header_offset, stored, partial(getattr, info, "CRC"))
            yield from entries_of(record, selection, partial(_head, opened, info), open_video)


def _head(opened: Any, info: zipfile.ZipInfo) -> io.BytesIO:
    """Return the beginning of a member's content. Raise ValueError, or another of `files.CONTAINER_ERRORS`."""
    opened.seek(info.header_offset)
    header = header_of(opened.read(HEADER.size))
    packed = Part(opened, info.header_offset + header.content_offset, info.compress_size, keep_open=True)
    pieces = _unpacked(header.method, iter(partial(packed.read, PEEKED_BYTES), b""), HEAD_BYTES)
    return io.BytesIO(next(filter(None, pieces), b"")[:HEAD_BYTES])


def _name_of(info: zipfile.ZipInfo, encoding: str | None) -> tuple[str, str | None]:
    """Return a member's name and, if it is not in the encoding that was asked for, the member's error.

    Without the flag zipfile takes a name for code page 437; many programs write UTF-8, or the code page of their country.
    """
    name = valid_text(info.filename)
    if info.flag_bits & UTF_8 or name.isascii():
        return name, None
    try:
        return info.filename.encode("cp437").decode(encoding or "utf-8"), None
    except UnicodeError:
        return name, encoding and f"the member's name is not in {encoding}: choose another --zip-encoding"


@dataclass(frozen=True)
class Header:
    """What a member's local header says, and where its content is."""

    method: int
    crc: int
    has_descriptor: bool
    """Whether the CRC follows the content; some programs leave that out, with or without the CRC in the header."""
    content_offset: int
    """Counted from the header's first byte."""

    def require_crc(self, crc: int, after: bytes, in_directory: Callable[[], int | None]) -> None:
        """Raise ValueError if the CRC of a member's content is wrong.

        `after`: the bytes behind the content. `in_directory` returns the CRC in the zip's directory.
        """
        descriptor = int.from_bytes(after.removeprefix(b"PK\x07\x08")[:4], "little")
        if crc != self.crc and not (self.has_descriptor and (crc == descriptor or crc == in_directory())):
            raise ValueError("the member is damaged: its CRC is wrong")


def header_of(data: bytes) -> Header:
    """Return the local header at the start of `data`; raise ValueError if there is none that can be used."""
    if len(data) < HEADER.size:
        raise ValueError("the container ends before the member")
    signature, flags, method, crc, name_length, extra_length = HEADER.unpack_from(data)
    if signature != b"PK\x03\x04":
        raise ValueError("the container holds no member at the offset that its directory gives")
    if flags & 0x1:
        raise ValueError("the member is encrypted")
    if method not in METHODS:
        raise ValueError(f"the member's compression method {method} is not supported: pack it again with Deflate")
    return Header(method, crc, bool(flags & 0x8), HEADER.size + name_length + extra_length)


def read_zip_member(
    read: ReadRange, offset: int, stored_bytes: int, size_bytes: int, crc_in_directory: Callable[[], int | None] = lambda: None
) -> bytes:
    """Return a member's content, at most `size_bytes` + 1 bytes. Raise ValueError or another of `files.CONTAINER_ERRORS`.

    `read` takes an offset and a size, and returns that many bytes of the container from that offset. `crc_in_directory` is asked
    for the CRC that the zip's directory has if no other one fits.
    """
    data = read(offset, MEMBER_OVERHEAD_BYTES + stored_bytes)
    header = header_of(data)
    end = header.content_offset + stored_bytes
    if end + DESCRIPTOR_BYTES > len(data):
        data = read(offset, end + DESCRIPTOR_BYTES)
    packed, content = data[header.content_offset : end], bytearray()
    limit = size_bytes + 1  # one byte more than the directory says is enough to detect a wrong size
    for piece in _unpacked(header.method, iter([packed]), limit):
        content += piece
        if len(content) >= limit:
            break
    found = bytes(content[:limit])
    header.require_crc(zlib.crc32(found), data[end:], crc_in_directory)
    return found


def _unpacked(method: int, packed: Iterator[bytes], most_bytes: int) -> Iterator[bytes]:
    """Yield the content of a member in pieces of at most `most_bytes`, those of Deflate64 of at most 5 MB."""
    if method == zipfile.ZIP_STORED:
        yield from packed
    elif method == zipfile.ZIP_DEFLATED:
        yield from _inflated(packed, most_bytes)
    elif method == zipfile.ZIP_BZIP2:
        yield from _streamed(bz2.BZ2Decompressor(), packed, most_bytes)
    elif method == zipfile.ZIP_LZMA:
        first = next(packed, b"")
        properties = int.from_bytes(first[2:4], "little")
        filters = [lzma._decode_filter_properties(lzma.FILTER_LZMA1, first[4 : 4 + properties])]  # type: ignore[attr-defined]
        decompressor = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=filters)
        yield from _streamed(decompressor, chain([first[4 + properties :]], packed), most_bytes)
    elif method == XZ:
        yield from _streamed(lzma.LZMADecompressor(lzma.FORMAT_XZ), packed, most_bytes)
    elif method == ZSTD:
        yield from _streamed(zstd.ZstdDecompressor(), packed, most_bytes)
    else:
        yield from _inflated64(packed)


def _inflated(packed: Iterator[bytes], most_bytes: int) -> Iterator[bytes]:
    inflater = zlib.decompressobj(-15)
    for data in packed:
        while data:
            yield inflater.decompress(data, most_bytes)
            data = inflater.unconsumed_tail
    yield inflater.flush()


def _streamed(decompressor: Any, packed: Iterator[bytes], most_bytes: int) -> Iterator[bytes]:
    for data in packed:
        while not decompressor.eof:
            yield decompressor.decompress(data, most_bytes)
            data = b""
            if decompressor.needs_input:
                break


def _inflated64(packed: Iterator[bytes]) -> Iterator[bytes]:
    """The library has no limit, so it gets its input in small pieces."""
    inflater = inflate64.Inflater()
    for data in packed:
        for place in range(0, len(data), INFLATE_BYTES):
            if inflater.eof:
                return
            yield inflater.inflate(data[place : place + INFLATE_BYTES])


def video_opener(
    uri: str, etag: str | None, offset: int, stored_bytes: int, crc_in_directory: Callable[[], int | None]
) -> Callable[[], Part]:
    """Return a function that opens a video in a zip: a part of the zip if it is stored, else a part of an unpacked copy.

    Raise ValueError for a member without a usable header, or of a wrong CRC if it is compressed, `NoRoomError`, and what the
    storage raises.
    """
    header = header_of(storage.read_range(uri, offset, MEMBER_OVERHEAD_BYTES, etag))
    start = offset + header.content_offset
    if header.method == zipfile.ZIP_STORED:
        return partial(open_part, uri, etag, start, stored_bytes)

    def pieces() -> Iterator[bytes]:
        crc = 0
        with open_part(uri, etag, start, stored_bytes) as opened:
            for piece in _unpacked(header.method, iter(partial(opened.read, PIECE_BYTES), b""), PIECE_BYTES):
                crc = zlib.crc32(piece, crc)
                yield piece
        descriptor = storage.read_range(uri, start + stored_bytes, DESCRIPTOR_BYTES, etag)
        header.require_crc(crc, descriptor, crc_in_directory)

    return partial(part_of_copy, write_copy(pieces(), limit_of(stored_bytes)))


class OpenZip:
    """A zip. A member is read as one byte range, its header and content; the directory is read only if a CRC is missing there."""

    def __init__(self, uri: str, etag: str | None = None, image_column: str | None = None) -> None:
        self._uri, self._etag = uri, etag
        self._lock = threading.Lock()
        self._crcs: dict[int, int] | None = None
        self._videos = OpenVideos(uri, etag, self._video_opener)

    def read(self, record: Record, read_range: ReadRange) -> bytes | Frame:
        if record.time_ms is not None:
            return self._videos.frame(record)
        offset = record.offset or 0
        sizes = record.stored_bytes or 0, record.size_bytes or 0
        return read_zip_member(read_range, offset, *sizes, partial(self._crc_in_directory, offset))

    def _video_opener(self, record: Record) -> Callable[[], Part]:
        offset = record.offset or 0
        in_directory = partial(self._crc_in_directory, offset)
        return video_opener(self._uri, self._etag, offset, record.stored_bytes or 0, in_directory)

    def _crc_in_directory(self, offset: int) -> int | None:
        with self._lock:
            if self._crcs is None:
                with storage.open_version(self._uri, self._etag, PIECE_BYTES) as opened, zipfile.ZipFile(opened) as archive:
                    self._crcs = {info.header_offset: info.CRC for info in archive.infolist()}
        return self._crcs.get(offset)

    def close(self) -> None:
        self._videos.close()


def _span(record: Record) -> tuple[int, int] | None:
    return None if record.offset is None else (record.offset, record.offset + (record.stored_bytes or 0) + MEMBER_OVERHEAD_BYTES)


ZIP = SourceFormat(
    name="zip",
    extensions=(".zip",),
    list_records=list_zip,
    open=OpenZip,
    span=_span,
    index_key=lambda selection: f"{keyed_by_fps(selection)} {selection.zip_encoding}",
)
