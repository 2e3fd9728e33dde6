"""S3: sessions, endpoints and credentials as all AWS tools have them, the store of a bucket, and pages of its keys."""

import errno
import os
import re
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import unquote_plus
from xml.etree import ElementTree

from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.httpsession import URLLib3Session
from botocore.session import Session
from botocore.utils import get_environ_proxies, percent_encode_sequence
from obstore.store import S3Store

from fer_pipeline.base.errors import UserError
from fer_pipeline.base.storage.requests import CLIENT, CONNECT_TIMEOUT, CONNECTIONS, REFUSED_CREDENTIALS, StoreError, variables

LIST_SILENCE_S = 60
"""Time limit for a store that sends nothing of a page of keys."""
AWS_HOSTS = (".amazonaws.com", ".amazonaws.com.cn")
CREDENTIALS_KEPT = timedelta(minutes=10)
"""A session, which renews what expires, is asked again 5 minutes before this ends."""


def retry_options() -> dict[str, Any]:
    """Return botocore's retry options, unless the user has set them: growing pauses, about half a minute in all."""
    if {"AWS_MAX_ATTEMPTS", "AWS_RETRY_MODE"} & set(os.environ):
        return {}
    return {"retries": {"mode": "standard", "max_attempts": 8}}


def aws_session() -> tuple[Session, str, str]:
    """Return a session for this environment, its region, and the endpoint of the store."""
    return _aws_session(variables("AWS_"))


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


def list_page(bucket: str, prefix: str, token: str | None, most: int) -> Page:
    """Return the objects and prefixes directly below a prefix, by one request. Raise what `requests.asked` takes."""
    place = _place_of(bucket)
    parameters = {"list-type": "2", "delimiter": "/", "encoding-type": "url", "max-keys": str(most), "prefix": prefix}
    return _page(place.ask(parameters | ({"continuation-token": token} if token else {})))


def strong(etag: str) -> str:
    """Return an etag without its quotes, and without the weak mark that a proxy may have added."""
    return etag.removeprefix("W/").strip('"')


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
    token = fields.get("NextContinuationToken", "").strip()
    page = Page([], [], token or None)
    if not token and fields.get("IsTruncated", "").strip().lower() == "true":
        raise StoreError("the store's listing goes on, but names no next page", HTTPStatus.NOT_IMPLEMENTED)
    for entry in root:
        name = _name(entry)
        if name == "Contents":
            found = {_name(field): field.text or "" for field in entry}
            if not {"Key", "Size"} <= set(found) or not found["Size"].isdecimal():
                raise StoreError("the store's listing has an object without a key or a size", HTTPStatus.NOT_IMPLEMENTED)
            page.objects.append((decoded(found["Key"]), int(found["Size"]), strong(found.get("ETag", ""))))
        elif name == "CommonPrefixes":
            page.prefixes.extend(decoded(field.text or "") for field in entry)
    return page


def _name(element: ElementTree.Element) -> str:
    return element.tag.rpartition("}")[2]


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
        request = AWSRequest("GET", f"{url}?{percent_encode_sequence(parameters)}")
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
    return _place(bucket, variables("AWS_"))


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


def store_of(bucket: str) -> S3Store:
    """Return the store of a bucket in this environment."""
    return _store(bucket, variables("AWS_"))


@lru_cache(16)
def _store(bucket: str, environment: tuple[tuple[str, str], ...]) -> S3Store:
    place = _place(bucket, environment)
    certificate = {"root_certificate": Path(place.bundle).read_bytes()} if place.bundle else {}
    options: dict[str, Any] = {"endpoint": place.endpoint, "region": place.region, "client_options": CLIENT | certificate}
    options["retry_config"] = {"max_retries": 0}  # `requests.asked` tries again
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
    for is_last in (False, False, True):
        try:
            context = ssl.create_default_context(cafile=bundle) if bundle else None
            headers = urllib.request.urlopen(request, timeout=10, context=context).headers
            break
        except urllib.error.HTTPError as error:  # forbidden, or a redirection to its region
            headers = error.headers
            break
        except OSError:
            if is_last:
                return region, endpoint
    found = str(headers.get("x-amz-bucket-region") or region)
    return (region, endpoint) if found == region else (found, _endpoint(session, found))
