"""Listing an archive: every image and sampled frame below a source as a record, in a fixed order; the rest is counted."""

import os
import posixpath
import re
from collections import Counter
from collections.abc import Iterator
from fnmatch import translate

from fer_pipeline.core.manifest import Record
from fer_pipeline.sources.containers import list_members
from fer_pipeline.sources.files import File, Selection, peek, valid_text
from fer_pipeline.sources.kinds import kind_of
from fer_pipeline.sources.opener import Opener
from fer_pipeline.sources.walk import list_files

FILTERED = "(filtered)"


class Listing:
    """The records below a source; `skipped` counts, by extension, the files that are none."""

    def __init__(self, source: str, selection: Selection = Selection()) -> None:  # noqa: B008 (frozen)
        self.source, self.selection = source, selection
        self.skipped: Counter[str] = Counter()
        self._opener = Opener()
        self._include = [re.compile(translate(glob)) for glob in selection.include]
        self._exclude = [re.compile(translate(glob)) for glob in selection.exclude]

    def __iter__(self) -> Iterator[Record]:
        try:
            yield from self._records()
        finally:
            self._opener.close()

    def _records(self) -> Iterator[Record]:
        for file in list_files(self.source):
            name, kind = self._name(file.uri), kind_of(file.uri)
            if self._matches(self._exclude, name):
                self.skipped[FILTERED] += 1
            elif kind in ("tar", "zip", "parquet") or (kind == "video" and self.selection.fps):
                yield from self._members(file, name)
            elif self._include and not self._matches(self._include, name):
                self.skipped[FILTERED] += 1
            elif kind == "image" or file.error or (kind == "unknown" and peek(file)):
                yield _record(file)
            else:
                self._skip(file.uri)

    def _name(self, uri: str) -> str:
        return uri.removeprefix(self.source).lstrip("/") or posixpath.basename(uri)

    def _members(self, file: File, container: str) -> Iterator[Record]:
        if file.error or valid_text(file.uri) != file.uri:
            yield _record(file)
            return
        for member in list_members(file, self.selection, self._opener):
            inner = member.member if isinstance(member, Record) else member
            name = f"{container}/{inner}" if inner and inner != file.uri else container
            if not isinstance(member, Record):
                self._skip(member)
            elif not member.error and not self._chosen(name):
                self.skipped[FILTERED] += 1
            else:
                yield member

    def _chosen(self, name: str) -> bool:
        return not self._matches(self._exclude, name) and (not self._include or self._matches(self._include, name))

    @staticmethod
    def _matches(globs: list[re.Pattern[str]], name: str) -> bool:
        return any(glob.match(name) for glob in globs)

    def _skip(self, name: str) -> None:
        self.skipped[os.path.splitext(name)[1].lower() or "(none)"] += 1


def _record(file: File) -> Record:
    uri = valid_text(file.uri)
    error = file.error or (None if uri == file.uri else "the file's name is not valid UTF-8: rename it")
    return Record(uri, size_bytes=file.size_bytes, etag=file.etag, error=error)
