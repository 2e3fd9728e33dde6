"""Zips: a member is addressed by where its header begins, so that it is read by its byte range, without the directory."""

import bz2
import lzma
import struct
import zipfile
import zlib
from collections.abc import Iterator
from functools import partial

from fer_pipeline.core.manifest import Record
from fer_pipeline.sources.files import File, Selection, require_name, valid_text
from fer_pipeline.sources.formats.images import is_image
from fer_pipeline.sources.formats.spec import Ranged, ReadRange, SourceFormat, keyed_by_file
from fer_pipeline.sources.sparse import open_sparsely

HEADER = struct.Struct("<4s2xHH4xI8xHH")
"""Signature, flags, method, CRC, lengths of name and extra field of a local file header (PKWARE APPNOTE 4.3.7)."""
SIGNATURE, DESCRIPTOR = b"PK\x03\x04", b"PK\x07\x08"
ENCRYPTED, CRC_BEHIND = 0x1, 0x8
STORED, DEFLATED, BZIP2, LZMA = 0, 8, 12, 14
MEMBER_OVERHEAD_BYTES = HEADER.size + 512
"""What a member takes besides its content: header, name and extra field, descriptor; more of it costs a second request."""


def list_zip(file: File, selection: Selection) -> Iterator[Record | str]:
    """Yield a record for each image in a zip, the name of each member that is none."""
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
                raise zipfile.BadZipFile(f"the directory puts '{info.filename[:40]}' where the file has no bytes")
            if is_image(info.filename, partial(archive.open, info)):
                name, stored = valid_text(info.filename), info.compress_size
                yield Record(file.uri, name, info.header_offset, stored, size_bytes=info.file_size, etag=file.etag)
            else:
                yield info.filename


def read_zip_member(read: ReadRange, offset: int, stored_bytes: int, size_bytes: int) -> bytes:
    """Return a member's bytes, never more than one above `size_bytes`; raise ValueError or another of `files.CONTAINER_ERRORS`.

    `read` returns bytes of the container from a place on, so many of them.
    """
    data = read(offset, MEMBER_OVERHEAD_BYTES + stored_bytes)
    if len(data) < HEADER.size:
        raise ValueError("the container ends before the member")
    signature, flags, method, crc, name_length, extra_length = HEADER.unpack_from(data)
    if signature != SIGNATURE:
        raise ValueError("there is no member where the container's directory says")
    if flags & ENCRYPTED:
        raise ValueError("the member is encrypted")
    start = HEADER.size + name_length + extra_length
    end = start + stored_bytes
    if end + 8 > len(data):
        data = read(offset, end + 8)
    if flags & CRC_BEHIND:
        descriptor = data[end : end + 8].removeprefix(DESCRIPTOR)
        crc = int.from_bytes(descriptor[:4], "little")
    content = _decompress(method, data[start:end], size_bytes)
    if zlib.crc32(content) != crc:
        raise ValueError("the member's CRC is wrong: it is damaged")
    return content


def _decompress(method: int, data: bytes, size_bytes: int) -> bytes:
    if method == STORED:
        return data
    most = size_bytes + 1  # a member that unpacks to more than its directory says is found out, not unpacked
    if method == DEFLATED:
        return zlib.decompressobj(-15).decompress(data, most)
    if method == BZIP2:
        return bz2.BZ2Decompressor().decompress(data, most)
    if method == LZMA:
        properties = int.from_bytes(data[2:4], "little")
        filters = [lzma._decode_filter_properties(lzma.FILTER_LZMA1, data[4 : 4 + properties])]  # type: ignore[attr-defined]
        return lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=filters).decompress(data[4 + properties :], most)
    raise ValueError(f"the member's compression method {method} is not supported")


class OpenZip(Ranged):
    """A zip whose members are read by the byte range of header and content, without the directory."""

    def read(self, record: Record, read_range: ReadRange) -> bytes:
        return read_zip_member(read_range, record.offset or 0, record.stored_bytes or 0, record.size_bytes or 0)


def _span(record: Record) -> tuple[int, int] | None:
    return None if record.offset is None else (record.offset, record.offset + (record.stored_bytes or 0) + MEMBER_OVERHEAD_BYTES)


ZIP = SourceFormat(
    name="zip",
    extensions=(".zip",),
    list_records=list_zip,
    open=OpenZip,
    span=_span,
    index_key=keyed_by_file,
)
