"""List an archive: yield each image and each sampled frame below a source as a record, in a fixed order; count the rest."""

import logging
import os
import posixpath
import re
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, replace
from fnmatch import translate
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from threading import Event
from uuid import uuid4

from fer_pipeline.archive.file_list import LIST_EXTENSIONS, LIST_NEEDS, FileList
from fer_pipeline.archive.files import LINK, NOT_REGULAR, File, Selection, name_below, valid_text
from fer_pipeline.archive.formats import FORMATS, format_at, format_of, kind_at
from fer_pipeline.archive.formats.images import IMAGE, list_image, says_image
from fer_pipeline.archive.formats.spec import SourceFormat
from fer_pipeline.archive.formats.tiffs import TIFF_PAGES
from fer_pipeline.archive.formats.videos import VIDEO
from fer_pipeline.archive.index import (
    error_of,
    is_kept,
    keep,
    may_be_kept,
    path_of,
    read_index,
    rescue_index,
    unkept_indexes,
    write_index,
)
from fer_pipeline.archive.record import UNREADABLE, Record, Skipped
from fer_pipeline.archive.walk import list_files
from fer_pipeline.base import storage
from fer_pipeline.base.boundary import as_record_error
from fer_pipeline.base.errors import OutageError, RecordError
from fer_pipeline.base.isolated import IsolatedProcess, ProcessDiedError, TimedOutError
from fer_pipeline.base.read_ahead import read_ahead

log = logging.getLogger(__name__)

FILTERED = "(filtered)"
COPIES = frozenset(
    ("@eaDir", ".@__thumb", ".thumbnails", "#recycle", "@Recycle", "$RECYCLE.BIN", "__MACOSX", ".picasaoriginals", "#snapshot")
)
"""Folders in which network storage, desktops and programs keep copies of pictures that are, or were, elsewhere."""
COPIES_ENDING = (".lrdata", ".lrcat-data")
"""How the folders of Lightroom's previews end."""
NOTABLE_BYTES = 1_000_000
"""Skipped bytes below this are no reason to warn."""
MOST_KINDS = 200
"""Most keys of `skipped`; names decide them, so a hostile source could have millions."""
CONTAINERS_AT_ONCE = min(8, 2 * (os.cpu_count() or 1))
MOST_UNOPENED = 8
"""Members of one container that may kill or hold up the process that opens them before its listing ends."""
PEEKS_AT_ONCE = 32
"""Files that are opened at once because their name does not tell their type."""
FILES_AHEAD = 10_000
"""Files that may wait behind one that is being opened."""


class Listing:
    """The records below a source. `skipped` counts the other files by extension and reason.

    `hidden` has the paths that cannot be listed: unreadable folders and broken links. `bytes_listed` and `bytes_skipped` are the
    sizes of files with records, and of files and members without, which no glob left out.
    """

    def __init__(
        self,
        source: str,
        selection: Selection = Selection(),  # noqa: B008 (frozen)
        indexes: str | None = None,
        index_elsewhere: "Callable[[File, Event], None] | None" = None,
        at_once: int = CONTAINERS_AT_ONCE,
        named: FileList | None = None,
    ) -> None:
        """`indexes`: the folder, beside a run or a table, that keeps the indexes of containers.

        `index_elsewhere`: tries to write a container's index there on another machine, and stops when the event is set.
        `at_once`: number of containers that are listed at once. `named`: only these files, which are below the source.
        """
        self.source, self.selection, self.indexes = source, selection, indexes
        self.index_elsewhere, self.at_once, self.named, self._over = index_elsewhere, at_once, named, Event()
        self.skipped: Counter[str] = Counter()
        self.hidden: list[str] = []
        self.bytes_listed = self.bytes_skipped = 0
        self._processes: SimpleQueue[IsolatedProcess] = SimpleQueue()
        """The idle processes; one that lists a container is taken out."""
        self._include = [re.compile(translate(glob)) for glob in selection.include]
        self._exclude = [re.compile(translate(glob)) for glob in selection.exclude]

    def __iter__(self) -> Generator[Record]:
        self._over.clear()
        self.hidden.clear()
        processes = [IsolatedProcess() for _ in range(self.at_once)]
        for process in processes:
            self._processes.put(process)
        try:
            with (
                unkept_indexes() as folder,
                ThreadPoolExecutor(PEEKS_AT_ONCE) as peeks,
                ThreadPoolExecutor(self.at_once) as containers,
            ):
                start = partial(self._start, peeks, containers, folder)
                try:
                    files = self.named.files() if self.named else list_files(self.source, self._lists_folder)
                    for _, records in read_ahead(files, start, FILES_AHEAD):
                        yield from records
                finally:
                    self._over.set()
                    for pool in (peeks, containers):
                        pool.shutdown(wait=False, cancel_futures=True)
        finally:
            for process in processes:
                process.close()

    def _start(self, peeks: Executor, containers: Executor, folder: Path, file: File) -> Iterator[Record]:
        """Start to open a file in a thread, if its name is not enough, and return its records."""
        name, source_format = name_below(self.source, file.uri), format_of(file.uri)
        if self._has_pages(file.uri):
            source_format = TIFF_PAGES
        if self._excluded(name, file.hides):
            self.skipped[FILTERED] += 1
            return iter(())
        if not self.named and (folder_of_copies := self._copies(name)):
            self._skip(Skipped(file.uri, f"copy in {folder_of_copies}", file.size_bytes))
            return iter(())
        if file.error == LINK:
            self._skip(Skipped(file.uri, LINK))
            return iter(())
        if file.hides:
            self.hidden.append(valid_text(file.uri))
        if source_format and source_format.is_container:
            if file.error or valid_text(file.uri) != file.uri:
                return self._plain(file)
            return self._members(file, source_format, containers.submit(self._indexed, file, source_format, folder), folder)
        if file.error:
            is_image = says_image(file.uri)
            is_record = is_image or file.is_folder or (is_image is None and file.error != NOT_REGULAR)
            if is_record and self.covers(file.uri, None, None, not file.etag):
                return self._plain(file)
            if is_record:
                self.skipped[FILTERED] += 1
            else:
                self._skip(Skipped(file.uri))
        elif says_image(file.uri) is None:
            return self._unknown(peeks.submit(self._look, containers, folder, file))
        elif not self._chosen(name):
            self.skipped[FILTERED] += 1
        elif source_format is IMAGE:
            return self._plain(file)
        else:
            self._skip(Skipped(file.uri, size_bytes=file.size_bytes))
        return iter(())

    def _look(self, containers: Executor, folder: Path, file: File) -> Iterator[Record] | Skipped | None:
        """Look at a file of unknown format: return its records, or why it has none; None if the globs exclude it."""
        try:
            kind = kind_at(file.uri, file.etag or None) if file.size_bytes else None
        except (RecordError, *storage.STORAGE_ERRORS) as error:  # as a record with an error: it may be a container with members
            storage.require_store(file.uri)
            return self._plain(replace(file, error=f"the file cannot be read: {storage.reason(error)}"))
        if valid_text(file.uri) != file.uri:
            return self._plain(file)
        source_format = FORMATS.get(kind.format or "") if kind else None
        if source_format and source_format.is_container:
            return self._members(file, source_format, containers.submit(self._indexed, file, source_format, folder), folder)
        if not self._chosen(name_below(self.source, file.uri)):
            return None
        if source_format:
            return self._plain(file)
        return Skipped(file.uri, kind.reason if kind else "", file.size_bytes)

    def _unknown(self, looked: "Future[Iterator[Record] | Skipped | None]") -> Iterator[Record]:
        found = looked.result()
        if isinstance(found, Skipped):
            self._skip(found)
        elif found is None:
            self.skipped[FILTERED] += 1
        else:
            yield from found

    def _plain(self, file: File) -> Iterator[Record]:
        for entry in list_image(file, self.selection):
            if isinstance(entry, Record):
                self.bytes_listed += file.size_bytes
                yield entry

    def _members(self, file: File, source_format: SourceFormat, indexed: "Future[Path]", folder: Path) -> Iterator[Record]:
        """Yield the records in a container. If its listing fails, also yield one record for the container, with the error.

        Raise OutageError if the store fails after all retries: otherwise the manifest would lack the container's records.
        """
        what = "video" if source_format is VIDEO else "container"
        try:
            path = indexed.result()
            try:
                left = file.size_bytes
                for entry in read_index(path, file):
                    if isinstance(entry, Skipped):  # a member of a compressed tar may be larger than the tar
                        entry = replace(entry, size_bytes=min(entry.size_bytes, left))
                        left -= entry.size_bytes
                    yield from self._member(file, entry)
                self.bytes_listed += left
                error = error_of(path) if path.parent == folder else None  # a kept index is complete
            finally:
                if path.parent == folder:
                    path.unlink(missing_ok=True)
        except OutageError:
            raise
        except Exception as fault:  # noqa: BLE001 (the boundary around one container)
            error = as_record_error(fault, "unreadable").reason
        if error:
            yield Record(file.uri, size_bytes=file.size_bytes, etag=file.etag, error=f"the {what} {UNREADABLE}: {error}")

    def _member(self, file: File, entry: Record | Skipped) -> Iterator[Record]:
        if isinstance(entry, Skipped):
            self._skip(entry)
        elif not self._chosen(self._name(file.uri, entry.member)):
            self.skipped[FILTERED] += 1
        elif folder := self._copies(entry.member or ""):
            self._skip(Skipped(entry.member or "", f"copy in {folder}", entry.size_bytes or 0))
        else:
            yield entry

    def _indexed(self, file: File, source_format: SourceFormat, folder: Path) -> Path:
        """Return the index of a container: the kept one, or else one made on another machine, or else one made here.

        Raise InterruptedError if the listing ends meanwhile.
        """
        kept = self._kept_path(file, source_format)
        if kept and is_kept(kept, file, self.indexes):
            return kept
        if kept and self.indexes and self.index_elsewhere:
            self.index_elsewhere(file, self._over)
            if self._over.is_set():
                raise InterruptedError("the listing is over")
            if is_kept(kept, file, self.indexes):
                return kept
        process = self._processes.get()
        try:
            return self._indexed_here(file, source_format, kept, process, folder)
        finally:
            self._processes.put(process)

    def _kept_path(self, file: File, source_format: SourceFormat) -> Path | None:
        """Return the path of a container's kept index; None if it is not kept, because the store does not report changes."""
        if source_format.index_key is None or not file.etag:
            return None
        return path_of(file, source_format.index_key(self.selection))

    def _indexed_here(
        self, file: File, source_format: SourceFormat, kept: Path | None, process: IsolatedProcess, folder: Path
    ) -> Path:
        """Make the index of a container in another process; keep it if it is complete, else leave it in `folder`."""
        temporary, function = folder / uuid4().hex, f"{write_index.__module__}:{write_index.__name__}"
        unopened = list[str]()
        while True:
            opening, selection = None, asdict(replace(self.selection, unopened=tuple(unopened)))
            facts = source_format.name, asdict(file), selection, str(temporary)
            try:
                for piece in process.call(function, *facts, timeout_s=self.selection.timeout_s):
                    opening = piece
                    if self._over.is_set():
                        raise InterruptedError("the listing is over")
            except (ProcessDiedError, TimedOutError) as error:
                if opening is not None and len(unopened) < MOST_UNOPENED:
                    unopened.append(opening)
                    continue
                rescue_index(temporary, file, as_record_error(error, "unreadable").reason)
            break
        if kept and may_be_kept(temporary):
            with suppress(OSError):
                keep(temporary, kept, self.indexes)
                return kept
        return temporary

    def index(self, file: File) -> None:
        """Write the index of a container to the folder `indexes`; raise ValueError if the container is damaged."""
        source_format, process = format_at(file.uri, file.etag or None), IsolatedProcess()
        if source_format is None:
            raise ValueError("it is no container")
        try:
            with unkept_indexes() as folder:
                path = self._indexed_here(file, source_format, self._kept_path(file, source_format), process, folder)
                if path.parent == folder:
                    raise ValueError(error_of(path) or "its index cannot be kept")
        finally:
            process.close()

    def covers(self, uri: str, member: str | None, time_ms: int | None, is_place: bool = False, is_failed: bool = False) -> bool:
        """Tell whether this listing would yield a record below the source if it still existed.

        `is_place`: it may represent a path that could not be listed, which the `include` globs do not filter. `is_failed`: its
        error says that a container could not be read (`UNREADABLE`).
        """
        name = name_below(self.source, uri)
        if (self.named and uri not in self.named) or self._excluded(name, is_place):
            return False
        if is_place and says_image(uri) is None:
            return True
        if member is None and time_ms is None:
            source_format = format_of(uri)
            may_be_container = is_failed and (says_image(uri) is None or self._has_pages(uri))
            if may_be_container or (source_format and source_format.is_container):
                return True
        return self._chosen(self._name(uri, member))

    def _has_pages(self, uri: str) -> bool:
        """Return whether each page of a file is a record."""
        return self.selection.pages == "all" and format_of(uri) is IMAGE and uri.lower().endswith(TIFF_PAGES.extensions)

    def _name(self, uri: str, member: str | None) -> str:
        """Return what the globs match: the path of a file, or of a member. A page of a TIFF has that of its file."""
        return name_below(self.source, uri, None if format_of(uri) is IMAGE else member)

    def _copies(self, name: str) -> str | None:
        """Return the folder on a path that holds copies (`COPIES`); None if there is none, or a glob of `include` names it."""
        folders = (part for part in name.split("/")[:-1] if part in COPIES or part.endswith(COPIES_ENDING))
        folder = next(folders, None) if "/" in name else None
        return None if folder and any(folder in glob for glob in self.selection.include) else folder

    def _lists_folder(self, folder: str) -> bool:
        """Return whether everything in a folder below the source is listed, as far as its name tells."""
        return not (self._include or self._exclude or self._copies(f"{name_below(self.source, folder)}/"))

    def _chosen(self, name: str) -> bool:
        return not self._matches(self._exclude, name) and (not self._include or self._matches(self._include, name))

    def _excluded(self, name: str, hides: bool) -> bool:
        """Tell whether a file is excluded; one that hides others also if everything below it is excluded."""
        return self._matches(self._exclude, name) or (hides and self._matches(self._exclude, f"{name}/"))

    @staticmethod
    def _matches(globs: list[re.Pattern[str]], name: str) -> bool:
        return any(glob.match(name) for glob in globs)

    def holds_nothing(self) -> str:
        """Return the sentence for a source without any record, which names what it holds instead."""
        found, is_list = self._skipped_text(), self.source.lower().endswith(LIST_EXTENSIONS)
        hint = f" {LIST_NEEDS}: name the column by --uri-column." if is_list else ""
        return f"The source '{self.source}' holds no images{f', only {found}' if found else ''}.{hint}"

    def _skipped_text(self) -> str:
        found = sorted(((count, key) for key, count in self.skipped.items() if key != FILTERED), reverse=True)
        return ", ".join(f"{count} {key}" for count, key in found)

    def log_skipped(self) -> None:
        """Log what got no record, by kind; warn if that is most of the source's bytes."""
        if found := self._skipped_text():
            log.info("Skipped: %s", found)
        total = self.bytes_listed + self.bytes_skipped
        if self.bytes_skipped > total / 2 and self.bytes_skipped > NOTABLE_BYTES:
            share = 100 * self.bytes_skipped / total
            log.warning("%.0f %% of the bytes of '%s' are in files that are skipped: see the line above.", share, self.source)

    def _skip(self, entry: Skipped) -> None:
        base = posixpath.basename(entry.name)
        if base.startswith("._"):
            entry = replace(entry, kind="metadata of macOS")
        extension = os.path.splitext(base)[1].lower() or (base if base.startswith(".") else "")
        key = extension if 1 < len(extension) <= 16 and extension.isprintable() else "(none)"
        key += f" ({entry.kind})" if entry.kind else ""
        self.skipped[key if key in self.skipped or len(self.skipped) < MOST_KINDS else "(other)"] += 1
        self.bytes_skipped += entry.size_bytes
