"""Listing an archive: every image and sampled frame below a source as a record, in a fixed order; the rest is counted."""

import os
import re
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import asdict
from fnmatch import translate
from functools import partial
from queue import SimpleQueue
from threading import Event
from typing import Any

from fer_pipeline.core.boundary import as_record_error
from fer_pipeline.core.errors import OutageError
from fer_pipeline.core.isolated import IsolatedProcess
from fer_pipeline.core.manifest import Record
from fer_pipeline.sources.background import Background
from fer_pipeline.sources.files import NOT_REGULAR, File, Selection, name_below, valid_text
from fer_pipeline.sources.formats import format_of, list_container
from fer_pipeline.sources.formats.images import IMAGE, list_image, peek, says_image
from fer_pipeline.sources.formats.spec import SourceFormat
from fer_pipeline.sources.index import remembered, remove_forgotten
from fer_pipeline.sources.walk import list_files

FILTERED = "(filtered)"
CONTAINERS_AT_ONCE = min(8, 2 * (os.cpu_count() or 1))
SIDE_BY_SIDE, FILES_AHEAD = 32, 10_000
"""Files that are looked into at once, and files that wait behind one of them."""


class Listing:
    """The records below a source; `skipped` counts, by extension, the files that are none.

    `hidden` are the places that cannot be listed: folders, and links that lead nowhere now.
    """

    def __init__(
        self,
        source: str,
        selection: Selection = Selection(),  # noqa: B008 (frozen)
        indexes: str | None = None,
        index_elsewhere: "Callable[[File, Event], None] | None" = None,
        at_once: int = CONTAINERS_AT_ONCE,
    ) -> None:
        """`indexes` is the folder, beside a run or a table, that keeps what containers hold.

        `index_elsewhere` puts a container's index there from another machine, if it can, and gives up where the event is set;
        `at_once` containers are listed.
        """
        self.source, self.selection, self.indexes = source, selection, indexes
        self.index_elsewhere, self.at_once, self._over = index_elsewhere, at_once, Event()
        self.skipped: Counter[str] = Counter()
        self.hidden: list[str] = []
        self._processes: SimpleQueue[IsolatedProcess] = SimpleQueue()
        """Those that list a container at the time are not here."""
        self._include = [re.compile(translate(glob)) for glob in selection.include]
        self._exclude = [re.compile(translate(glob)) for glob in selection.exclude]

    def __iter__(self) -> Iterator[Record]:
        remove_forgotten()
        self._over.clear()
        self.hidden.clear()
        processes = [IsolatedProcess() for _ in range(self.at_once)]
        for process in processes:
            self._processes.put(process)
        waiting: deque[tuple[Iterator[Record], Background[Any] | None]] = deque()
        try:
            with ThreadPoolExecutor(SIDE_BY_SIDE) as peeks, ThreadPoolExecutor(self.at_once) as containers:
                try:
                    yield from self._records(peeks, containers, waiting)
                finally:
                    self._over.set()
                    for _, background in waiting:
                        if background:
                            background.stop()
                    containers.shutdown(wait=False, cancel_futures=True)
        finally:
            for process in processes:
                process.close()

    def _records(
        self, peeks: Executor, containers: Executor, waiting: "deque[tuple[Iterator[Record], Background[Any] | None]]"
    ) -> Iterator[Record]:
        """Yield the records in order; what must be looked into is begun some files before it is `waiting` no more.

        A pool begins containers in order and has a process for each of its threads: the one that is read next never waits for
        one behind it.
        """
        looked_into, most = 0, max(SIDE_BY_SIDE, 2 * self.at_once)
        for file in list_files(self.source):
            records, background = self._begun(file, peeks, containers)
            waiting.append((records, background))
            looked_into += background is not None
            while waiting and (waiting[0][1] is None or looked_into > most or len(waiting) > FILES_AHEAD):
                records, background = waiting[0]
                yield from records
                waiting.popleft()
                looked_into -= background is not None
        while waiting:
            yield from waiting[0][0]
            waiting.popleft()

    def _begun(self, file: File, peeks: Executor, containers: Executor) -> tuple[Iterator[Record], Background[Any] | None]:
        """Return the records of a file, and what looks into it in the background, where it must be looked into."""
        name, source_format = name_below(self.source, file.uri), format_of(file.uri)
        if self._excluded(name, file.hides):
            self.skipped[FILTERED] += 1
            return iter(()), None
        if file.hides:
            self.hidden.append(valid_text(file.uri))
        if source_format and source_format.is_container:
            if file.error or valid_text(file.uri) != file.uri:
                return self._plain(file), None
            entries = Background(containers, partial(self._entries, file, source_format))
            return self._members(file, name, entries), entries
        if file.error:
            said = says_image(file.uri)
            is_record = said or file.is_folder or (said is None and file.error != NOT_REGULAR)
            if is_record and self.covers(file.uri, None, None, not file.etag):
                return self._plain(file), None
            if is_record:
                self.skipped[FILTERED] += 1
            else:
                self._skip(file.uri)
        elif self._include and not self._matches(self._include, name):
            self.skipped[FILTERED] += 1
        elif source_format is IMAGE:
            return self._plain(file), None
        elif says_image(file.uri) is None:
            looked = Background(peeks, lambda: iter([peek(file)]))
            return self._if_image(file, looked), looked
        else:
            self._skip(file.uri)
        return iter(()), None

    def _if_image(self, file: File, looked: Iterable[bool]) -> Iterator[Record]:
        if all(looked):
            yield from self._plain(file)
        else:
            self._skip(file.uri)

    def _plain(self, file: File) -> Iterator[Record]:
        return (entry for entry in list_image(file, self.selection) if isinstance(entry, Record))

    def _members(self, file: File, container: str, entries: Iterable[Record | str]) -> Iterator[Record]:
        for member in entries:
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
        elsewhere = self._elsewhere if self.index_elsewhere else None
        try:
            yield from entries if key is None else remembered(file, key, entries, self.indexes, elsewhere)
        except OutageError:
            raise
        except Exception as error:  # noqa: BLE001 (the boundary around one container)
            if self._over.is_set():
                return
            what = "video" if source_format.in_sequence else "container"
            reason = f"the {what} cannot be read: {as_record_error(error, 'unreadable').reason}"
            yield Record(file.uri, size_bytes=file.size_bytes, etag=file.etag, error=reason)

    def _elsewhere(self, file: File) -> None:
        """Have the index of a container made by another machine; raise InterruptedError where the listing is over meanwhile."""
        assert self.index_elsewhere
        self.index_elsewhere(file, self._over)
        if self._over.is_set():
            raise InterruptedError("the listing is over")

    def _listed(self, file: File, source_format: SourceFormat) -> Iterator[Record | str]:
        """Yield what a container holds, listed in a process of its own; raise ValueError for more than `max_members` entries."""
        function, limit_s = f"{list_container.__module__}:{list_container.__name__}", self.selection.timeout_s
        facts = asdict(file), asdict(self.selection)
        process = self._processes.get()
        try:
            for count, entry in enumerate(process.call(function, source_format.name, *facts, timeout_s=limit_s)):
                if self._over.is_set():
                    raise InterruptedError("the listing is over")
                if count == self.selection.max_members:
                    raise ValueError(f"it holds more than {count} members (--max-members)")
                if isinstance(entry, str):
                    yield entry
                else:
                    member, offset, stored_bytes, time_ms, size_bytes = entry
                    yield Record(file.uri, member, offset, stored_bytes, time_ms, size_bytes, file.etag)
        finally:
            self._processes.put(process)

    def index(self, file: File) -> None:
        """Put the index of a container into the folder `indexes`; raise what the listing of a damaged one raises."""
        source_format = format_of(file.uri)
        assert source_format and source_format.index_key
        self._processes.put(process := IsolatedProcess())
        try:
            for _ in remembered(file, source_format.index_key(self.selection), self._listed(file, source_format), self.indexes):
                pass
        finally:
            process.close()

    def covers(self, uri: str, member: str | None, time_ms: int | None, is_place: bool = False) -> bool:
        """Tell whether a record is one that this listing would yield, were it still in the source, which it must be below.

        `is_place`: whether it may stand for a place that could not be listed, whatever is included.
        """
        name = name_below(self.source, uri)
        if self._excluded(name, is_place):
            return False
        if is_place and says_image(uri) is None:
            return True
        if member is None and time_ms is None and (source_format := format_of(uri)) and source_format.is_container:
            return True  # it stands for a container that cannot be read
        return self._chosen(f"{name}/{member}" if member else name)

    def _chosen(self, name: str) -> bool:
        return not self._matches(self._exclude, name) and (not self._include or self._matches(self._include, name))

    def _excluded(self, name: str, hides: bool) -> bool:
        """Tell whether a file is left out; one that hides others also where all below it is."""
        return self._matches(self._exclude, name) or (hides and self._matches(self._exclude, f"{name}/"))

    @staticmethod
    def _matches(globs: list[re.Pattern[str]], name: str) -> bool:
        return any(glob.match(name) for glob in globs)

    def _skip(self, name: str) -> None:
        self.skipped[os.path.splitext(name)[1].lower() or "(none)"] += 1
