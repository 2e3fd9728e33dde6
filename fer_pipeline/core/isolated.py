"""A process of its own for what a stranger's file may crash, hang or fill the memory with."""

import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from importlib import import_module
from typing import Any

from fer_pipeline.core import storage
from fer_pipeline.core.boundary import as_record_error
from fer_pipeline.core.errors import OutageError
from fer_pipeline.core.memory import MEMORY_BYTES, limit_memory

START_S = 60.0
"""Time that the process may take to start."""
CHUNK_BYTES = 64 * 1024
BATCH, BATCH_S = 500, 1.0
"""Results that are sent together, and how long they are collected at most."""


def alarm(limit_s: float) -> Callable[[], AbstractContextManager[None]]:
    """Return a context for pieces of work, which ends this process by SIGALRM when none that has begun ends within `limit_s`.

    The kernel sends the signal, so native code that hangs with the interpreter's lock held is ended too. Arming the timer costs
    one system call. The driver sees the death of the process and has the shard's records probed. Many threads may be at work:
    waiting for one's turn is no work, and a piece that hangs is noticed once the others have come to an end.
    """
    lock, at_work = threading.Lock(), 0

    def count(change: int) -> None:
        nonlocal at_work
        with lock:
            at_work += change
            signal.setitimer(signal.ITIMER_REAL, limit_s if at_work else 0)

    @contextmanager
    def watched() -> Iterator[None]:
        count(1)
        try:
            yield
        finally:
            count(-1)

    return watched


class ProcessDiedError(ValueError):
    """The other process died of the file."""


class TimedOutError(ValueError):
    """The other process worked on the file without end."""


_ERRORS: dict[str, type[Exception]] = {
    "": ValueError,
    "outage": OutageError,
    "died": ProcessDiedError,
    "timed out": TimedOutError,
}


class IsolatedProcess:
    """Calls functions of this project in another process, which is started when first needed and again after it died."""

    def __init__(self) -> None:
        self._child: subprocess.Popen[bytes] | None = None
        self._heard = b""
        """What the process has said and nobody has taken yet."""
        self._idle = True

    def call(self, function: str, *arguments: Any, timeout_s: float) -> Iterator[Any]:
        """Yield what `function(*arguments)` yields; it is named `package.module:function`, and all passes as JSON.

        Raise ValueError with the reason where it raises what is the file's fault, ProcessDiedError where it kills the process,
        TimedOutError where it yields nothing for `timeout_s`, OutageError for what is not the file's fault.
        """
        if not self._ask(function, arguments) and not self._ask(function, arguments):
            raise OutageError("the process that opens strangers' files cannot be started")
        ended = False
        try:
            while not ended:
                answer = self._answer(timeout_s)
                yield from answer.get("results", [])
                if "error" in answer:
                    raise _ERRORS[answer.get("kind", "")](answer["error"])
                ended = answer.get("end", False)
        finally:
            if not ended and self._child and not self._idle:
                self.close()  # what it goes on saying would be taken for the next call's

    def _ask(self, function: str, arguments: tuple[Any, ...]) -> bool:
        """Send a call to the process, started where there is none; tell whether that went well."""
        if self._child is None:
            command = [sys.executable, "-P", "-c", "from fer_pipeline.core.isolated import serve; serve()"]
            # It imports from where this process does, and not from the folder that it is started in (`-P`).
            environment = os.environ | {"PYTHONPATH": os.pathsep.join(place for place in sys.path if place)}
            self._child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
            if "error" in self._answer(START_S):
                return False
        assert self._child is not None and self._child.stdin is not None
        try:
            self._child.stdin.write(json.dumps([function, arguments]).encode() + b"\n")
            self._child.stdin.flush()
        except BrokenPipeError:  # it was killed while it had nothing to do
            self.close()
            return False
        return True

    def _answer(self, timeout_s: float) -> dict[str, Any]:
        """Return what the process says; it is ended where it says nothing."""
        assert self._child is not None and self._child.stdout is not None
        self._idle = False
        ready: list[Any] = [self._child.stdout]
        while b"\n" not in self._heard:
            ready, _, _ = select.select([self._child.stdout], [], [], timeout_s)
            said = os.read(self._child.stdout.fileno(), CHUNK_BYTES) if ready else b""
            if not said:
                self._heard = b""
                break
            self._heard += said
        line, _, self._heard = self._heard.partition(b"\n")
        if line:
            answer: dict[str, Any] = json.loads(line)
            self._idle = bool(answer.get("end")) or "error" in answer
            return answer
        self.close()
        if ready:
            return {"error": "the process that opens it dies of it", "kind": "died"}
        return {"error": f"it takes longer than {timeout_s:g} s to open", "kind": "timed out"}

    def close(self) -> None:
        """End the process."""
        if self._child is not None:
            self._child.kill()
            self._child.communicate()
            self._child, self._heard = None, b""


def serve() -> None:
    """Answer calls on standard input, one line of JSON each, until there are no more: the other process."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what native code prints does not get among the answers
    limited = False
    _say(out, {"end": True})
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches it too; it ends with its standard input
    for line in sys.stdin:
        name, arguments = json.loads(line)
        module, _, function = name.partition(":")
        called = getattr(import_module(module), function)
        if not limited:
            limit_memory(MEMORY_BYTES)
            limited = True
        try:
            _send(out, called(*arguments))
        except OutageError as error:
            _say(out, {"error": str(error), "kind": "outage"})
        except Exception as error:  # noqa: BLE001 (the boundary around one file)
            try:
                _say(out, {"error": as_record_error(error, "unreadable").reason})
            except Exception as passing:  # noqa: BLE001 (a full disk, say: not the file's)
                _say(out, {"error": storage.reason(passing), "kind": "outage"})


def _send(out: Any, results: Iterator[Any]) -> None:
    batch: list[Any] = []
    sent = time.monotonic()
    try:
        for result in results:
            batch.append(result)
            if len(batch) == BATCH or time.monotonic() - sent > BATCH_S:
                _say(out, {"results": batch})
                batch, sent = [], time.monotonic()
    finally:
        _say(out, {"results": batch})
    _say(out, {"end": True})


def _say(out: Any, answer: dict[str, Any]) -> None:
    out.write(json.dumps(answer) + "\n")
    out.flush()
