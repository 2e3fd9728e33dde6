"""The files at or below a place, sorted by path: streamed, so that millions of them never stand in memory at once.

On S3 the prefixes below a prefix are listed side by side, a page of 1,000 keys each; a page at a time would take hours.
"""

import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from stat import S_ISDIR, S_ISREG
from typing import Any

from fsspec.implementations.local import LocalFileSystem
from s3fs import S3FileSystem

from fer_pipeline.core import storage
from fer_pipeline.core.errors import UserError
from fer_pipeline.sources.files import NOT_REGULAR, File

SIDE_BY_SIDE = 16
VERSION = "?versionId="
Page = dict[str, Any]


def list_files(source: str) -> Iterator[File]:
    """Yield the files at or below `source`, sorted by path; raise UserError where there is nothing."""
    fs, path = storage.open_filesystem(source)
    if not fs.exists(path):
        raise UserError(f"The source '{source}' does not exist.")
    if isinstance(fs, LocalFileSystem):
        yield from _walk_local(path)
        return
    bucket, _, key = path.partition("/")
    prefix = f"{key}/" if key else ""
    if prefix and not fs.call_s3("list_objects_v2", Bucket=bucket, Prefix=prefix, MaxKeys=1).get("Contents"):
        info = fs.info(path)
        yield File(source, int(info["size"] or 0), _etag(info))
        return
    with ThreadPoolExecutor(SIDE_BY_SIDE, thread_name_prefix="list") as pool:
        yield from _S3Walk(fs, bucket, pool).walk(prefix)


def _etag(info: dict[str, Any]) -> str:
    return storage.strong(str(info.get("ETag", "")))


def _walk_local(path: str, above: tuple[str, ...] = ()) -> Iterator[File]:
    try:
        stat = os.stat(path)
    except OSError as error:  # a link to nowhere, or to itself
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
    if real in above:  # a link back up
        return
    try:
        names = sorted(os.listdir(folder))  # noqa: PTH208 (names alone: a folder may hold millions)
    except OSError as error:
        yield File(folder, 0, "", f"the folder cannot be listed: {error.strerror}", hides=True, is_folder=True)
        return
    for name in names:
        yield from _walk_local(os.path.join(folder, name), (*above, real))


def _unreadable(key: str) -> str | None:
    """Return why an object cannot be read by its key, if it cannot."""
    if VERSION in key:
        return f"its key holds '{VERSION}', which s3fs takes for a version: rename it"
    return "its key has a part '.' or '..', which some take for a way: rename it" if storage.leads_elsewhere(key) else None


class _S3Walk:
    """Lists prefixes of one bucket, each page asked for before it is needed."""

    def __init__(self, fs: S3FileSystem, bucket: str, pool: ThreadPoolExecutor) -> None:
        self.fs, self.bucket, self.pool = fs, bucket, pool

    def walk(self, prefix: str, first: Future[Page] | None = None) -> Iterator[File]:
        """Yield the files below a prefix; `first` is its first page, where that was asked for already."""
        coming: Future[Page] | None = first or self._ask(prefix)
        while coming:
            page = coming.result()
            token = page.get("NextContinuationToken") if page.get("IsTruncated") else None
            coming = self._ask(prefix, token) if token else None
            yield from self._entries(page, prefix)

    def _ask(self, prefix: str, token: str | None = None) -> Future[Page]:
        more = {"ContinuationToken": token} if token else {}
        return self.pool.submit(
            self.fs.call_s3, "list_objects_v2", Bucket=self.bucket, Prefix=prefix, Delimiter="/", MaxKeys=1000, **more
        )

    def _entries(self, page: Page, prefix: str) -> Iterator[File]:
        """Yield a page's files and those below its prefixes, in order of their paths."""
        files = {entry["Key"]: entry for entry in page.get("Contents", []) if not entry["Key"].endswith("/")}
        below = deque(sorted(entry["Prefix"] for entry in page.get("CommonPrefixes", []) if entry["Prefix"] != prefix))
        asked: dict[str, Future[Page]] = {}
        for name in sorted([*files, *below]):
            if name in files:
                entry = files[name]
                yield File(f"s3://{self.bucket}/{name}", int(entry["Size"]), _etag(entry), _unreadable(name))
                continue
            while below and len(asked) < SIDE_BY_SIDE:
                ahead = below.popleft()
                asked[ahead] = self._ask(ahead)
            yield from self.walk(name, asked.pop(name))
