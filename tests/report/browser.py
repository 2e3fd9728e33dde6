"""A real browser that a test drives by keyboard and mouse: headless Chromium over its DevTools protocol."""

import base64
import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from websockets.sync.client import connect

from tests.conftest import until

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = "--headless --no-sandbox --disable-gpu --disable-background-networking --disable-component-update --disable-sync"
QUIET = "--disable-quic --no-first-run --hide-scrollbars --enable-logging=stderr"
CONTROL, SHIFT = 2, 8
"""Modifiers of keys and clicks."""


class Browser:
    """One tab."""

    def __init__(self, url: str, downloads: Path) -> None:
        self._socket, self._number, self._url, self._downloads = connect(url, max_size=2**28), 0, url, downloads
        self.errors: list[str] = []
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")
        self.call("Page.setDownloadBehavior", behavior="allow", downloadPath=str(downloads))

    def call(self, method: str, **parameters: Any) -> Any:
        self._number += 1
        self._socket.send(json.dumps({"id": self._number, "method": method, "params": parameters}))
        while True:
            answer = json.loads(self._socket.recv(timeout=120))
            if answer.get("method") == "Runtime.exceptionThrown":
                self.errors.append(str(answer["params"]["exceptionDetails"].get("exception", answer["params"])))
            if answer.get("method") == "Log.entryAdded" and answer["params"]["entry"]["level"] == "error":
                self.errors.append(answer["params"]["entry"]["text"])
            if answer.get("method") == "Page.javascriptDialogOpening":
                self._socket.send(json.dumps({"id": 0, "method": "Page.handleJavaScriptDialog", "params": {"accept": True}}))
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return answer["result"]

    def run(self, script: str) -> Any:
        """Return the value of a script in the page."""
        found = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def open(self, page: Path, width: int = 1100, height: int = 900, scheme: str = "light") -> float:
        """Open a page and return the seconds until its first picture is there."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        began = time.monotonic()
        self.call("Page.navigate", url=page.as_uri())
        until(lambda: self.run("document.readyState === 'complete' && Boolean(document.querySelector('.tile'))"), "the page")
        return time.monotonic() - began

    def press(self, key: str, modifiers: int = 0) -> None:
        text = "\r" if key == "Enter" else key if len(key) == 1 and not modifiers else ""
        named = {"key": key, "modifiers": modifiers, **({"text": text} if text else {})}
        self.call("Input.dispatchKeyEvent", type="keyDown", **named)
        self.call("Input.dispatchKeyEvent", type="keyUp", key=key, modifiers=modifiers)

    def click(self, selector: str, modifiers: int = 0) -> None:
        script = f"(() => {{ const r = document.querySelector({json.dumps(selector)}).getBoundingClientRect();"
        x, y = self.run(script + " return [r.x + r.width / 2, r.y + r.height / 2]; })()")
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1, modifiers=modifiers)

    def type(self, text: str) -> None:
        self.call("Input.insertText", text=text)

    def picture(self, file: Path) -> None:
        file.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))

    @contextmanager
    def another(self, page: Path) -> "Iterator[Browser]":
        """Open a page in another tab of the same browser."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        tab = Browser(self._url.rpartition("/")[0] + f"/{target}", self._downloads)
        try:
            tab.open(page)
            yield tab
        finally:
            tab.close()
            self.call("Target.closeTarget", targetId=target)

    def close(self) -> None:
        self._socket.close()


@contextmanager
def browser(folder: Path) -> Iterator[Browser]:
    """Start Chromium with a profile of its own in a folder; what it downloads lies there, too."""
    profile = folder / "profile"
    command = [str(CHROMIUM), *FLAGS.split(), *QUIET.split(), f"--user-data-dir={profile}", "--remote-debugging-port=0"]
    process = subprocess.Popen([*command, "about:blank"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        port = profile / "DevToolsActivePort"
        until(lambda: port.exists() and len(port.read_text().splitlines()) == 2, "the start of Chromium")
        place = f"127.0.0.1:{port.read_text().splitlines()[0]}"
        tab = Browser(_page_of(place), folder)
        yield tab
        tab.close()
    finally:
        process.terminate()
        process.wait(30)


def _page_of(place: str) -> str:
    import httpx

    (page,) = [one for one in httpx.get(f"http://{place}/json").json() if one["type"] == "page"]
    return str(page["webSocketDebuggerUrl"])
