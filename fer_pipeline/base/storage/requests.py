"""Requests to object stores: the one rule of retries, and what went wrong as an OSError."""

import errno
import os
import random
import re
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import lru_cache
from http import HTTPStatus
from typing import Any, TypeVar

from botocore.exceptions import ConnectionError as BotoConnectionError
from botocore.exceptions import HTTPClientError
from obstore import exceptions

CONNECTIONS = 32
REQUEST_TIMEOUT = timedelta(minutes=5)
"""Time limit for one try of a request, its body included, and the time after which none is tried again."""
CONNECT_TIMEOUT = timedelta(seconds=20)
RETRIES = 7
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.25, 8.0
"""Pauses between tries; they double."""
CLIENT: dict[str, Any] = {
    "allow_http": True, "connect_timeout": CONNECT_TIMEOUT, "timeout": REQUEST_TIMEOUT, "pool_max_idle_per_host": str(CONNECTIONS)
}  # fmt: skip
"""Options of obstore's clients."""
REFUSED_CREDENTIALS = ("ExpiredToken", "InvalidToken", "TokenRefreshRequired")
"""Codes of errors, of status 400, that mean that the credentials are not valid any more."""

Answer = TypeVar("Answer")


class StoreError(OSError):
    """A store refused a request, or failed."""

    def __init__(self, message: str, http_status: int) -> None:
        super().__init__(errno.EIO, message)
        self.http_status = http_status

    def __reduce__(self) -> tuple[type["StoreError"], tuple[str, int]]:
        return StoreError, (self.args[1], self.http_status)


@lru_cache(1)
def _helpers() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(CONNECTIONS, thread_name_prefix="s3")


os.register_at_fork(after_in_child=_helpers.cache_clear)  # a child has none of its parent's threads


def asked(request: Callable[[], Answer], key: str) -> Answer:
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
        except ValueError as error:  # obstore does not take the key or the range
            raise StoreError(f"the key cannot be asked for: {error}", HTTPStatus.BAD_REQUEST) from None
        except (exceptions.BaseError, BotoConnectionError, HTTPClientError, StoreError, ConnectionError) as error:
            found = as_os_error(error, key)
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
    return (is_stores_fault(status) and status != HTTPStatus.NOT_IMPLEMENTED) or "RequestTimeout" in str(error)


def is_stores_fault(status: int) -> bool:
    """Return whether an HTTP status says that the store fails, or is overloaded."""
    return status >= 500 or status in (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS)


def as_os_error(error: Exception, key: str) -> OSError:
    """Return what went wrong with a key, without the secrets that a URL may hold."""
    if isinstance(error, OSError):
        return error
    if isinstance(error, BotoConnectionError | HTTPClientError):  # its text has the whole URL
        return ConnectionError(f"the store does not answer: {type(error).__name__}")
    text = str(error)
    found, code = re.search(r"status code: (\d{3})", text), re.search(r"<Code>(\w+)</Code>", text)
    status = int(found[1]) if found else None
    what = code[1] if code else first_line(error)
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


def first_line(error: Exception) -> str:
    """Return what obstore says of an error, without its dump of the client behind it."""
    return " ".join(str(error).partition("\n")[0].split())[:300]


def variables(*prefixes: str) -> tuple[tuple[str, str], ...]:
    """Return the environment variables with these prefixes: stores are made anew when one changes."""
    return tuple(sorted(item for item in os.environ.items() if item[0].startswith(prefixes)))


def retries() -> int:
    """Return how often a request is tried again: as the user has set it for all AWS tools, else `RETRIES`."""
    attempts = os.environ.get("AWS_MAX_ATTEMPTS", "")
    return min(RETRIES, max(0, int(attempts) - 1)) if attempts.isdecimal() else RETRIES


def http_status(error: BaseException) -> int | None:
    """Return the HTTP status of the store's answer that caused an error; None if there is none."""
    if isinstance(error, exceptions.BaseError):
        error = as_os_error(error, "")
    if isinstance(error, StoreError):
        return error.http_status
    response = getattr(error.__cause__, "response", None) or getattr(error, "response", None) or {}
    status: int | None = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    return status
