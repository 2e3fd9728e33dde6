"""All access to files: local paths, and URLs of S3 (`s3://`), Google Cloud Storage (`gs://`) and Azure (`az://`).

Every write is atomic: a temporary file and a rename on a local disk, one PUT on an object store.
"""

import io
import os
import posixpath
import re
import sys
import tempfile
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote, unquote

import fsspec
from botocore.exceptions import BotoCoreError, ConnectTimeoutError, EndpointConnectionError, HTTPClientError
from botocore.exceptions import ConnectionError as BotoConnectionError
from fsspec.implementations.local import LocalFileSystem
from obstore.exceptions import BaseError as ObstoreError
from pyarrow.fs import FileSystem, FSSpecHandler, PyFileSystem
from pyarrow.fs import LocalFileSystem as ArrowLocalFileSystem

from fer_pipeline.base.errors import ChangedError, OutageError, UserError
from fer_pipeline.base.storage import local, objects, requests, s3
from fer_pipeline.base.temporary import temporary_folder

STORAGE_ERRORS: tuple[type[OSError], type[BotoCoreError], type[ObstoreError]]
"""The errors of a file that is missing, forbidden or unreachable, locally and on a store.

Name it where it is used, as `storage.STORAGE_ERRORS`: it holds those of s3fs once s3fs is loaded, which takes half a second that
few processes need.
"""


def _errors() -> Any:
    return (OSError, BotoCoreError, ObstoreError, *_of_loaded("aiohttp", "ClientError"))


def _of_loaded(module: str, name: str) -> tuple[type[Exception], ...]:
    """Return an exception class of a module, or nothing if the module is not loaded and so cannot have raised it."""
    found = getattr(sys.modules.get(module), name, None)
    return (found,) if found else ()


def __getattr__(name: str) -> Any:
    if name == "STORAGE_ERRORS":
        return _errors()
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")


UMASK = "FER_PIPELINE_UMASK"
"""Environment variable with the user's umask, for processes that start under a stricter one (`engine/connect.py`)."""
if UMASK in os.environ:
    os.umask(int(os.environ[UMASK], 8))

READ_BYTES = 5 * 1024**2
"""Size of a request of a file that is read from its start to its end."""
MOST_TEXT_BYTES = 64 * 1024**2
"""Largest record as text. A model card with the confusion matrix of 1,000 classes takes 30 MB."""


def is_local(url: str) -> bool:
    """Return whether `url` is a path on this machine."""
    return "://" not in url or url.startswith("file://")


def normalize(url: str) -> str:
    """Return a local path made absolute, or the URL of a store without its trailing slash.

    Raise UserError for any other scheme, because fsspec opens URLs of other machines, and chains that read the environment.
    Raise UserError for a URL with credentials too, without repeating them: a URL is part of every row and message.
    """
    if is_local(url):
        return os.path.abspath(os.path.expanduser(url.removeprefix("file://")))
    scheme, _, rest = re.sub("^s3a://", "s3://", url).partition("://")
    if "@" in rest.partition("/")[0]:  # before the host, or the bucket
        raise UserError(f"A {scheme[:20]}:// URL must not contain a user: set the credentials by the environment.")
    if scheme not in objects.SCHEMES:
        raise UserError(
            f"'{reason(ValueError(url))[:200]}' is neither a local path nor an s3://, gs:// or az:// URL: copy the data to one."
        )
    return f"{scheme}://{rest.rstrip('/')}"


def open_filesystem(url: str) -> tuple[Any, str]:
    """Return the fsspec filesystem of `url` and the path on it. Raise UserError as `normalize` does."""
    place = normalize(url)
    if is_local(place):
        return LocalFileSystem(), place
    scheme, _, path = place.partition("://")
    if scheme != "s3":
        return objects.filesystem(scheme), path
    # Not by fsspec.open: it reads a part of some keys as a chain of URLs or a version. No cached listings: they would miss files
    # that other processes write. One request for each file, not a HEAD and one request for each part: the listing knows the
    # sizes, and files are read in parallel.
    s3.aws_session()  # refuses an endpoint that is no URL
    options = {"max_pool_connections": requests.CONNECTIONS} | s3.retry_options()
    fs = fsspec.filesystem("s3", use_listings_cache=False, max_concurrency=1, config_kwargs=options)
    return fs, path


def is_below(url: str, root: str) -> bool:
    """Return whether a path or URL is the normalized `root` or below it. `..` is resolved in a path, and rejected in a key."""
    try:
        place = normalize(url)
    except UserError:
        return False
    if not is_local(place) and leads_elsewhere(place):
        return False
    return place == root or place.startswith(root.rstrip("/") + "/")


def leads_elsewhere(key: str) -> bool:
    """Return whether a key has a part `.` or `..`, which some stores and libraries resolve and others treat as a name."""
    return bool({".", ".."} & set(unquote(key).split("/")))


def require_below(urls: Iterable[str], roots: Sequence[str], what: str) -> None:
    """Raise UserError unless all of `urls`, which come from a file of `what`, are at or below one of the normalized `roots`."""
    for url in urls:
        if not any(is_below(url, root) for root in roots):
            raise UserError(
                f"{what} names '{reason(ValueError(url))[:200]}', which is not below '{' or '.join(roots)}': somebody else wrote "
                "it, or it was copied. Nothing was read from that place."
            )


def require_access(*urls: str) -> None:
    """Raise UserError if one of `urls` is on a storage that cannot be reached or denies access."""
    for url in urls:
        try:
            if url.startswith("s3://"):
                _require_endpoint(url)
            exists(url)
        except _errors() as error:
            raise UserError(f"'{url}' cannot be reached: {reason(error)}. Check the endpoint and the credentials.") from error


def _require_endpoint(url: str) -> None:
    """Ask the store once with few retries, so that the user does not wait long if no store answers."""
    _, path = open_filesystem(url)
    impatient = {"retries": {"mode": "standard", "max_attempts": 2}, "connect_timeout": 4}
    try:
        fsspec.filesystem("s3", use_listings_cache=False, skip_instance_cache=True, config_kwargs=impatient).exists(path)
    except (EndpointConnectionError, ConnectTimeoutError):
        raise
    except _errors():  # the store answers: the caller asks again, with all retries
        return


def encoded(url: str) -> str:
    """Return a normalized path or URL as a URL for libraries that parse it: `#`, `?`, `%` and spaces are percent-encoded.

    Such a library cuts an unencoded path at `#` and `?`, and reads `%20` as a space, so it would open another place.
    """
    scheme, separator, rest = url.partition("://") if not is_local(url) else ("file", "://", url.removeprefix("file://"))
    return f"{scheme}{separator}{quote(rest)}"


def join(url: str, *parts: str) -> str:
    """Return the URL or path of `parts` below `url`."""
    return posixpath.join(url, *parts)


def checkpoint_filesystem(url: str) -> tuple[FileSystem, str]:
    """Return a pyarrow file system, which Ray needs for checkpoints, and the path on it. Tables are not read through it."""
    fs, path = open_filesystem(url)
    return (ArrowLocalFileSystem() if isinstance(fs, LocalFileSystem) else PyFileSystem(FSSpecHandler(fs))), path


def exists(url: str) -> bool:
    """Return whether a file or folder exists at `url`."""
    place = normalize(url)
    if is_local(place) or objects.needs_s3fs(place):
        fs, path = open_filesystem(url)
        return bool(fs.exists(path))
    return objects.exists(place)


def list_names(url: str) -> list[str]:
    """Return the current names directly below the folder `url`, sorted; an empty list if the folder does not exist."""
    place = normalize(url)
    try:
        found = LocalFileSystem().ls(place, detail=False) if is_local(place) else objects.list_prefix(f"{place}/")
        names = [posixpath.basename(name.rstrip("/")) for name in found]
    except FileNotFoundError:
        return []
    return sorted(name for name in names if not name.endswith(".tmp"))


def list_below(url: str) -> list[str]:
    """Return the sorted paths, relative to the folder `url`, of all files at any depth below it."""
    place = normalize(url)
    if not is_local(place):
        prefix = objects.split(f"{place}/")[2]
        return sorted(key.removeprefix(prefix) for key in objects.keys_below(f"{place}/"))
    prefix = f"{place.rstrip('/')}/"
    return sorted(name.removeprefix(prefix) for name in LocalFileSystem().find(place) if name.startswith(prefix))


def read_range(url: str, start: int, size: int, etag: str | None = None) -> bytes:
    """Return `size` bytes of a file from `start` on, fewer at its end. Raise ChangedError as `read_bytes` does."""
    if size == 0:  # S3 answers an empty range with the whole object
        return b""
    return _read(url, start, start + size, etag)


def reason(error: BaseException) -> str:
    """Return an error as one line, without the query and user parts of URLs, which may hold secrets."""
    text = str(error) if type(error) is ValueError else f"{type(error).__name__}: {error}"
    text = re.sub(r"(\w+://[^\s?'\"]*)\?[^\s'\"]*", r"\1", " ".join(text.split()))
    return re.sub(r"(\w+://)[^\s/@'\"]*@", r"\1", text)


def says_damage(error: BaseException) -> bool:
    """Return whether an error of `STORAGE_ERRORS` means a damaged file: gzip, bz2 and Arrow raise OSError without a number."""
    return isinstance(error, OSError) and error.errno is None and not says_outage(error)


def says_outage(error: BaseException | None) -> bool:
    """Return whether an error means that the store does not answer."""
    return isinstance(
        error, (TimeoutError, ConnectionError, BotoConnectionError, HTTPClientError, *_of_loaded("aiohttp", "ClientError"))
    )


def says_store_failed(error: BaseException | None) -> bool:
    """Return whether an error means that the store did not answer, or answered 5xx, for one object or for all."""
    return error is not None and (says_outage(error) or requests.is_stores_fault(requests.http_status(error) or 0))


def require_store(url: str) -> None:
    """Raise OutageError if the store of `url` does not answer another request either, or answers it with 5xx."""
    if is_local(url):
        return
    scheme, bucket, _ = objects.split(normalize(url))
    try:
        objects.list_page(f"{scheme}://{bucket}/", most=1)
    except _errors() as error:
        if says_store_failed(error):
            raise OutageError(f"the store of '{url}' fails: {reason(error)}") from error


def cache_folder() -> Path:
    """Return this user's folder for files that can be downloaded or made again: weights, container indexes."""
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "fer-pipeline"


def read_bytes(url: str, etag: str | None = None) -> bytes:
    """Return the content of one file. Raise ChangedError if `etag` is given and the file is another version."""
    return _read(url, None, None, etag)


def read_small(url: str) -> bytes:
    """Return the content of a file that holds a record as text. Raise UserError if the file is too large for one."""
    data = read_range(url, 0, MOST_TEXT_BYTES + 1)
    if len(data) > MOST_TEXT_BYTES:
        raise UserError(f"'{url}' has more than {MOST_TEXT_BYTES >> 20} MiB, too much for a file of this project: move it away.")
    return data


def _read(url: str, start: int | None, end: int | None, etag: str | None) -> bytes:
    place = normalize(url)
    by_s3fs = objects.needs_s3fs(place) or (etag is None and start is None)  # the object may be of any size
    if not is_local(place) and not (by_s3fs and place.startswith("s3://")):
        data, found = objects.get_object(place, start, end)
        if etag and found != etag:
            raise ChangedError
        return data
    fs, path = open_filesystem(place)
    content: bytes = fs.cat_file(path, start=start, end=end)
    require_unchanged(url, etag)
    return content


def require_unchanged(url: str, etag: str | None) -> None:
    """Raise ChangedError if a local file is no longer the version of that etag. Call it after the bytes were read.

    A file that is open on S3 needs no such check (`open_version`).
    """
    if etag and is_local(url) and not local.same_time(os.stat(normalize(url)).st_mtime_ns, etag):
        raise ChangedError


def require_version(url: str, etag: str | None) -> None:
    """Raise ChangedError if a file is not the version of that etag now. Costs one request on S3."""
    require_unchanged(url, etag)
    if etag and not is_local(url) and size_and_etag(url)[1] != etag:
        raise ChangedError


def size_and_etag(url: str) -> tuple[int, str]:
    """Return the size of a file on a store in bytes, and its etag. Raise FileNotFoundError if there is none."""
    place = normalize(url)
    if not objects.needs_s3fs(place):
        return objects.size_and_etag(place)
    fs, path = open_filesystem(url)
    info = fs.info(path)
    return int(info["size"] or 0), s3.strong(str(info.get("ETag", "")))


def open_version(url: str, etag: str | None, block_size: int) -> Any:
    """Open a file. Raise ChangedError if it is another version, on a store also later, when it is read."""
    place = normalize(url)
    if not is_local(place) and not objects.needs_s3fs(place):
        return io.BufferedReader(objects.ObjectFile(place, etag), block_size)
    fs, path = open_filesystem(place)
    opened = fs.open(path, "rb", block_size=block_size)
    found = getattr(opened, "details", {}).get("ETag")
    if etag and found and s3.strong(found) != etag:
        opened.close()
        raise ChangedError
    return opened


def open_file(url: str) -> Any:
    """Open a file anywhere, to be read from its start to its end."""
    return open_version(url, None, READ_BYTES)


def says_changed(error: BaseException) -> bool:
    """Return whether an error of reading an open file means that the file has changed."""
    return isinstance(error, (ChangedError, *_of_loaded("s3fs.utils", "FileExpired")))


def write_bytes(url: str, data: bytes) -> None:
    """Write one file atomically. Overwrite an existing one."""
    place = normalize(url)
    if not is_local(place):
        _put(place, data)
        return
    temporary = local.write_temporary(place, data)
    try:
        os.replace(temporary, place)
    except OSError as error:
        os.unlink(temporary)
        raise type(error)(error.errno, error.strerror, place) from error


@contextmanager
def written(url: str) -> Iterator[IO[bytes]]:
    """Yield a file to write. At the end its content replaces that of `url`, at once; after an exception `url` stays as it is.

    A store gets it from a temporary file on this machine.
    """
    place = normalize(url)
    if is_local(place):
        temporary = local.write_temporary(place, b"")
        try:
            with Path(temporary).open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, place)
        finally:
            Path(temporary).unlink(missing_ok=True)
        return
    with temporary_folder(Path(tempfile.gettempdir()), "fer-pipeline-writing-") as folder:
        with (folder / "file").open("wb") as file:
            yield file
        fs, path = open_filesystem(place)
        fs.put_file(str(folder / "file"), path)


def _put(url: str, data: bytes, only_new: bool = False) -> None:
    is_large = len(data) > objects.MOST_BYTES_AT_ONCE
    if objects.needs_s3fs(url) or (is_large and url.startswith("s3://")):  # s3fs tries each part of a large object again
        fs, path = open_filesystem(url)
        fs.pipe_file(path, data, **({"mode": "create"} if only_new else {}))
    else:
        objects.put_object(url, data, only_new)


def create(url: str, data: bytes) -> bool:
    """Write one file unless it exists. Return whether this call created it.

    Exclusive on a local disk and on stores with conditional writes. A store without them (501) gets a plain write.
    """
    place = normalize(url)
    if is_local(place):
        temporary = local.write_temporary(place, data)
        try:
            os.link(temporary, place)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in local.NO_HARD_LINKS:
                raise
            return local.create_without_links(temporary, place)
        finally:
            Path(temporary).unlink(missing_ok=True)
        return True
    if exists(url):
        return False
    try:
        _put(place, data, only_new=True)
    except FileExistsError:
        return False
    except (NotImplementedError, *_errors()) as error:
        status = requests.http_status(error)
        if status in (409, 412):  # another writer is writing it, or was faster
            return False
        if status != 501 and not isinstance(error, NotImplementedError):
            raise
        _put(place, data)
    return True


def require_exclusive_writes(url: str) -> None:
    """Raise UserError if the store has no conditional writes: two writers could overwrite each other there."""
    if is_local(url):
        return
    probe = normalize(join(url, f"_probe-{uuid.uuid4().hex}"))
    try:
        _put(probe, b"first", only_new=True)
        _put(probe, b"second", only_new=True)
    except FileExistsError:
        return
    except (NotImplementedError, *_errors()) as error:
        if requests.http_status(error) in (409, 412):
            return
        if requests.http_status(error) != 501 and not isinstance(error, NotImplementedError):
            raise
    finally:
        remove(probe)
    raise UserError(f"The store of '{url}' has no conditional writes, which a table needs: use another store, or a local disk.")


def remove(url: str) -> None:
    """Delete one file if it exists."""
    place = normalize(url)
    try:
        if is_local(place) or objects.needs_s3fs(place):
            fs, path = open_filesystem(url)
            fs.rm_file(path)
        else:
            objects.remove(place)
    except FileNotFoundError:
        return
