"""Requests to S3 against a server that answers as it is told."""

import http.server
import io
import pickle
import threading
import urllib.error
from collections.abc import Iterator
from email.message import Message
from typing import Any

import pytest

from fer_pipeline.base import storage
from fer_pipeline.base.errors import ChangedError, UserError
from fer_pipeline.base.storage import objects, requests, s3

ERROR = "<?xml version='1.0'?><Error><Code>{}</Code><Message>said</Message></Error>"
DATA = bytes(range(256)) * 400


class Server(http.server.ThreadingHTTPServer):
    """Answers requests by `answers`, in turn, and then well."""

    answers: list[tuple[int, str | bytes]]
    seen: list[tuple[str, str, dict[str, str]]]


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.seen.append((self.command, self.path, dict(self.headers)))
        status, code = self.server.answers.pop(0) if self.server.answers else (200, "")
        if code == "broken off":
            self.send_response(200)
            self.send_header("Content-Length", str(len(DATA)))
            self.send_header("ETag", '"one"')
            self.end_headers()
            self.wfile.write(DATA[:1000])
            self.close_connection = True
            return
        content = ERROR.format(code).encode() if status >= 300 else DATA if self.command == "GET" else b""
        content = code if isinstance(code, bytes) else content
        assert self.command == "GET" or not body or body == DATA
        if "Range" in self.headers and status < 300:
            first, _, last = self.headers["Range"].removeprefix("bytes=").partition("-")
            content, status = DATA[int(first) : int(last) + 1], 206
            self.send_response(status)
            self.send_header("Content-Range", f"bytes {first}-{int(first) + len(content) - 1}/{len(DATA)}")
        else:
            self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", '"one"')
        self.send_header("Last-Modified", "Sun, 29 Nov 2026 00:00:00 GMT")
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_PUT = do_HEAD = answer  # noqa: N815

    def log_message(self, *_: Any) -> None: ...


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server, and the environment that leads to it."""
    found = Server(("127.0.0.1", 0), Handler)
    found.answers, found.seen = [], []
    threading.Thread(target=found.serve_forever, daemon=True).start()
    values = {"ENDPOINT_URL": f"http://127.0.0.1:{found.server_port}", "ACCESS_KEY_ID": "a", "SECRET_ACCESS_KEY": "sentinel"}
    for name, value in values.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setattr(requests, "FIRST_PAUSE_S", 0.001)
    yield found
    found.shutdown()
    found.server_close()


def test_an_object_and_a_range_are_read_by_one_request_each(server: Server) -> None:
    assert storage.read_bytes("s3://b/a/1.jpg", "one") == DATA
    assert storage.read_range("s3://b/a/1.jpg", 100, 50, "one") == DATA[100:150]
    assert [(method, path) for method, path, _ in server.seen] == [("GET", "/b/a/1.jpg")] * 2
    with pytest.raises(ChangedError):
        storage.read_bytes("s3://b/a/1.jpg", "two")


@pytest.mark.parametrize(
    "answer", [(503, "SlowDown"), (500, "InternalError"), (429, "x"), (400, "RequestTimeout"), (200, "broken off")]
)
def test_what_may_pass_is_tried_again(answer: tuple[int, str], server: Server) -> None:
    server.answers = [answer] * 3
    assert storage.read_bytes("s3://b/1.jpg", "one") == DATA and len(server.seen) == 4
    if answer[0] != 200:
        server.answers = [answer] * 3
        storage.write_bytes("s3://b/1.jpg", DATA)
        assert len(server.seen) == 8


@pytest.mark.parametrize(
    ("answer", "error", "tries"),
    [
        ((503, "SlowDown"), OSError, requests.RETRIES + 1),
        ((404, "NoSuchKey"), FileNotFoundError, 1),
        ((403, "AccessDenied"), PermissionError, 1),
        ((400, "ExpiredToken"), PermissionError, 1),
        ((301, "PermanentRedirect"), OSError, 1),
        ((501, "NotImplemented"), OSError, 1),
    ],
)
def test_what_cannot_pass_is_an_error_of_the_storage_without_secrets(
    answer: tuple[int, str], error: type[Exception], tries: int, server: Server
) -> None:
    server.answers = [answer] * 20
    with pytest.raises(error) as caught:
        storage.read_bytes("s3://b/1.jpg", "one")
    assert len(server.seen) == tries and isinstance(caught.value, storage.STORAGE_ERRORS)
    assert "sentinel" not in str(caught.value) and storage.says_store_failed(caught.value) == (answer[0] in (501, 503))


def test_a_range_that_begins_at_the_end_is_empty(server: Server) -> None:
    server.answers = [(416, "InvalidRange")]
    assert storage.read_range("s3://b/1.jpg", 10**9, 50, "one") == b""


def test_errors_keep_their_words_between_processes() -> None:
    error = pickle.loads(pickle.dumps(requests.StoreError("SlowDown (503)", 503)))
    assert "SlowDown (503)" in str(error) and error.http_status == 503


def test_a_server_that_is_gone_is_an_outage(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    with pytest.raises(ConnectionError) as caught:
        storage.read_bytes("s3://b/1.jpg", "one")
    assert storage.says_outage(caught.value)


PAGE = """<?xml version="1.0" encoding="UTF-8"?>
<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>b</Name>{}</ListBucketResult>"""
ENTRY = "<Contents><Key>{}</Key><LastModified>x</LastModified><ETag>&quot;{}&quot;</ETag><Size>{}</Size></Contents>"


def page(*parts: str) -> tuple[int, bytes]:
    return 200, PAGE.format("".join(parts)).encode()


def test_a_prefix_is_listed_page_by_page_whatever_its_keys_are(server: Server) -> None:
    below = "<CommonPrefixes><Prefix>a/2024.05/</Prefix></CommonPrefixes>"
    first = page(
        "<IsTruncated>true</IsTruncated><NextContinuationToken>t+/=</NextContinuationToken><EncodingType>url</EncodingType>",
        ENTRY.format("a/", "", 0), ENTRY.format("a/1+%2B%C3%A4%0A.jpg", "e1", 7), below,
    )  # fmt: skip
    server.answers = [
        first,
        (503, "SlowDown"),
        page(ENTRY.format("a/z%+&amp;.jpg", "e2", 2**40), "<IsTruncated>false</IsTruncated>"),
    ]
    found = objects.list_page("s3://b/a/")
    assert found == s3.Page([("a/", 0, ""), ("a/1 +ä\n.jpg", 7, "e1")], ["a/2024.05/"], "t+/=")
    assert objects.list_page("s3://b/a/", found.token).objects == [("a/z%+&.jpg", 2**40, "e2")]
    assert "continuation-token=t%2B%2F%3D" in server.seen[-1][1] and "prefix=a%2F" in server.seen[-1][1] and len(server.seen) == 3
    assert all("Authorization" in headers for _, _, headers in server.seen)
    server.answers = [first, page(ENTRY.format("a/z", "", 1))]
    assert storage.list_names("s3://b/a") == ["1 +ä\n.jpg", "2024.05", "z"]


@pytest.mark.parametrize(
    "answer",
    [
        (200, ERROR.format("InternalError").encode()),
        (200, b"<html><p>Sign in<br></html>"),
        (200, page(ENTRY.format("k", "e", 1))[1][:-30]),
        (200, b""),
        (503, "SlowDown"),
    ],
)
def test_what_is_no_whole_page_ends_no_listing(answer: tuple[int, str | bytes], server: Server) -> None:
    server.answers = [answer, answer, page(ENTRY.format("k", "e", 1))]
    assert objects.list_page("s3://b/") == s3.Page([("k", 1, "e")], [], None) and len(server.seen) == 3
    server.answers = [answer] * (requests.RETRIES + 1)
    with pytest.raises(OSError) as caught:
        objects.list_page("s3://b/")
    assert storage.says_store_failed(caught.value)


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        ((404, "NoSuchBucket"), FileNotFoundError),
        ((403, "RequestTimeTooSkewed"), PermissionError),
        ((400, "ExpiredToken"), PermissionError),
        (page("<IsTruncated>true</IsTruncated>"), requests.StoreError),
    ],
)
def test_a_listing_that_is_refused_is_not_asked_again(
    answer: tuple[int, str | bytes], error: type[Exception], server: Server
) -> None:
    server.answers = [answer] * 3
    with pytest.raises(error) as caught:
        objects.list_page("s3://b/p/")
    assert len(server.seen) == 1 and "sentinel" not in str(caught.value)


def test_a_new_object_is_written_by_a_condition(server: Server) -> None:
    server.answers = [(503, "SlowDown"), (412, "PreconditionFailed"), (501, "NotImplemented")]
    with pytest.raises(FileExistsError):
        objects.put_object("s3://b/new.json", DATA, only_new=True)
    assert {key.lower(): value for key, value in server.seen[-1][2].items()}["if-none-match"] == "*"
    with pytest.raises(NotImplementedError):
        objects.put_object("s3://b/new.json", DATA, only_new=True)
    objects.put_object("s3://b/new.json", DATA, only_new=True)
    assert [method for method, _, _ in server.seen] == ["PUT"] * 4


def test_variables_that_are_meant_for_other_programs_change_nothing(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SKIP_SIGNATURE", "S3_EXPRESS", "VIRTUAL_HOSTED_STYLE_REQUEST"):
        monkeypatch.setenv(f"AWS_{name}", "true")
    monkeypatch.setenv("AWS_CONDITIONAL_PUT", "disabled")
    assert storage.read_bytes("s3://b/1.jpg", "one") == DATA
    assert server.seen[0][1] == "/b/1.jpg" and server.seen[0][2]["authorization"].startswith("AWS4-HMAC-SHA256")


@pytest.mark.parametrize("key", ["x//y.jpg", "/slash.jpg", "a/../b.jpg", "./a.jpg", "c\x7fd.jpg", "tail/"])
def test_a_key_that_obstore_would_change_is_not_plain(key: str) -> None:
    assert (
        not objects.is_plain(f"s3://bucket/{key}")
        and objects.is_plain("s3://bucket/a b/\u00e4\U0001f600%20?#.jpg")
        and not objects.is_plain("s3://bucket")
    )


@pytest.mark.parametrize(
    ("region", "bucket_is_in", "endpoint"),
    [
        (None, "eu-west-1", "https://s3.eu-west-1.amazonaws.com"),
        ("us-west-2", "us-east-1", "https://s3.amazonaws.com"),
        ("us-west-2", "us-west-2", "https://s3.us-west-2.amazonaws.com"),
    ],
)
def test_a_bucket_of_aws_is_asked_in_its_region(
    region: str | None, bucket_is_in: str, endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ENDPOINT_URL", "AWS_DEFAULT_REGION", "AWS_REGION"):
        monkeypatch.delenv(name, raising=False)
    if region:
        monkeypatch.setenv("AWS_DEFAULT_REGION", region)

    def forbidden(request: Any, **_: Any) -> None:
        headers = Message()
        headers["x-amz-bucket-region"] = bucket_is_in
        raise urllib.error.HTTPError(request.full_url, 403, "Forbidden", headers, io.BytesIO())

    monkeypatch.setattr("urllib.request.urlopen", forbidden)
    session, own, at = s3.aws_session()
    found = s3._in_region(session, "bucket", own, at, None)
    assert found == (bucket_is_in, endpoint)


@pytest.mark.parametrize("endpoint", ["minio:9000", "htp:/bad", "127.0.0.1"])
def test_an_endpoint_that_is_no_url_is_one_sentence(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    with pytest.raises(UserError, match=r"no URL .* set AWS_ENDPOINT_URL to one such as http://127\.0\.0\.1:9000"):
        storage.exists("s3://bucket/x")
