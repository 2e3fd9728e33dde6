"""The one way to files: local paths and `s3://` URLs through fsspec, so endpoint and credentials are set once, as AWS users do.

Every write is atomic: a temporary file and a rename locally, one PUT on an object store.
"""

import errno
import os
import posixpath
import re
import time
import uuid
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import aiohttp
import fsspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from botocore.exceptions import BotoCoreError, ConnectTimeoutError, EndpointConnectionError, HTTPClientError
from botocore.exceptions import ConnectionError as BotoConnectionError
from botocore.session import Session
from fsspec.implementations.local import LocalFileSystem
from pyarrow.fs import FileSystem, FSSpecHandler, PyFileSystem
from pyarrow.fs import LocalFileSystem as ArrowLocalFileSystem
from s3fs import S3FileSystem
from s3fs.core import _error_wrapper
from s3fs.utils import FileExpired

from fer_pipeline.core.errors import ChangedError, OutageError, UserError
from fer_pipeline.core.memory import bounded_read

STORAGE_ERRORS = (OSError, BotoCoreError, aiohttp.ClientError)
"""What a file that is missing, forbidden or unreachable raises, locally and on S3."""

UMASK = "FER_PIPELINE_UMASK"
"""Environment variable: the user's umask, for processes that were started under a stricter one (`jobs/cluster.py`)."""
if UMASK in os.environ:
    os.umask(int(os.environ[UMASK], 8))

NO_HARD_LINKS = {errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK}
"""What file systems say that have none: FUSE mounts of stores, FAT."""
RESERVED_S = 2.0
"""How long a name without hard links may stay reserved before its maker is taken for dead."""
FOOTER_BYTES, GAP_BYTES = 64 * 1024, 256 * 1024
"""How much of a Parquet file's end is read first, and what is read in vain between two columns rather than by another request."""
MOST_TEXT_BYTES = 64 * 1024**2
"""Of a record as text: a model's card with the confusions of 1,000 classes has 30."""
MOST_CATEGORY_BYTES = 4096
"""Of a status, a model, a digest: the longest value of a column of few."""
ATTEMPTS = 8
CONNECTIONS = 32


def is_local(url: str) -> bool:
    """Tell whether `url` is a path on this machine."""
    return "://" not in url or url.startswith("file://")


def normalize(url: str) -> str:
    """Return a local path made absolute, or an s3:// URL without its trailing slash.

    Raise UserError for any other scheme: fsspec opens what other machines serve, and chains that read the environment. Raise it
    for a URL with credentials, without repeating them: it would stand in every row and message.
    """
    if is_local(url):
        return os.path.abspath(os.path.expanduser(url.removeprefix("file://")))
    scheme, _, rest = re.sub("^s3a://", "s3://", url).partition("://")
    if "@" in rest.partition("/")[0]:  # before the host, or the bucket
        raise UserError(f"A {scheme[:20]}:// URL with a user in it is not accepted: give credentials by the environment.")
    if scheme != "s3":
        raise UserError(
            f"'{reason(ValueError(url))[:200]}' is neither a local path nor an s3:// URL: copy what it names to one of them."
        )
    return f"{scheme}://{rest.rstrip('/')}"


def open_filesystem(url: str) -> tuple[Any, str]:
    """Return the fsspec filesystem of `url` and the path on it; raise UserError where `normalize` does."""
    place = normalize(url)
    if is_local(place):
        return LocalFileSystem(), place
    # Opened directly: a key may hold what fsspec takes for a chain of URLs or a version. Other processes write what this one
    # lists: a cached listing would deny files that exist. One request for a file, not a HEAD and its parts: sizes are known from
    # the listing, and files are read side by side.
    options = {"max_pool_connections": CONNECTIONS} | _patience()
    fs = fsspec.filesystem("s3", use_listings_cache=False, max_concurrency=1, config_kwargs=options)
    return fs, place.removeprefix("s3://")


def is_below(url: str, root: str) -> bool:
    """Tell whether a path or URL is the normalized `root` or below it: `..` is followed in a path, and leads nowhere in a key."""
    try:
        place = normalize(url)
    except UserError:
        return False
    if not is_local(place) and leads_elsewhere(place):
        return False
    return place == root or place.startswith(root.rstrip("/") + "/")


def leads_elsewhere(key: str) -> bool:
    """Tell whether a key has a part `.` or `..`, which some stores and libraries take for a way, and others for a name."""
    return bool({".", ".."} & set(unquote(key).split("/")))


def require_below(urls: Iterable[str], root: str, what: str) -> None:
    """Raise UserError unless all of `urls`, which stand in a file of `what`, are the normalized `root` or stand below it."""
    for url in urls:
        if not is_below(url, root):
            raise UserError(
                f"{what} names '{reason(ValueError(url))[:200]}', which is not below '{root}': somebody else wrote it, or it was "
                "copied. Nothing was read from there."
            )


def _patience() -> dict[str, Any]:
    """Return how often botocore tries again, unless the user has said so: with growing pauses, for about half a minute."""
    if {"AWS_MAX_ATTEMPTS", "AWS_RETRY_MODE"} & set(os.environ):
        return {}
    return {"retries": {"mode": "standard", "max_attempts": ATTEMPTS}}


def aws_session() -> tuple[Session, str, str]:
    """Return a session under this environment, its region and the store's endpoint."""
    return _aws_session(tuple(sorted(item for item in os.environ.items() if item[0].startswith("AWS_"))))


@lru_cache(1)
def _aws_session(environment: tuple[tuple[str, str], ...]) -> tuple[Session, str, str]:
    """Making one takes half a second."""
    session = Session()
    region = str(session.get_config_variable("region") or "us-east-1")
    return session, region, session.create_client("s3", region_name=region).meta.endpoint_url


def store_addresses() -> Iterator[str]:
    """Yield the addresses to which what reads and writes s3:// URLs connects: the store, and who gives out its credentials."""
    _, region, endpoint = aws_session()
    yield endpoint
    given = os.environ
    if {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"} <= set(given):
        return
    if "AWS_WEB_IDENTITY_TOKEN_FILE" in given:
        yield f"https://sts.{region}.amazonaws.com"
    if own := given.get("AWS_CONTAINER_CREDENTIALS_FULL_URI"):
        yield own
    elif "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI" in given:
        yield "http://169.254.170.2"
    elif given.get("AWS_EC2_METADATA_DISABLED", "").lower() != "true":
        yield given.get("AWS_EC2_METADATA_SERVICE_ENDPOINT", "http://169.254.169.254")


def require_access(*urls: str) -> None:
    """Raise UserError where one of `urls` is on a storage that cannot be reached or does not let us in."""
    for url in urls:
        try:
            if url.startswith("s3://"):
                _require_endpoint(url)
            exists(url)
        except STORAGE_ERRORS as error:
            raise UserError(f"'{url}' cannot be reached: {reason(error)}. Check the endpoint and the credentials.") from error


def _require_endpoint(url: str) -> None:
    """Ask the store with little patience: where none is set up, or nobody answers, the user need not wait for all retries."""
    _, path = open_filesystem(url)
    impatient = {"retries": {"mode": "standard", "max_attempts": 2}, "connect_timeout": 4}
    try:
        fsspec.filesystem("s3", use_listings_cache=False, skip_instance_cache=True, config_kwargs=impatient).exists(path)
    except (EndpointConnectionError, ConnectTimeoutError):
        raise
    except STORAGE_ERRORS:  # somebody answers: asked again with patience
        return


def encoded(url: str) -> str:
    """Return a normalized path or URL as a URL for libraries that parse it: `#`, `?`, `%` and spaces are percent-encoded.

    A path that is not encoded is cut at `#` and `?`, and `%20` is read as a space: it would mean another place.
    """
    scheme, separator, rest = url.partition("://") if not is_local(url) else ("file", "://", url.removeprefix("file://"))
    return f"{scheme}{separator}{quote(rest)}"


def join(url: str, *parts: str) -> str:
    """Return the URL or path of something below `url`."""
    return posixpath.join(url, *parts)


def checkpoint_filesystem(url: str) -> tuple[FileSystem, str]:
    """Return a pyarrow file system for Ray's checkpoints, which wants one, and the path on it; tables are not read by it."""
    fs, path = open_filesystem(url)
    return (ArrowLocalFileSystem() if isinstance(fs, LocalFileSystem) else PyFileSystem(FSSpecHandler(fs))), path


def exists(url: str) -> bool:
    """Tell whether a file or folder stands at `url`."""
    fs, path = open_filesystem(url)
    return bool(fs.exists(path))


def list_names(url: str) -> list[str]:
    """Return the sorted names directly below the folder `url`, as they are now; none where it does not exist."""
    fs, path = open_filesystem(url)
    try:
        found = _list_s3(fs, path) if isinstance(fs, S3FileSystem) else fs.ls(path, detail=False)
        names = [posixpath.basename(name.rstrip("/")) for name in found]
    except FileNotFoundError:
        return []
    return sorted(name for name in names if not name.endswith(".tmp"))


def list_below(url: str) -> list[str]:
    """Return the sorted paths, relative to the folder `url`, of all files below it, in folders too."""
    fs, path = open_filesystem(url)
    beginning = f"{path.rstrip('/')}/"
    return sorted(name.removeprefix(beginning) for name in fs.find(path) if name.startswith(beginning))


def _list_s3(fs: S3FileSystem, path: str) -> Iterator[str]:
    """Yield the keys and prefixes directly below a prefix, page by page, but for the marker that consoles make of a folder.

    `ls` would list all of the parent's where there are none.
    """
    bucket, _, key = path.partition("/")
    prefix, more = f"{key}/" if key else "", dict[str, str]()
    while True:
        page = fs.call_s3("list_objects_v2", Bucket=bucket, Prefix=prefix, Delimiter="/", **more)
        yield from (entry["Key"] for entry in page.get("Contents", []) if entry["Key"] != prefix)
        yield from (entry["Prefix"] for entry in page.get("CommonPrefixes", []))
        if not page.get("IsTruncated"):
            return
        more = {"ContinuationToken": page["NextContinuationToken"]}


def read_range(url: str, start: int, size: int, etag: str | None = None) -> bytes:
    """Return `size` bytes of a file from `start` on, or as many as there are; raise ChangedError as `read_bytes` does."""
    if size == 0:  # S3 answers an empty range with the whole object
        return b""
    return _read(url, start, start + size, etag)


def reason(error: BaseException) -> str:
    """Return what went wrong as one line, without what a URL's query or user part may give away."""
    text = str(error) if type(error) is ValueError else f"{type(error).__name__}: {error}"
    text = re.sub(r"(\w+://[^\s?'\"]*)\?[^\s'\"]*", r"\1", " ".join(text.split()))
    return re.sub(r"(\w+://)[^\s/@'\"]*@", r"\1", text)


def says_damage(error: BaseException) -> bool:
    """Tell whether an error of `STORAGE_ERRORS` is a file's: gzip, bz2 and Arrow raise OSError without a number."""
    return isinstance(error, OSError) and error.errno is None and not says_outage(error)


def says_outage(error: BaseException | None) -> bool:
    """Tell whether an error is that of a store that does not answer."""
    return isinstance(error, TimeoutError | ConnectionError | aiohttp.ClientError | BotoConnectionError | HTTPClientError)


def says_store_failed(error: BaseException | None) -> bool:
    """Tell whether a store did not answer, or answered that it failed (5xx): for this object, or for all of them."""
    return error is not None and (says_outage(error) or (_http_status(error) or 0) >= 500)


def require_store(url: str) -> None:
    """Raise OutageError where the store of `url` does not answer, or answers another question with 5xx, too."""
    if is_local(url):
        return
    fs, path = open_filesystem(url)
    try:
        fs.call_s3("list_objects_v2", Bucket=path.partition("/")[0], MaxKeys=1)
    except STORAGE_ERRORS as error:
        if says_store_failed(error):
            raise OutageError(f"the store of '{url}' fails: {reason(error)}") from error


def cache_folder() -> Path:
    """Return this user's folder for what can be fetched or made again: weights, container indexes."""
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "fer-pipeline"


def read_bytes(url: str, etag: str | None = None) -> bytes:
    """Return the content of one file; raise ChangedError where it is not the version of that etag, if there is one."""
    return _read(url, None, None, etag)


def read_small(url: str) -> bytes:
    """Return the content of a file that holds a record as text; raise UserError for one that no record fills."""
    data = read_range(url, 0, MOST_TEXT_BYTES + 1)
    if len(data) > MOST_TEXT_BYTES:
        raise UserError(f"'{url}' has more than {MOST_TEXT_BYTES >> 20} MiB: nothing of this project is as long. Move it away.")
    return data


def _read(url: str, start: int | None, end: int | None, etag: str | None) -> bytes:
    fs, path = open_filesystem(url)
    if etag and isinstance(fs, S3FileSystem):
        data, found = fsspec.asyn.sync(fs.loop, _get_s3, fs, path, start, end)
        if found != etag:
            raise ChangedError
        return data  # type: ignore[no-any-return]
    content: bytes = fs.cat_file(path, start=start, end=end)
    require_unchanged(url, etag)
    return content


async def _get_s3(fs: S3FileSystem, path: str, start: int | None, end: int | None) -> tuple[bytes, str]:
    """Return bytes of an object and the etag that came with them, by one request: s3fs's `_cat_file` keeps it to itself."""
    bucket, _, key = path.partition("/")
    limits = {} if start is None or end is None else {"Range": f"bytes={start}-{end - 1}"}

    async def get() -> tuple[bytes, str]:
        answer = await fs._call_s3("get_object", Bucket=bucket, Key=key, **limits)
        try:
            return await answer["Body"].read(), strong(answer["ETag"])
        finally:
            answer["Body"].close()

    return await _error_wrapper(get, retries=fs.retries)  # type: ignore[no-any-return]


def require_unchanged(url: str, etag: str | None) -> None:
    """Raise ChangedError where a local file is no more the version of that etag: to be called after its bytes were read.

    What is open on S3 needs no second look (`open_version`).
    """
    if etag and is_local(url) and not _same_time(os.stat(normalize(url)).st_mtime_ns, etag):
        raise ChangedError


def _same_time(mtime_ns: int, etag: str) -> bool:
    """Tell whether a file's mtime is the listed one, where two mounts may show it in steps of different length."""
    listed_ns = int(etag) if etag.isdecimal() else -1
    step = next((step for step in (10**9, 10**6, 10**3, 100) if mtime_ns % step == 0 or listed_ns % step == 0), 1)
    return mtime_ns // step == listed_ns // step


def strong(etag: str) -> str:
    """Return an etag without quotes and without the mark of a weak one, which a proxy may have added."""
    return etag.removeprefix("W/").strip('"')


def require_version(url: str, etag: str | None) -> None:
    """Raise ChangedError where a file, by now, is not the version of that etag; costs a request on S3."""
    require_unchanged(url, etag)
    fs, path = open_filesystem(url)
    if etag and isinstance(fs, S3FileSystem) and strong(str(fs.info(path).get("ETag", ""))) != etag:
        raise ChangedError


def open_version(url: str, etag: str | None, block_size: int) -> Any:
    """Open a file on a store; raise ChangedError where it is another version. s3fs reads on only while it is the same."""
    fs, path = open_filesystem(url)
    opened = fs.open(path, "rb", block_size=block_size)
    found = getattr(opened, "details", {}).get("ETag")
    if etag and found and strong(found) != etag:
        opened.close()
        raise ChangedError
    return opened


def says_changed(error: BaseException) -> bool:
    """Tell whether an error of reading an open file says that it is another one by now."""
    return isinstance(error, FileExpired)


def write_bytes(url: str, data: bytes) -> None:
    """Write one file atomically, over whatever stands there."""
    fs, path = open_filesystem(url)
    if not isinstance(fs, LocalFileSystem):
        fs.pipe_file(path, data)
        return
    temporary = _temporary(path, data)
    os.replace(temporary, path)


def create(url: str, data: bytes) -> bool:
    """Write one file unless it exists; return whether this call made it.

    Exclusive on a local disk and on stores with conditional writes; a store without them (501) gets a plain write.
    """
    fs, path = open_filesystem(url)
    if isinstance(fs, LocalFileSystem):
        temporary = _temporary(path, data)
        try:
            os.link(temporary, path)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in NO_HARD_LINKS:
                raise
            return _create_without_links(temporary, path)
        finally:
            Path(temporary).unlink(missing_ok=True)
        return True
    if fs.exists(path):
        return False
    try:
        fs.pipe_file(path, data, mode="create")
    except FileExistsError:
        return False
    except (NotImplementedError, *STORAGE_ERRORS) as error:
        status = _http_status(error)
        if status in (409, 412):  # another writer is at it, or was faster
            return False
        if status != 501 and not isinstance(error, NotImplementedError):
            raise
        fs.pipe_file(path, data)
    return True


def require_exclusive_writes(url: str) -> None:
    """Raise UserError for a store without conditional writes: two writers could not be kept apart there."""
    if is_local(url):
        return
    fs, path = open_filesystem(join(url, f"_probe-{uuid.uuid4().hex}"))
    try:
        fs.pipe_file(path, b"first", mode="create")
        fs.pipe_file(path, b"second", mode="create")
    except FileExistsError:
        return
    except (NotImplementedError, *STORAGE_ERRORS) as error:
        if _http_status(error) in (409, 412):
            return
        if _http_status(error) != 501 and not isinstance(error, NotImplementedError):
            raise
    finally:
        remove(join(url, posixpath.basename(path)))
    raise UserError(f"The store of '{url}' has no conditional writes, which a table needs: put it on another store, or locally.")


def _create_without_links(temporary: str, path: str) -> bool:
    """Reserve the name with an empty file and put the temporary one over it; an empty file that stays so has lost its maker."""
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        until = time.monotonic() + RESERVED_S
        while not os.stat(path).st_size and time.monotonic() < until:
            time.sleep(0.05)
        if os.stat(path).st_size:
            return False
    os.replace(temporary, path)
    return True


def _http_status(error: BaseException) -> int | None:
    """Return the HTTP status of the S3 answer behind an error, if there is one."""
    response = getattr(error.__cause__, "response", None) or getattr(error, "response", None) or {}
    status: int | None = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    return status


def remove(url: str) -> None:
    """Delete one file, if it is there."""
    fs, path = open_filesystem(url)
    try:
        fs.rm_file(path)
    except FileNotFoundError:
        return


def _temporary(path: str, data: bytes) -> str:
    """Write `data` to a new hidden file beside `path`, which readers of the folder pass over, and return its name."""
    folder, name = os.path.split(path)
    Path(folder).mkdir(parents=True, exist_ok=True)
    temporary = os.path.join(folder, f".{name}.{uuid.uuid4().hex}.tmp")
    try:
        with Path(temporary).open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())  # so that no power loss leaves a file of the name without its bytes
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return temporary


def write_table(url: str, table: pa.Table, row_group_size: int | None = None) -> int:
    """Write one Parquet file atomically; return its size in bytes."""
    data = table_bytes(table, row_group_size)
    write_bytes(url, data)
    return len(data)


def table_bytes(table: pa.Table, row_group_size: int | None = None) -> bytes:
    """Return a table as a Parquet file: zstd, with statistics."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", row_group_size=row_group_size)
    data: bytes = sink.getvalue().to_pybytes()
    return data


class Parquet(pq.ParquetFile):  # type: ignore[misc]
    """A Parquet file that somebody else may have written: read under a limit of memory, and without Python's extension types.

    Those are told by a name in its metadata, and some that libraries bring load pickles (Ray Data's objects do). Arrow's own,
    such as of a UUID, are plain values.
    """

    def __init__(self, source: Any, what: str, **options: Any) -> None:
        """`what` is read, for messages. Raise MemoryError beyond the limit, here and where it is read."""
        self.what = what
        try:
            with bounded_read(what):
                super().__init__(source, **options)
                schema = self.schema_arrow
        except pa.ArrowException:
            raise
        except ValueError as error:  # of whoever has registered a type, and cannot read what the file says of it
            raise pa.ArrowInvalid(f"the types of '{what}' cannot be read: {reason(error)[:200]}") from error
        for field in schema:
            if _is_extended(field.type):
                self.close()
                raise pa.ArrowInvalid(f"the column '{field.name[:100]}' of '{what}' has a type of an extension, {field.type}")

    def read(self, *arguments: Any, **options: Any) -> pa.Table:
        with bounded_read(self.what):
            return super().read(*arguments, **options)

    def read_row_group(self, *arguments: Any, **options: Any) -> pa.Table:
        with bounded_read(self.what):
            return super().read_row_group(*arguments, **options)

    def read_row_groups(self, *arguments: Any, **options: Any) -> pa.Table:
        with bounded_read(self.what):
            return super().read_row_groups(*arguments, **options)

    def iter_batches(self, *arguments: Any, **options: Any) -> Iterator[pa.RecordBatch]:
        batches = super().iter_batches(*arguments, **options)
        while True:
            with bounded_read(self.what):
                batch = next(batches, None)
            if batch is None:
                return
            yield batch


def _is_extended(kind: pa.DataType) -> bool:
    """Tell whether a type is an extension in Python, or has one within."""
    if isinstance(kind, pa.ExtensionType):
        return True
    if pa.types.is_dictionary(kind):
        return _is_extended(kind.value_type)
    return any(_is_extended(kind.field(index).type) for index in range(kind.num_fields))


def open_parquet(url: str) -> Parquet:
    """Return a Parquet file read whole, by one request: for those of megabytes at most, as a shard's are."""
    with bounded_read(url):
        return Parquet(pa.BufferReader(read_bytes(url)), url)


@contextmanager
def opened_parquet(url: str) -> Iterator[Parquet]:
    """Open a Parquet file of any size for a while; only what is asked for is read.

    By a handle: a dataset over a file system in Python (`PyFileSystem`) can abort the process at its exit with status 134, since
    threads of Arrow still hold Python objects (pyarrow 26).
    """
    fs, path = open_filesystem(url)
    if isinstance(fs, LocalFileSystem):
        with pa.OSFile(path) as opened:
            yield Parquet(opened, url)
        return
    with fs.open(path, "rb", cache_type="none") as opened:  # s3fs reads far ahead, pyarrow knows what it needs
        yield Parquet(opened, url, pre_buffer=False)


def read_columns(url: str, columns: list[str]) -> pa.Table:
    """Return some columns of a Parquet file; of a file on a store only they are read, neighbours by one request."""
    fs, path = open_filesystem(url)
    if isinstance(fs, LocalFileSystem):
        return Parquet(path, url).read(columns=columns)
    size = int(fs.info(path)["size"])
    whole = bytearray(size)  # of which the system gives the pages that are written
    _fill(fs, path, whole, [(max(0, size - FOOTER_BYTES), size)])
    footer = int.from_bytes(whole[-8:-4], "little") + 8
    if footer > FOOTER_BYTES:
        _fill(fs, path, whole, [(max(0, size - footer), size - FOOTER_BYTES)])
    metadata = Parquet(pa.BufferReader(whole), url).metadata
    _fill(fs, path, whole, list(_chunks(metadata, columns, size)))
    return Parquet(pa.BufferReader(whole), url, metadata=metadata).read(columns=columns)


def _chunks(metadata: Any, columns: list[str], size: int) -> Iterator[tuple[int, int]]:
    """Yield the first byte and the one behind the last of stretches of a file that hold some columns."""
    places = []
    for group in (metadata.row_group(index) for index in range(metadata.num_row_groups)):
        for column in (group.column(index) for index in range(group.num_columns)):
            if column.path_in_schema.partition(".")[0] in columns:
                start = min(filter(None, (column.dictionary_page_offset, column.data_page_offset)))
                places.append((start, start + column.total_compressed_size))
    places.sort()
    if places and not 0 <= places[0][0] <= max(end for _, end in places) <= size:
        raise pa.ArrowInvalid(f"a footer tells of columns outside of the {size} bytes of its file")
    while places:
        start, end = places.pop(0)
        while places and places[0][0] - end <= GAP_BYTES:
            end = max(end, places.pop(0)[1])
        yield start, end


def _fill(fs: Any, path: str, whole: bytearray, stretches: list[tuple[int, int]]) -> None:
    """Read stretches of a file into their places, side by side."""
    starts, ends = [start for start, _ in stretches], [end for _, end in stretches]
    found = fs.cat_ranges([path] * len(stretches), starts, ends, on_error="raise")
    for start, end, data in zip(starts, ends, found, strict=True):
        whole[start:end] = data


def groups_that_may_hold(parquet: Parquet, column: str, values: Sequence[Any]) -> list[int]:
    """Return the row groups whose statistics allow for one of `values` in a column."""
    wanted = sorted(set(values))

    def may(group: Any) -> bool:
        columns = (group.column(index) for index in range(group.num_columns))
        found = next((one.statistics for one in columns if one.path_in_schema == column), None)
        if not (found and found.has_min_max):
            return True
        place = bisect_left(wanted, found.min)
        return place < len(wanted) and bool(wanted[place] <= found.max)

    return [index for index in range(parquet.num_row_groups) if may(parquet.metadata.row_group(index))]


def read_table(url: str, columns: list[str] | None = None) -> pa.Table:
    """Return one Parquet file as a table."""
    return open_parquet(url).read(columns=columns)


@contextmanager
def ours(url: str, schema: pa.Schema, columns: list[str] | None = None) -> Iterator[Parquet]:
    """Open a Parquet file of this project, read whole; raise UserError for one of another schema, or that is damaged."""
    try:
        file = open_parquet(url)
        _require_types(file.schema_arrow, schema, columns or schema.names)
        yield file
    except (pa.ArrowException, OSError) as error:
        if not isinstance(error, pa.ArrowException) and not says_damage(error):
            raise
        raise UserError(f"'{url}' is not a table that this project wrote, or it is damaged: {reason(error)[:300]}") from error


def read_ours(url: str, schema: pa.Schema, columns: list[str] | None = None) -> pa.Table:
    """Return some columns, by default all, of a Parquet file of this project, as `ours` opens it."""
    with ours(url, schema, columns) as file, bounded_read(url):
        table = file.read(columns=columns)
        for name in table.column_names:
            _require_short(name, table[name])
        return table


def _require_short(name: str, column: pa.ChunkedArray) -> None:
    """Raise ArrowInvalid for a dictionary of long values: each takes its bytes once here, and once a row where it is unfolded."""
    for chunk in column.chunks if pa.types.is_dictionary(column.type) else ():
        if (pc.max(pc.binary_length(chunk.dictionary)).as_py() or 0) > MOST_CATEGORY_BYTES:
            raise pa.ArrowInvalid(f"its column '{name}' has a category of more than {MOST_CATEGORY_BYTES} bytes")


def _require_types(found: pa.Schema, wanted: pa.Schema, columns: list[str]) -> None:
    """Raise ArrowInvalid unless each of some columns is there, and of the type that it must have."""
    for name in columns:
        kind = found.field(name).type if name in found.names else "missing"
        if kind != wanted.field(name).type:
            raise pa.ArrowInvalid(f"its column '{name}' is {kind}, not {wanted.field(name).type}")
