"""Walks the files at or below a path or URL, sorted by path. They are streamed, so millions of files need little memory.

On S3 the prefixes below a prefix are listed in parallel, in pages of 1,000 keys; one page at a time would take hours.
"""

import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from stat import S_ISDIR, S_ISREG

from fsspec.implementations.local import LocalFileSystem

from fer_pipeline.archive.files import NOT_REGULAR, File
from fer_pipeline.base import storage
from fer_pipeline.base.errors import UserError
from fer_pipeline.base.storage import s3

REQUESTS_AT_ONCE = 16
VERSION_MARK = "?versionId="


def list_files(source: str) -> Iterator[File]:
    """Yield the files at or below `source`, sorted by path. Raise UserError if `source` does not exist."""
    fs, path = storage.open_filesystem(source)
    if not fs.exists(path):
        raise UserError(f"The source '{source}' does not exist.")
    if isinstance(fs, LocalFileSystem):
        yield from _walk_local(path)
        return
    bucket, _, key = path.partition("/")
    prefix = f"{key}/" if key else ""
    if prefix:
        first = s3.list_page(bucket, prefix, most=1)
        if not first.objects and not first.prefixes:
            info = fs.info(path)
            yield File(source, int(info["size"] or 0), s3.strong(str(info.get("ETag", ""))))
            return
    with ThreadPoolExecutor(REQUESTS_AT_ONCE, thread_name_prefix="list") as pool:
        yield from _S3Walk(bucket, pool).walk(prefix)


def _walk_local(path: str, above: tuple[str, ...] = ()) -> Iterator[File]:
    try:
        stat = os.stat(path)
    except OSError as error:  # a broken link, or a link to itself
        yield File(path, 0, "", f"the file cannot be found: {error.strerror}", hides=True)
        return
    if S_ISDIR(stat.st_mode):
        yield from _walk_folder(path, above)
    elif S_ISREG(stat.st_mode):
        yield File(path, stat.st_size, str(stat.st_mtime_ns))
    else:
        yield File(path, 0, "", NOT_REGULAR)


def _walk_folder(folder: str, above: tuple[str, ...]) -> Iterator[File]:
    real = os.path.realpath(folder)
    if real in above:  # a link to a folder above
        return
    try:
        names = sorted(os.listdir(folder))  # noqa: PTH208 (a folder may hold millions of names)
    except OSError as error:
        yield File(folder, 0, "", f"the folder cannot be listed: {error.strerror}", hides=True, is_folder=True)
        return
    for name in names:
        yield from _walk_local(os.path.join(folder, name), (*above, real))


def _unreadable(key: str) -> str | None:
    """Return why an object cannot be read by its key; None if it can."""
    if VERSION_MARK in key:
        return f"its key contains '{VERSION_MARK}', which s3fs reads as a version: rename it"
    return "its key has a part '.' or '..', which some software resolves: rename it" if storage.leads_elsewhere(key) else None


class _S3Walk:
    """Lists prefixes of one bucket. Requests each page before it is needed."""

    def __init__(self, bucket: str, pool: ThreadPoolExecutor) -> None:
        self.bucket, self.pool = bucket, pool

    def walk(self, prefix: str, first: Future[s3.Page] | None = None) -> Iterator[File]:
        """Yield the files below a prefix. `first` is its first page, if that was requested already."""
        pending: Future[s3.Page] | None = first or self._request(prefix)
        while pending:
            page = pending.result()
            pending = self._request(prefix, page.token) if page.token else None
            yield from self._entries(page, prefix)

    def _request(self, prefix: str, token: str | None = None) -> Future[s3.Page]:
        return self.pool.submit(s3.list_page, self.bucket, prefix, token)

    def _entries(self, page: s3.Page, prefix: str) -> Iterator[File]:
        """Yield the files of a page and those below its prefixes, sorted by path."""
        files = {key: (size_bytes, etag) for key, size_bytes, etag in page.objects if not key.endswith("/")}
        below = deque(sorted(name for name in page.prefixes if name != prefix))
        requested: dict[str, Future[s3.Page]] = {}
        for name in sorted([*files, *below]):
            if name in files:
                yield File(f"s3://{self.bucket}/{name}", *files[name], _unreadable(name))
                continue
            while below and len(requested) < REQUESTS_AT_ONCE:
                ahead = below.popleft()
                requested[ahead] = self._request(ahead)
            yield from self.walk(name, requested.pop(name))
