"""Objects on stores: read, written, listed and opened by obstore, which takes a fifth of the processor's time that fsspec takes.

S3 (`s3`), Google Cloud Storage and Azure, which take their endpoint and credentials from the environment, as their own tools do.
"""

import os
from collections.abc import Iterator
from functools import lru_cache
from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit

import obstore
from obstore import exceptions
from obstore.fsspec import FsspecStore
from obstore.store import AzureStore, GCSStore, ObjectStore

from fer_pipeline.base.errors import ChangedError, UserError
from fer_pipeline.base.read_only import ReadOnly
from fer_pipeline.base.storage import s3
from fer_pipeline.base.storage.requests import CLIENT, StoreError, asked, first_line, variables
from fer_pipeline.base.storage.s3 import Page, strong

MOST_BYTES_AT_ONCE = 16 * 1024**2
"""Largest object that is written by one request; larger ones are written in parts."""
SCHEMES = {"s3": "S3", "gs": "Google Cloud Storage", "az": "Azure"}
CLOUDS: dict[str, Any] = {"gs": GCSStore, "az": AzureStore}


def split(url: str) -> tuple[str, str, str]:
    """Return the scheme, the bucket or container, and the key of a URL."""
    scheme, _, path = url.partition("://")
    bucket, _, key = path.partition("/")
    return scheme, bucket, key


def is_plain(url: str) -> bool:
    """Return whether obstore takes the key of a URL as it is, and does not refuse or change it; False for a local path."""
    key = split(url)[2]
    return "://" in url and all(part not in ("", ".", "..") and part.isprintable() for part in key.split("/"))


def needs_s3fs(url: str) -> bool:
    """Return whether the key of an S3 URL is one that obstore would change, and s3fs does not."""
    scheme, _, key = split(url)
    return scheme == "s3" and bool(key) and not is_plain(url)


def get_object(url: str, start: int | None, end: int | None) -> tuple[bytes, str]:
    """Return bytes of an object, and its etag, by one request and the retries that it needs."""
    scheme, bucket, key = split(url)
    options: Any = {} if start is None or end is None else {"range": (start, end)}
    store = _store_of(scheme, bucket)

    def get() -> tuple[bytes, str]:
        answer = obstore.get(store, key, options=options)
        return bytes(answer.bytes()), strong(answer.meta["e_tag"] or "")

    try:
        return asked(get, key)
    except StoreError as error:
        if error.http_status != HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise
        return b"", size_and_etag(url)[1]  # the range begins at the end, as in an empty object


def get_ranges(url: str, ranges: list[tuple[int, int]]) -> list[bytes]:
    """Return byte ranges (start, end) of an object, by parallel requests."""
    scheme, bucket, key = split(url)
    starts, ends = [start for start, _ in ranges], [end for _, end in ranges]
    if not ranges:
        return []
    store = _store_of(scheme, bucket)
    return asked(lambda: [bytes(one) for one in obstore.get_ranges(store, key, starts=starts, ends=ends, coalesce=0)], key)


def size_and_etag(url: str) -> tuple[int, str]:
    """Return the size of an object in bytes, and its etag. Raise FileNotFoundError if there is none."""
    scheme, bucket, key = split(url)
    found = asked(lambda: obstore.head(_store_of(scheme, bucket), key), key)
    return found["size"], strong(found["e_tag"] or "")


def exists(url: str) -> bool:
    """Return whether an object, or one below it, exists."""
    scheme, bucket, key = split(url)
    try:
        if key:
            size_and_etag(url)
        else:
            list_page(f"{scheme}://{bucket}/", most=1)
    except FileNotFoundError:
        return bool(key) and holds_any(f"{url}/")
    return True


def holds_any(prefix: str) -> bool:
    """Return whether there is an object below a prefix."""
    page = list_page(prefix, most=1)
    return bool(page.objects or page.prefixes)


def put_object(url: str, data: bytes, only_new: bool = False) -> None:
    """Write an object by one request, a large one in parts.

    Raise FileExistsError if it is to be new and exists, NotImplementedError if the store has no conditional writes.
    """
    scheme, bucket, key = split(url)
    store, mode = _store_of(scheme, bucket), "create" if only_new else "overwrite"
    in_parts = len(data) > MOST_BYTES_AT_ONCE and not only_new
    try:
        asked(lambda: obstore.put(store, key, data, mode=mode, use_multipart=in_parts), key)  # type: ignore[arg-type]
    except StoreError as error:
        if error.http_status == HTTPStatus.NOT_IMPLEMENTED:
            raise NotImplementedError(str(error)) from error
        raise


def list_page(url: str, token: str | None = None, most: int = 1000) -> Page:
    """Return the objects and prefixes directly below a prefix, which is empty or ends with `/`. Only S3 has several pages."""
    scheme, bucket, prefix = split(url)
    if scheme == "s3":
        return asked(lambda: s3.list_page(bucket, prefix, token, most), prefix)
    store = _store_of(scheme, bucket)

    def listed() -> Page:
        try:
            found = obstore.list_with_delimiter(store, prefix.rstrip("/") or None)
        except exceptions.BaseError as error:
            if "invalid path" not in str(error):
                raise
            raise UserError(f"A key of '{scheme}://{bucket}' cannot be listed ({first_line(error)}): rename it.") from None
        objects = [(one["path"], one["size"], strong(one["e_tag"] or "")) for one in found["objects"]]
        return Page(objects, [f"{name}/" for name in found["common_prefixes"]], None)

    return asked(listed, prefix)


def remove(url: str) -> None:
    """Delete an object. Raise FileNotFoundError if there is none and the store says so."""
    scheme, bucket, key = split(url)
    asked(lambda: obstore.delete(_store_of(scheme, bucket), key), key)


def keys_below(url: str) -> Iterator[str]:
    """Yield the keys of all objects below a prefix, which is empty or ends with `/`."""
    scheme, bucket, _ = split(url)
    for name in list_prefix(url):
        if name.endswith("/"):
            yield from keys_below(f"{scheme}://{bucket}/{name}")
        else:
            yield name


def list_prefix(url: str) -> Iterator[str]:
    """Yield the keys and prefixes directly below a prefix, page by page, without the marker objects that consoles create."""
    prefix, token = split(url)[2], None
    while True:
        page = list_page(url, token)
        yield from (name for name, _, _ in page.objects if name != prefix)
        yield from page.prefixes
        if not (token := page.token):
            return


def filesystem(scheme: str) -> FsspecStore:
    """Return an fsspec file system of a cloud store, for what wants one."""
    make: Any = FsspecStore
    made: FsspecStore = make(scheme, client_options=CLIENT, skip_instance_cache=True)
    return made


def addresses(schemes: set[str]) -> Iterator[str]:
    """Yield the addresses that access to stores of these schemes connects to, as far as the environment names them."""
    env = os.environ
    if "s3" in schemes:
        yield from s3.store_addresses()
    if "gs" in schemes:
        yield "https://storage.googleapis.com"
    if "az" in schemes:
        account = f"https://{env.get('AZURE_STORAGE_ACCOUNT_NAME', 'ACCOUNT')}.blob.core.windows.net"
        emulator = env.get("AZURITE_BLOB_STORAGE_URL", "http://127.0.0.1:10000")
        is_emulated = env.get("AZURE_STORAGE_USE_EMULATOR", "").lower() in ("1", "true")
        place = urlsplit(emulator if is_emulated else env.get("AZURE_STORAGE_ENDPOINT", account))
        yield f"{place.scheme}://{place.netloc.rpartition('@')[2]}"  # the rest may hold secrets


class ObjectFile(ReadOnly):
    """A seekable object that is read by ranges. Raises ChangedError if it becomes another version."""

    def __init__(self, url: str, etag: str | None) -> None:
        size_bytes, self.etag = size_and_etag(url)
        super().__init__(size_bytes)
        self.url = url
        if etag and self.etag != etag:
            raise ChangedError

    def read(self, size: int | None = -1) -> bytes:
        """Return bytes of the object, by one request."""
        wanted = self._wanted(size)
        if not wanted:
            return b""
        data, etag = get_object(self.url, self._position, self._position + wanted)
        if etag != self.etag:
            raise ChangedError
        self._position += len(data)
        return data

    def readinto(self, buffer: Any) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


def _store_of(scheme: str, bucket: str) -> ObjectStore:
    """Return the store of a bucket in this environment."""
    return s3.store_of(bucket) if scheme == "s3" else _cloud(scheme, bucket, variables("AZURE_", "AZURITE_", "GOOGLE_"))


@lru_cache(16)
def _cloud(scheme: str, bucket: str, environment: tuple[tuple[str, str], ...]) -> ObjectStore:
    try:
        store: ObjectStore = CLOUDS[scheme](bucket, client_options=CLIENT, retry_config={"max_retries": 0})
    except (exceptions.BaseError, ValueError) as error:
        raise UserError(f"{SCHEMES[scheme]} cannot be used as the environment says: {first_line(error)}.") from None
    return store
