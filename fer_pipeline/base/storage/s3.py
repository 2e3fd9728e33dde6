"""Sessions and requests of S3. Objects and ranges of them are read and written by obstore, and listed here; the rest is s3fs's.

obstore takes a fifth of the processor's time for a request. Keys that it does not take as they are go through s3fs.
"""

import errno
import os
import random
import re
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from http import HTTPStatus
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote_plus
from xml.etree import ElementTree

import obstore
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.exceptions import ConnectionError as BotoConnectionError
from botocore.exceptions import HTTPClientError
from botocore.httpsession import URLLib3Session
from botocore.session import Session
from botocore.utils import get_environ_proxies
from obstore import exceptions
from obstore.store import S3Store

from fer_pipeline.base.errors import UserError

CONNECTIONS = 32
LIST_SILENCE_S = 60
"""Time limit for a store that sends nothing of a page of keys."""
REQUEST_TIMEOUT = timedelta(minutes=5)
"""Time limit for one try of a request, its body included, and the time after which none is tried again."""
CONNECT_TIMEOUT = timedelta(seconds=20)
RETRIES = 7
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.25, 8.0
"""Pauses between tries; they double."""
MOST_BYTES_AT_ONCE = 16 * 1024**2
"""Largest object that obstore writes; s3fs writes larger ones, which it retries in parts."""
REFUSED_CREDENTIALS = ("ExpiredToken", "InvalidToken", "TokenRefreshRequired")
"""Codes of errors, of status 400, that mean that the credentials are not valid any more."""
AWS_HOSTS = (".amazonaws.com", ".amazonaws.com.cn")
CREDENTIALS_KEPT = timedelta(minutes=10)
"""A session, which renews what expires, is asked again 5 minutes before this ends."""

Answer = TypeVar("Answer")


class StoreError(OSError):
    """A store refused a request, or failed."""

    def __init__(self, message: str, http_status: int) -> None:
        super().__init__(errno.EIO, message)
        self.http_status = http_status


def retry_options() -> dict[str, Any]:
    """Return botocore's retry options, unless the user has set them: growing pauses, about half a minute in all."""
    if {"AWS_MAX_ATTEMPTS", "AWS_RETRY_MODE"} & set(os.environ):
        return {}
    return {"retries": {"mode": "standard", "max_attempts": 8}}


def aws_session() -> tuple[Session, str, str]:
    """Return a session for this environment, its region, and the endpoint of the store."""
    return _aws_session(_environment())


def _environment() -> tuple[tuple[str, str], ...]:
    """Return the variables that sessions and stores depend on."""
    return tuple(sorted(item for item in os.environ.items() if item[0].startswith("AWS_")))


@lru_cache(1)
def _aws_session(environment: tuple[tuple[str, str], ...]) -> tuple[Session, str, str]:
    """Cache the last session: creating one takes half a second."""
    session = Session()
    region = str(session.get_config_variable("region") or "us-east-1")
    return session, region, _endpoint(session, region)


def _endpoint(session: Session, region: str) -> str:
    try:
        return str(session.create_client("s3", region_name=region).meta.endpoint_url)
    except ValueError as error:
        without_user = str(error).rpartition("@")[2]
        what = f"The endpoint of S3 is no URL ({without_user})"
        raise UserError(f"{what}: set AWS_ENDPOINT_URL to one such as http://127.0.0.1:9000.") from error


def store_addresses() -> Iterator[str]:
    """Yield the addresses that access to s3:// URLs connects to: the store, and the service that issues its credentials."""
    _, region, endpoint = aws_session()
    yield endpoint
    env = os.environ
    if {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"} <= set(env):
        return
    if "AWS_WEB_IDENTITY_TOKEN_FILE" in env:
        yield f"https://sts.{region}.amazonaws.com"
    if url := env.get("AWS_CONTAINER_CREDENTIALS_FULL_URI"):
        yield url
    elif "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI" in env:
        yield "http://169.254.170.2"
    elif env.get("AWS_EC2_METADATA_DISABLED", "").lower() != "true":
        yield env.get("AWS_EC2_METADATA_SERVICE_ENDPOINT", "http://169.254.169.254")


@dataclass(frozen=True, slots=True)
class Page:
    """A page of a listing, sorted by key."""

    objects: list[tuple[str, int, str]]
    """Key, size in bytes and etag of each object."""
    prefixes: list[str]
    """What stands for the objects with a further `/`."""
    token: str | None
    """Asks for the next page; None on the last."""


def list_page(bucket: str, prefix: str, token: str | None = None, most: int = 1000) -> Page:
    """Return the objects and prefixes directly below a prefix, by one request and the retries that it needs."""
    place = _place_of(bucket)
    parameters = {"list-type": "2", "delimiter": "/", "encoding-type": "url", "max-keys": str(most), "prefix": prefix}
    more = {"continuation-token": token} if token else {}
    return _asked(lambda: _page(place.ask(parameters | more)), prefix)


def list_prefix(path: str) -> Iterator[str]:
    """Yield the keys and prefixes directly below a prefix, page by page, without the marker objects that consoles create."""
    bucket, _, key = path.partition("/")
    prefix, token = f"{key}/" if key else "", None
    while True:
        page = list_page(bucket, prefix, token)
        yield from (name for name, _, _ in page.objects if name != prefix)
        yield from page.prefixes
        if not (token := page.token):
            return


def _page(answer: bytes) -> Page:
    """Return a page from its XML. Raise ConnectionError if it is no listing, or is cut off."""
    try:
        root = ElementTree.fromstring(answer)
    except ElementTree.ParseError:
        raise ConnectionError("the store's listing is broken off, or is no XML") from None
    fields = {_name(entry): entry.text or "" for entry in root}
    if _name(root) != "ListBucketResult":
        raise StoreError(fields.get("Code", "no listing"), HTTPStatus.SERVICE_UNAVAILABLE)  # an error that was found after a 200
    decoded = unquote_plus if fields.get("EncodingType") == "url" else str
    page = Page([], [], fields.get("NextContinuationToken", "") if fields.get("IsTruncated") == "true" else None)
    if page.token == "":
        raise StoreError("the store's listing goes on, but names no next page", HTTPStatus.NOT_IMPLEMENTED)
    for entry in root:
        name = _name(entry)
        if name == "Contents":
            found = {_name(field): field.text or "" for field in entry}
            page.objects.append((decoded(found["Key"]), int(found["Size"]), strong(found.get("ETag", ""))))
        elif name == "CommonPrefixes":
            page.prefixes.append(decoded(entry[0].text or ""))
    return page


def _name(element: ElementTree.Element) -> str:
    return element.tag.rpartition("}")[2]


def is_plain(path: str) -> bool:
    """Return whether obstore takes `bucket/key` as it is, and does not refuse or change it."""
    return all(part not in ("", ".", "..") and part.isprintable() for part in path.split("/")[1:]) and "/" in path


def get_object(path: str, start: int | None, end: int | None) -> tuple[bytes, str]:
    """Return bytes of the object `bucket/key`, and its etag, by one request and the retries that it needs."""
    bucket, _, key = path.partition("/")
    options: Any = {} if start is None or end is None else {"range": (start, end)}
    store = _store_of(bucket)

    def get() -> tuple[bytes, str]:
        answer = obstore.get(store, key, options=options)
        return bytes(answer.bytes()), strong(answer.meta["e_tag"] or "")

    return _asked(get, key)


def put_object(path: str, data: bytes, only_new: bool = False) -> None:
    """Write the object `bucket/key` by one request. Raise FileExistsError if it is to be new and exists, NotImplementedError if
    the store has no conditional writes."""
    bucket, _, key = path.partition("/")
    store, mode = _store_of(bucket), "create" if only_new else "overwrite"
    try:
        _asked(lambda: obstore.put(store, key, data, mode=mode, use_multipart=False), key)  # type: ignore[arg-type]
    except StoreError as error:
        if error.http_status == HTTPStatus.NOT_IMPLEMENTED:
            raise NotImplementedError(str(error)) from error
        raise


@lru_cache(1)
def _helpers() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(CONNECTIONS, thread_name_prefix="s3")


def _asked(request: Callable[[], Answer], key: str) -> Answer:
    """Return the answer of a request; raise an OSError for what went wrong.

    One that the store fails, or breaks off, is tried again. The main thread waits for a helper: obstore does not let signals
    interrupt it.
    """
    began = time.monotonic()
    for retry in range(retries() + 1):
        try:
            if threading.current_thread() is threading.main_thread():
                return _helpers().submit(request).result()
            return request()
        except FileNotFoundError:
            raise FileNotFoundError(errno.ENOENT, "there is no such object", key) from None
        except (exceptions.BaseError, BotoConnectionError, HTTPClientError, StoreError, ConnectionError) as error:
            found = _as_os_error(error, key)
            is_last = retry == retries() or time.monotonic() - began > REQUEST_TIMEOUT.total_seconds()
            if is_last or not _may_pass(found):
                raise found from None
        time.sleep(min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2**retry) * random.uniform(0.5, 1.0))
    raise AssertionError("the last try returns or raises")


def _may_pass(error: Exception) -> bool:
    """Return whether another try of a request may succeed: the store failed, or is overloaded."""
    status = http_status(error)
    if status is None:
        return isinstance(error, ConnectionError)
    overloaded = status in (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS) or "RequestTimeout" in str(error)
    return overloaded or (status >= 500 and status != HTTPStatus.NOT_IMPLEMENTED)


def _as_os_error(error: Exception, key: str) -> OSError:
    if isinstance(error, OSError):
        return error
    if isinstance(error, BotoConnectionError | HTTPClientError):  # its text has the whole URL
        return ConnectionError(f"the store does not answer: {type(error).__name__}")
    text = str(error)
    found, code = re.search(r"status code: (\d{3})", text), re.search(r"<Code>(\w+)</Code>", text)
    status = int(found[1]) if found else None
    what = code[1] if code else " ".join(text.partition("\n")[0].split())[:300]
    if isinstance(error, exceptions.AlreadyExistsError):
        return FileExistsError(errno.EEXIST, "the object exists", key)
    if isinstance(error, exceptions.PermissionDeniedError | exceptions.UnauthenticatedError) or what in REFUSED_CREDENTIALS:
        return PermissionError(errno.EACCES, what, key)
    if isinstance(error, exceptions.PreconditionError):
        return StoreError(what, HTTPStatus.PRECONDITION_FAILED)
    if isinstance(error, exceptions.NotSupportedError):
        return StoreError(what, HTTPStatus.NOT_IMPLEMENTED)
    if status is None and "redirect" in text:
        return StoreError("the bucket is in another region", HTTPStatus.MOVED_PERMANENTLY)
    return ConnectionError(f"the store does not answer: {what}") if status is None else StoreError(f"{what} ({status})", status)


def _store_of(bucket: str) -> S3Store:
    """Return the store of a bucket in this environment."""
    return _store(bucket, _environment())


@dataclass(frozen=True)
class _Place:
    """Where a bucket is, and how it is asked."""

    session: Session
    bucket: str
    region: str
    endpoint: str
    is_host: bool
    """Whether the bucket is a part of the host's name, and not of the path."""
    bundle: str | None
    """File of certificates."""
    http: URLLib3Session

    def ask(self, parameters: dict[str, str]) -> bytes:
        """Return the answer to a GET of the bucket itself."""
        url = f"{self.endpoint}/" if self.is_host else f"{self.endpoint}/{self.bucket}"
        request = AWSRequest("GET", url, params=parameters)
        if credentials := self.session.get_credentials():
            S3SigV4Auth(credentials.get_frozen_credentials(), "s3", self.region).add_auth(request)
        answer = self.http.send(request.prepare())
        if answer.status_code != HTTPStatus.OK:
            raise _refusal(answer.status_code, answer.content, self.bucket)
        return bytes(answer.content)


def _refusal(status: int, answer: bytes, bucket: str) -> OSError:
    code = re.search(rb"<Code>(\w+)</Code>", answer)
    what = code[1].decode() if code else HTTPStatus(status).phrase if status in list(HTTPStatus) else "no listing"
    if status == HTTPStatus.NOT_FOUND:
        return FileNotFoundError(errno.ENOENT, "there is no such bucket", bucket)
    if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN) or what in REFUSED_CREDENTIALS:
        return PermissionError(errno.EACCES, what, bucket)
    return StoreError(f"{what} ({status})", status)


def _place_of(bucket: str) -> _Place:
    """Return the place of a bucket in this environment."""
    return _place(bucket, _environment())


@lru_cache(16)
def _place(bucket: str, environment: tuple[tuple[str, str], ...]) -> _Place:
    session, region, endpoint = aws_session()
    bundle = session.get_config_variable("ca_bundle") or os.environ.get("REQUESTS_CA_BUNDLE")
    if endpoint.endswith(AWS_HOSTS):
        region, endpoint = _in_region(session, bucket, region, endpoint, bundle)
    endpoint, is_host = endpoint.rstrip("/"), (session.get_config_variable("s3") or {}).get("addressing_style") == "virtual"
    if is_host:
        scheme, _, host = endpoint.partition("://")
        endpoint = f"{scheme}://{bucket}.{host}"
    limits_s = (CONNECT_TIMEOUT.total_seconds(), LIST_SILENCE_S)
    proxies = get_environ_proxies(endpoint)
    http = URLLib3Session(bundle or True, proxies, limits_s, max_pool_connections=CONNECTIONS)
    return _Place(session, bucket, region, endpoint, is_host, bundle, http)


@lru_cache(16)
def _store(bucket: str, environment: tuple[tuple[str, str], ...]) -> S3Store:
    place = _place(bucket, environment)
    client: dict[str, Any] = {
        "allow_http": True, "connect_timeout": CONNECT_TIMEOUT, "timeout": REQUEST_TIMEOUT,
        "pool_max_idle_per_host": str(CONNECTIONS),
    }  # fmt: skip
    if place.bundle:
        client["root_certificate"] = Path(place.bundle).read_bytes()
    options: dict[str, Any] = {"endpoint": place.endpoint, "region": place.region, "client_options": client}
    options["retry_config"] = {"max_retries": 0}  # `_asked` tries again
    # obstore would take these from the environment, where they are meant for other programs
    options |= {"skip_signature": False, "s3_express": False, "conditional_put": "etag"}
    options["virtual_hosted_style_request"] = place.is_host
    credentials = place.session.get_credentials()
    if credentials is None:
        return S3Store(bucket, **options | {"skip_signature": True})

    def provide() -> Any:
        frozen = credentials.get_frozen_credentials()
        until = datetime.now(UTC) + CREDENTIALS_KEPT
        keys = {"access_key_id": frozen.access_key, "secret_access_key": frozen.secret_key, "token": frozen.token}
        return keys | {"expires_at": until}

    return S3Store(bucket, **options, credential_provider=provide)


def _in_region(session: Session, bucket: str, region: str, endpoint: str, bundle: str | None) -> tuple[str, str]:
    """Return the region of a bucket of AWS, which names it even to strangers, and the endpoint there."""
    request = urllib.request.Request(f"{endpoint}/{bucket}", method="HEAD")
    try:
        context = ssl.create_default_context(cafile=bundle) if bundle else None
        headers = urllib.request.urlopen(request, timeout=10, context=context).headers
    except urllib.error.HTTPError as error:  # forbidden, or a redirection to its region
        headers = error.headers
    except OSError:
        return region, endpoint
    found = str(headers.get("x-amz-bucket-region") or region)
    return (region, endpoint) if found == region else (found, _endpoint(session, found))


def retries() -> int:
    """Return how often a request is tried again: as the user has set it for all AWS tools, else `RETRIES`."""
    attempts = os.environ.get("AWS_MAX_ATTEMPTS", "")
    return min(RETRIES, max(0, int(attempts) - 1)) if attempts.isdecimal() else RETRIES


def http_status(error: BaseException) -> int | None:
    """Return the HTTP status of the S3 response that caused an error; None if there is none."""
    if isinstance(error, StoreError):
        return error.http_status
    response = getattr(error.__cause__, "response", None) or getattr(error, "response", None) or {}
    status: int | None = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    return status


def strong(etag: str) -> str:
    """Return an etag without its quotes, and without the weak mark that a proxy may have added."""
    return etag.removeprefix("W/").strip('"')
