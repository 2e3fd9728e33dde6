"""A proxy in front of an S3 server that injects faults: latency, bursts of 503, resets in mid-body, keys gone or forbidden.

    python -m tests.s3.proxy UPSTREAM PORT

`PUT /-/faults` sets the faults, `GET /-/faults` returns how many of each were injected, the requests and the bytes sent since.
"""

import asyncio
import http.client
import json
import sys
from collections import Counter
from dataclasses import asdict, dataclass, field

from aiohttp import ClientSession, ClientTimeout, TCPConnector, web
from yarl import URL

CONTROL = "/-/faults"
HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "expect", "te", "trailer", "upgrade"}
ERROR = '<?xml version="1.0"?><Error><Code>{code}</Code><Message>{code}</Message></Error>'


@dataclass
class Faults:
    """What goes wrong. All counts are over requests, in the order in which they arrive."""

    latency_s: float = 0.0
    """Waited before every request."""
    burst_every: int = 0
    """Of so many requests the first `burst_length` are answered 503."""
    burst_length: int = 0
    reset_every: int = 0
    """Every so many GETs of an object the connection is reset in mid-body."""
    gone: list[str] = field(default_factory=list)
    """Keys that a listing shows and a GET does not find."""
    forbidden: list[str] = field(default_factory=list)
    """Keys that a listing shows and a GET may not read."""


class Proxy:
    def __init__(self, upstream: str) -> None:
        self.upstream, self.faults = upstream, Faults()
        self.injected: Counter[str] = Counter()
        self.requests = self.gets = self.bytes_sent = 0
        self.host = upstream.removeprefix("http://")

    async def start(self, app: web.Application) -> None:
        self.session = ClientSession(connector=TCPConnector(limit=0), auto_decompress=False, timeout=ClientTimeout(total=120))

    async def stop(self, app: web.Application) -> None:
        await self.session.close()

    async def control(self, request: web.Request) -> web.Response:
        if request.method == "PUT":
            self.faults = Faults(**await request.json())
            self.injected.clear()
            self.requests = self.gets = self.bytes_sent = 0
        seen = {"requests": self.requests, "bytes_sent": self.bytes_sent}
        return web.json_response({"faults": asdict(self.faults), "injected": dict(self.injected)} | seen)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.requests += 1
        if self.faults.latency_s:
            await asyncio.sleep(self.faults.latency_s)
        if self.faults.burst_every and self.requests % self.faults.burst_every < self.faults.burst_length:
            return self._error(503, "SlowDown", request)
        key = request.path.lstrip("/").partition("/")[2]
        of_object = request.method == "GET" and bool(key)
        if of_object and key in self.faults.gone:
            return self._error(404, "NoSuchKey", request)
        if of_object and key in self.faults.forbidden:
            return self._error(403, "AccessDenied", request)
        self.gets += of_object
        reset = of_object and bool(self.faults.reset_every) and self.gets % self.faults.reset_every == 0
        return await self._forward(request, reset)

    def _error(self, status: int, code: str, request: web.Request) -> web.Response:
        self.injected[code] += 1
        body = "" if request.method == "HEAD" else ERROR.format(code=code)
        return web.Response(status=status, text=body, content_type="application/xml")

    async def _forward(self, request: web.Request, reset: bool) -> web.StreamResponse:
        headers = {name: value for name, value in request.headers.items() if name.lower() not in HOP_BY_HOP}
        if request.method == "HEAD":
            return await asyncio.to_thread(self._head, request.raw_path, headers)
        body = await request.read() if request.can_read_body else None
        url = URL(f"{self.upstream}{request.raw_path}", encoded=True)
        async with self.session.request(request.method, url, headers=headers, data=body) as answer:
            response = web.StreamResponse(status=answer.status)
            for name, value in answer.headers.items():
                if name.lower() not in HOP_BY_HOP:
                    response.headers.add(name, value)
            await response.prepare(request)
            sent, length = 0, int(answer.headers.get("Content-Length", 0))
            async for chunk in answer.content.iter_chunked(256 * 1024):
                if reset and sent + len(chunk) >= length / 2:
                    await response.write(chunk[: max(1, len(chunk) // 2)])
                    self.injected["reset"] += 1
                    if request.transport:
                        request.transport.abort()
                    return response
                sent += len(chunk)
                self.bytes_sent += len(chunk)
                await response.write(chunk)
            await response.write_eof()
        return response

    def _head(self, path: str, headers: dict[str, str]) -> web.Response:
        """Forward a HEAD by the standard library, which passes over the body that Swift may send with an error."""
        connection = http.client.HTTPConnection(self.host, timeout=120)
        try:
            connection.request("HEAD", path, headers=headers)
            answer = connection.getresponse()
            kept = {name: value for name, value in answer.getheaders() if name.lower() not in HOP_BY_HOP}
            return web.Response(status=answer.status, headers=kept)
        finally:
            connection.close()


def main() -> None:
    proxy = Proxy(sys.argv[1])
    app = web.Application(client_max_size=2**31)
    app.on_startup.append(proxy.start)
    app.on_cleanup.append(proxy.stop)
    app.router.add_route("*", CONTROL, proxy.control)
    app.router.add_route("*", "/{path:.*}", proxy.handle)
    ready = json.dumps({"ready": True})
    port = int(sys.argv[2])
    web.run_app(app, host="127.0.0.1", port=port, print=lambda _: print(ready, flush=True), access_log=None)


if __name__ == "__main__":
    main()
