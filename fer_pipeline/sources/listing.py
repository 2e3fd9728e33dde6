"""Listing an archive: every image below a source as a record, in a fixed order; everything else is counted."""

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from stat import S_ISREG

from fsspec.implementations.local import LocalFileSystem

from fer_pipeline.core import storage
from fer_pipeline.core.errors import UserError
from fer_pipeline.core.manifest import Record
from fer_pipeline.sources.containers import list_members, valid_text
from fer_pipeline.sources.kinds import PEEK_BYTES, kind_of, looks_like_image


@dataclass(frozen=True, slots=True)
class File:
    """A file of a listing. `etag` is the store's, or the mtime in nanoseconds on a local disk."""

    uri: str
    size_bytes: int
    etag: str
    error: str | None = None
    """Why it cannot be read."""


def list_files(source: str) -> Iterator[File]:
    """Yield the files at or below `source`, sorted by path; raise UserError where there is nothing."""
    fs, path = storage.open_filesystem(source)
    if not fs.exists(path):
        raise UserError(f"The source '{source}' does not exist.")
    if isinstance(fs, LocalFileSystem):
        yield from _walk_local(path) if os.path.isdir(path) else [_local_file(path)]
        return
    found = fs.find(path, detail=True)
    for key in sorted(found):
        info = found[key]
        yield File(fs.unstrip_protocol(key), int(info["size"] or 0), str(info.get("ETag", "")).strip('"'))


def _walk_local(folder: str, above: tuple[str, ...] = ()) -> Iterator[File]:
    real = os.path.realpath(folder)
    if real in above:  # a link back up
        return
    try:
        with os.scandir(folder) as entries:
            ordered = sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        yield File(folder, 0, "", f"the folder cannot be listed: {error.strerror}")
        return
    for entry in ordered:
        if os.path.isdir(entry.path):
            yield from _walk_local(entry.path, (*above, real))
        else:
            yield _local_file(entry.path)


def _local_file(path: str) -> File:
    try:
        stat = os.stat(path)
    except OSError as error:  # a link to nowhere, or to itself
        return File(path, 0, "", f"the file cannot be found: {error.strerror}")
    if not S_ISREG(stat.st_mode):
        return File(path, 0, "", "this is not a regular file")
    return File(path, stat.st_size, str(stat.st_mtime_ns))


class Listing:
    """The records below a source, in a fixed order; `skipped` counts, by extension, the files that are no records."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.skipped: Counter[str] = Counter()

    def __iter__(self) -> Iterator[Record]:
        for file in list_files(self.source):
            kind = kind_of(file.uri)
            if file.error:
                yield Record(valid_text(file.uri), size_bytes=file.size_bytes, etag=file.etag, error=file.error)
            elif kind == "image" or (kind == "unknown" and _peek(file)):
                yield self._record(file)
            elif kind in ("tar", "zip"):
                yield from self._members(file)
            else:
                self._skip(file.uri)

    def _record(self, file: File) -> Record:
        uri = valid_text(file.uri)
        error = None if uri == file.uri else "the file's name is not valid UTF-8: rename it"
        return Record(uri, size_bytes=file.size_bytes, etag=file.etag, error=error)

    def _members(self, file: File) -> Iterator[Record]:
        for member in list_members(file.uri, file.size_bytes, file.etag):
            if isinstance(member, Record):
                yield member
            else:
                self._skip(member)

    def _skip(self, name: str) -> None:
        self.skipped[os.path.splitext(name)[1].lower() or "(none)"] += 1


def _peek(file: File) -> bool:
    if file.size_bytes == 0:
        return False
    fs, path = storage.open_filesystem(file.uri)
    try:
        return looks_like_image(fs.cat_file(path, start=0, end=min(PEEK_BYTES, file.size_bytes)))
    except storage.STORAGE_ERRORS:
        return True  # a record: the attempt to read it says what is wrong
