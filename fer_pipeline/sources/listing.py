"""Listing an archive: every image and sampled frame below a source as a record, in a fixed order; the rest is counted."""

import os
import posixpath
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from fnmatch import translate

from fer_pipeline.core.boundary import as_record_error
from fer_pipeline.core.isolated import IsolatedProcess, OutageError
from fer_pipeline.core.manifest import Record
from fer_pipeline.sources.files import File, Selection, valid_text
from fer_pipeline.sources.formats import format_of, list_container
from fer_pipeline.sources.formats.images import IMAGE, list_image, peek, says_image
from fer_pipeline.sources.formats.spec import SourceFormat
from fer_pipeline.sources.index import remembered
from fer_pipeline.sources.walk import list_files

FILTERED = "(filtered)"


class Listing:
    """The records below a source; `skipped` counts, by extension, the files that are none."""

    def __init__(self, source: str, selection: Selection = Selection()) -> None:  # noqa: B008 (frozen)
        self.source, self.selection = source, selection
        self.skipped: Counter[str] = Counter()
        self._isolated = IsolatedProcess()
        self._include = [re.compile(translate(glob)) for glob in selection.include]
        self._exclude = [re.compile(translate(glob)) for glob in selection.exclude]

    def __iter__(self) -> Iterator[Record]:
        try:
            yield from self._records()
        finally:
            self._isolated.close()

    def _records(self) -> Iterator[Record]:
        for file in list_files(self.source):
            name, source_format = self._name(file.uri), format_of(file.uri)
            if self._matches(self._exclude, name):
                self.skipped[FILTERED] += 1
            elif source_format and source_format.is_container:
                yield from self._members(file, name, source_format)
            elif self._include and not self._matches(self._include, name):
                self.skipped[FILTERED] += 1
            elif source_format is IMAGE or file.error or (says_image(file.uri) is None and peek(file)):
                yield from self._plain(file)
            else:
                self._skip(file.uri)

    def _name(self, uri: str) -> str:
        return uri.removeprefix(self.source).lstrip("/") or posixpath.basename(uri)

    def _plain(self, file: File) -> Iterator[Record]:
        return (entry for entry in list_image(file, self.selection) if isinstance(entry, Record))

    def _members(self, file: File, container: str, source_format: SourceFormat) -> Iterator[Record]:
        if file.error or valid_text(file.uri) != file.uri:
            yield from self._plain(file)
            return
        for member in self._entries(file, source_format):
            inner = member.member if isinstance(member, Record) else member
            name = f"{container}/{inner}" if inner and inner != file.uri else container
            if not isinstance(member, Record):
                self._skip(member)
            elif not member.error and not self._chosen(name):
                self.skipped[FILTERED] += 1
            else:
                yield member

    def _entries(self, file: File, source_format: SourceFormat) -> Iterator[Record | str]:
        """Yield what a container holds. One that breaks off yields one record for itself, with the error.

        A store that fails for all its retries raises: the manifest would lack what the container holds.
        """
        entries = self._listed(file, source_format)
        key = source_format.index_key(self.selection) if source_format.index_key else None
        try:
            yield from entries if key is None else remembered(file, key, entries)
        except OutageError:
            raise
        except Exception as error:  # noqa: BLE001 (the boundary around one container)
            what = "video" if source_format.in_sequence else "container"
            reason = f"the {what} cannot be read: {as_record_error(error, 'unreadable').reason}"
            yield Record(file.uri, size_bytes=file.size_bytes, etag=file.etag, error=reason)

    def _listed(self, file: File, source_format: SourceFormat) -> Iterator[Record | str]:
        """Yield what a container holds, listed in a process of its own; raise ValueError for more than `max_members` entries."""
        function, limit_s = f"{list_container.__module__}:{list_container.__name__}", self.selection.timeout_s
        facts = asdict(file), asdict(self.selection)
        for count, entry in enumerate(self._isolated.call(function, source_format.name, *facts, timeout_s=limit_s)):
            if count == self.selection.max_members:
                raise ValueError(f"it holds more than {count} members (--max-members)")
            if isinstance(entry, str):
                yield entry
            else:
                member, offset, stored_bytes, time_ms, size_bytes = entry
                yield Record(file.uri, member, offset, stored_bytes, time_ms, size_bytes, file.etag)

    def _chosen(self, name: str) -> bool:
        return not self._matches(self._exclude, name) and (not self._include or self._matches(self._include, name))

    @staticmethod
    def _matches(globs: list[re.Pattern[str]], name: str) -> bool:
        return any(glob.match(name) for glob in globs)

    def _skip(self, name: str) -> None:
        self.skipped[os.path.splitext(name)[1].lower() or "(none)"] += 1
