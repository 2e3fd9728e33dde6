"""Members of containers on their way to the copies: each shard keeps its members in parts, and a task joins those of a container.

A part is a piece of a tar. A tar becomes a tar and a zip a zip, both without compression; a table becomes a Parquet file with the
columns `path` and `image`; pages of a TIFF become members of a tar.
"""

import io
import posixpath
import tarfile
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from fer_pipeline.archive.files import inner_path, with_ending
from fer_pipeline.archive.formats.arrows import ARROW
from fer_pipeline.archive.formats.parquets import PARQUET
from fer_pipeline.archive.formats.zips import ZIP
from fer_pipeline.archive.reader import format_of_record
from fer_pipeline.archive.record import Record
from fer_pipeline.base import storage

WORK = "_redacted"
"""Folder below the copies with what is known of each record, and for a while the parts."""
PARTS = "parts"
MARK = "redacted"
"""Stands before the ending of a copy that has another format than its file."""
EMPTY = "_empty_"
"""What stands for an empty part of a key."""
TABLE = ".parquet"
"""Ending of a table's copy. Its column `path` names rows as labelling does."""
COPIES = pa.schema([pa.field("path", pa.string(), nullable=False), pa.field("image", pa.binary(), nullable=False)])


def is_member(record: Record) -> bool:
    """Tell whether a record is an image in a container; a frame of a video is none."""
    return record.time_ms is None and (record.member is not None or record.offset is not None)


def name_of_copy(source: str, uri: str, *endings: str) -> str:
    """Return the name below the folder of a file's copy. Keys of a store that differ in empty parts only stay different."""
    name = (uri.removeprefix(source).removeprefix("/") or posixpath.basename(uri)).replace("://", "/")
    return with_ending(inner_path("/".join(part or EMPTY for part in name.split("/"))), MARK, *endings)


def container_copy(source: str, record: Record) -> str:
    """Return the name below the folder of the copy of the container that holds a record."""
    ending = {ZIP.name: ".zip", PARQUET.name: TABLE, ARROW.name: TABLE}.get(format_of_record(record).name, ".tar")
    return name_of_copy(source, record.uri, ending)


@dataclass
class Container:
    """A container, with a record of it and the parts of its copy, in order."""

    first: Record
    parts: list[str] = field(default_factory=list)


class Parts:
    """What one shard keeps of its containers. At the end of the context the parts are written, also those without a member."""

    def __init__(self, out: str, shard: int, records: Iterable[Record]) -> None:
        self._urls = paths_of_parts(out, shard, (record.uri for record in records if is_member(record)))
        self._files: dict[str, IO[bytes]] = {}
        self._open = ExitStack()

    def __enter__(self) -> "Parts":
        for uri, url in self._urls.items():
            self._files[uri] = self._open.enter_context(storage.written(url))
        return self

    def __exit__(self, *error: Any) -> None:
        self._open.__exit__(*error)

    def add(self, uri: str, name: str, data: bytes) -> None:
        """Keep a member."""
        header = tarfile.TarInfo(name)
        header.size = len(data)
        padding = bytes(-len(data) % tarfile.BLOCKSIZE)
        self._files[uri].writelines((header.tobuf(tarfile.PAX_FORMAT), data, padding))


def paths_of_parts(out: str, shard: int, uris: Iterable[str]) -> dict[str, str]:
    """Return where the part of each container in a shard is; `uris`: those of its members, in order."""
    distinct = dict.fromkeys(uris)
    return {uri: storage.join(out, WORK, PARTS, f"{shard:06d}-{number:04d}.tar") for number, uri in enumerate(distinct)}


def containers_of(out: str, shards: Iterable[tuple[int, Sequence[Record]]]) -> list[Container]:
    """Return all containers of some shards; `shards`: numbers and records."""
    found: dict[str, Container] = {}
    for shard, records in shards:
        members = [record for record in records if is_member(record)]
        for record in members:
            found.setdefault(record.uri, Container(record))
        for uri, part in paths_of_parts(out, shard, (record.uri for record in members)).items():
            found[uri].parts.append(part)
    return list(found.values())


def join(source: str, out: str, container: Container) -> None:
    """Write the copy of a container unless it is there, and remove its parts."""
    name = container_copy(source, container.first)
    write = {"zip": _write_zip, "parquet": _write_table, "tar": _write_tar}[name.rpartition(".")[2].lower()]
    target = storage.join(out, name)
    if not storage.exists(target):  # else a task that was killed had only to remove parts
        with storage.written(target) as file:
            write(file, map(storage.read_bytes, container.parts))
    for part in container.parts:
        storage.remove(part)


def _write_tar(file: IO[bytes], parts: Iterator[bytes]) -> None:
    for part in parts:
        file.write(part)
    file.write(bytes(2 * tarfile.BLOCKSIZE))


def _write_zip(file: IO[bytes], parts: Iterator[bytes]) -> None:
    with zipfile.ZipFile(file, "w") as target:
        for name, data in _members(parts):
            target.writestr(zipfile.ZipInfo(name), data)


def _write_table(file: IO[bytes], parts: Iterator[bytes]) -> None:
    with pq.ParquetWriter(file, COPIES, compression="none") as writer:
        for part in parts:
            names, images = zip(*_members(iter([part])), strict=True) if part else ((), ())
            writer.write_table(pa.table([pa.array(names, pa.string()), pa.array(images, pa.binary())], schema=COPIES))


def _members(parts: Iterator[bytes]) -> Iterator[tuple[str, bytes]]:
    for part in filter(None, parts):
        with tarfile.open(fileobj=io.BytesIO(part), mode="r:") as tar:
            for member in tar:
                yield member.name, part[member.offset_data : member.offset_data + member.size]
