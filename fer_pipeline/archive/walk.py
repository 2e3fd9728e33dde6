"""Walks the files at or below a path or URL, sorted by path. They are streamed, so millions of files need little memory.

On a store the prefixes below a prefix are listed in parallel, in pages of 1,000 keys; one page at a time would take hours.
"""

import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from stat import S_ISDIR, S_ISREG

from fer_pipeline.archive.files import LINK, NOT_REGULAR, File
from fer_pipeline.base import storage
from fer_pipeline.base.errors import UserError
from fer_pipeline.base.storage import objects
from fer_pipeline.base.storage.s3 import Page

REQUESTS_AT_ONCE = 16
VERSION_MARK = "?versionId="
ListsFolder = Callable[[str], bool]


def list_files(source: str, lists: ListsFolder = lambda folder: True) -> Iterator[File]:
    """Yield the files at or below `source`, sorted by path. Raise UserError if `source` does not exist.

    `lists`: whether everything in a folder is listed, so that links to it need not be followed.
    """
    if not storage.exists(source):
        raise UserError(f"The source '{source}' does not exist.")
    place = storage.normalize(source)
    if storage.is_local(place):
        yield from _LocalWalk(place, lists).walk(place)
        return
    scheme, bucket, key = objects.split(place)
    prefix = f"{key}/" if key else ""
    if prefix and not objects.holds_any(f"{place}/"):
        yield File(source, *storage.size_and_etag(source))
        return
    with ThreadPoolExecutor(REQUESTS_AT_ONCE, thread_name_prefix="list") as pool:
        yield from _StoreWalk(f"{scheme}://{bucket}/", pool).walk(prefix)


def file_of(path: str, stat: os.stat_result) -> File:
    """Return what `os.stat` says of a local file; one that is not regular has an error."""
    if S_ISREG(stat.st_mode):
        return File(path, stat.st_size, str(stat.st_mtime_ns))
    return File(path, 0, "", NOT_REGULAR)


class _LocalWalk:
    """Walks a folder of this machine. A link to a folder is followed once, and never into a folder that is listed anyway."""

    def __init__(self, root: str, lists: ListsFolder) -> None:
        self._lists = lists
        self._names = {os.path.realpath(root): root}
        """The names under which the source, and the folders that links lead to, are listed, by their real paths."""

    def walk(self, path: str, above: tuple[str, ...] = ()) -> Iterator[File]:
        """Yield the files at or below a path, sorted. `above`: the real paths of the folders that lead to it."""
        try:
            stat = os.stat(path)
        except OSError as error:  # a broken link, or a link to itself
            yield File(path, 0, "", f"the file cannot be found: {error.strerror}", hides=True)
            return
        if S_ISDIR(stat.st_mode):
            yield from self._folder(path, above)
        else:
            yield file_of(path, stat)

    def _folder(self, folder: str, above: tuple[str, ...]) -> Iterator[File]:
        real = os.path.realpath(folder)
        if real in above or self._is_listed(folder, real):
            yield File(folder, 0, "", LINK, is_folder=True)
            return
        if Path(folder).is_symlink() and self._lists(folder):
            self._names.setdefault(real, folder)
        try:
            names = sorted(os.listdir(folder))  # noqa: PTH208 (a folder may hold millions of names)
        except OSError as error:
            yield File(folder, 0, "", f"the folder cannot be listed: {error.strerror}", hides=True, is_folder=True)
            return
        for name in names:
            yield from self.walk(os.path.join(folder, name), (*above, real))

    def _is_listed(self, folder: str, real: str) -> bool:
        """Return whether a folder is listed under another name, before it or after it."""
        if self._names.get(real, folder) != folder:
            return True
        return (
            Path(folder).is_symlink() and real not in self._names and any(self._shows(real, one) for one in self._names.items())
        )

    def _shows(self, real: str, listed: tuple[str, str]) -> bool:
        """Return whether a folder is below another one, and listed under its name."""
        root, name = listed
        return storage.is_below(real, root) and self._lists(name + real[len(root) :])


def unreadable(url: str, key: str) -> str | None:
    """Return why an object cannot be read by its key; None if it can."""
    if VERSION_MARK in key:
        return f"its key contains '{VERSION_MARK}', which s3fs reads as a version: rename it"
    if not objects.is_plain(url) and not objects.needs_s3fs(url):
        return "its key has an empty part or a control character, which obstore changes: rename it"
    return "its key has a part '.' or '..', which some software resolves: rename it" if storage.leads_elsewhere(key) else None


class _StoreWalk:
    """Lists prefixes of one bucket. Requests each page before it is needed."""

    def __init__(self, root: str, pool: ThreadPoolExecutor) -> None:
        self.root, self.pool = root, pool

    def walk(self, prefix: str, first: Future[Page] | None = None) -> Iterator[File]:
        """Yield the files below a prefix. `first` is its first page, if that was requested already."""
        pending: Future[Page] | None = first or self._request(prefix)
        while pending:
            page = pending.result()
            pending = self._request(prefix, page.token) if page.token else None
            yield from self._entries(page, prefix)

    def _request(self, prefix: str, token: str | None = None) -> Future[Page]:
        return self.pool.submit(objects.list_page, f"{self.root}{prefix}", token)

    def _entries(self, page: Page, prefix: str) -> Iterator[File]:
        """Yield the files of a page and those below its prefixes, sorted by path."""
        files = {key: (size_bytes, etag) for key, size_bytes, etag in page.objects if not key.endswith("/")}
        below = deque(sorted(name for name in page.prefixes if name != prefix))
        requested: dict[str, Future[Page]] = {}
        for name in sorted([*files, *below]):
            if name in files:
                yield File(url := f"{self.root}{name}", *files[name], unreadable(url, name))
                continue
            while below and len(requested) < REQUESTS_AT_ONCE:
                ahead = below.popleft()
                requested[ahead] = self._request(ahead)
            yield from self.walk(name, requested.pop(name))
