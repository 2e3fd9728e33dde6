"""A separate process for code that opens untrusted files, which may crash it, make it hang or exhaust its memory."""

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

from fer_pipeline.base import storage
from fer_pipeline.base.boundary import as_record_error
from fer_pipeline.base.errors import OutageError
from fer_pipeline.base.memory import MEMORY_BYTES, limit_memory
from fer_pipeline.base.stopping import exit_without_shutdown

START_S = 60.0
"""Time limit for the start of the process."""
CHUNK_BYTES = 64 * 1024
BATCH = 500
"""Maximum number of results in one message. They are collected while they are None, a mere sign of life."""
BATCH_S = 1.0
"""Longest time, in seconds, for which results are collected."""


def alarm(limit_s: float) -> Callable[[], AbstractContextManager[None]]:
    """Wrap each piece of work in the returned context.

    If work is running and no piece starts or ends for `limit_s`, SIGALRM kills this process. The kernel sends the signal, so it
    also stops native code that hangs while it holds the interpreter's lock. Setting the timer costs one system call. The driver
    detects the death of the process and probes the shard's records. Many threads may work; a thread that waits does not count. A
    piece that hangs is detected once the others have stopped.
    """
    lock, running = threading.Lock(), 0

    def count(change: int) -> None:
        nonlocal running
        with lock:
            running += change
            signal.setitimer(signal.ITIMER_REAL, limit_s if running else 0)

    @contextmanager
    def watched() -> Iterator[None]:
        count(1)
        try:
            yield
        finally:
            count(-1)

    return watched


class ProcessDiedError(ValueError):
    """The file killed the isolated process."""


class TimedOutError(ValueError):
    """The isolated process exceeded the time limit on the file."""


_ERRORS: dict[str, type[Exception]] = {
    "": ValueError,
    "outage": OutageError,
    "died": ProcessDiedError,
    "timed out": TimedOutError,
}


_answers: Any = None
"""The stream to which an isolated process writes its answers; None in any other process."""
_answering = threading.Lock()
_alive_at = _said_at = time.monotonic()


def sign_of_life() -> None:
    """Say that this process goes on with something that takes long, such as unpacking a file: time limits begin anew.

    In an isolated process its caller learns of it. Any thread may call it, often.
    """
    global _alive_at, _said_at
    _alive_at = time.monotonic()
    if _answers is not None and _alive_at - _said_at > BATCH_S:
        _said_at = _alive_at
        _write_answer(_answers, {"results": []})


def alive_at() -> float:
    """Return when this process last gave a sign of life (`time.monotonic`)."""
    return _alive_at


class IsolatedProcess:
    """Calls functions of this project in another process, which is started at the first call and again after its death."""

    def __init__(self) -> None:
        self._child: subprocess.Popen[bytes] | None = None
        self._buffer = b""
        """Bytes from the process that are not parsed yet."""
        self._idle = True

    def call(self, function: str, *arguments: Any, timeout_s: float) -> Iterator[Any]:
        """Yield what `function(*arguments)` yields; `function` is `package.module:function`, arguments and results are JSON.

        Raise ValueError, with the reason, if the file is at fault.
        Raise ProcessDiedError if the call kills the process.
        Raise TimedOutError if the call yields nothing for `timeout_s`.
        Raise OutageError if the file is not at fault.
        """
        if not self._ask(function, arguments) and not self._ask(function, arguments):
            raise OutageError("the process that opens untrusted files cannot be started")
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
                self.close()  # otherwise the next call would read the rest of this one's results

    def _ask(self, function: str, arguments: tuple[Any, ...]) -> bool:
        """Send a call to the process, after starting it if there is none; return whether that succeeded."""
        if self._child is None:
            command = [sys.executable, "-P", "-c", "from fer_pipeline.base.isolated import serve; serve()"]
            # The new process imports from the same paths as this process, and not from its working folder (`-P`).
            environment = os.environ | {"PYTHONPATH": os.pathsep.join(place for place in sys.path if place)}
            # Its own process group, so that Ctrl-C does not reach it: it ends when its standard input closes.
            pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
            self._child = subprocess.Popen(command, env=environment, process_group=0, **pipes)
            if "error" in self._answer(START_S):
                return False
        assert self._child is not None and self._child.stdin is not None
        try:
            self._child.stdin.write(json.dumps([function, arguments]).encode() + b"\n")
            self._child.stdin.flush()
        except BrokenPipeError:  # the process was killed while it was idle
            self.close()
            return False
        return True

    def _answer(self, timeout_s: float) -> dict[str, Any]:
        """Return the next answer of the process. Clean up if it has died; kill it if it sends nothing for `timeout_s`."""
        assert self._child is not None and self._child.stdout is not None
        self._idle = False
        ready: list[Any] = [self._child.stdout]
        while b"\n" not in self._buffer:
            ready, _, _ = select.select([self._child.stdout], [], [], timeout_s)
            received = os.read(self._child.stdout.fileno(), CHUNK_BYTES) if ready else b""
            if not received:
                self._buffer = b""
                break
            self._buffer += received
        line, _, self._buffer = self._buffer.partition(b"\n")
        if line:
            answer: dict[str, Any] = json.loads(line)
            self._idle = bool(answer.get("end")) or "error" in answer
            return answer
        self.close()
        if ready:
            return {"error": "the file kills the process that opens it", "kind": "died"}
        return {"error": f"opening the file takes longer than {timeout_s:g} s", "kind": "timed out"}

    def close(self) -> None:
        """End the process."""
        if self._child is not None:
            self._child.kill()
            self._child.communicate()
            self._child, self._buffer = None, b""


def serve() -> None:
    """Run the isolated process: answer calls on standard input, one line of JSON each, until standard input is closed."""
    global _answers
    out = _answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # so that output of native code does not mix with the answers
    limited = False
    _write_answer(out, {"end": True})
    for line in sys.stdin:
        name, arguments = json.loads(line)
        module, _, function = name.partition(":")
        called = getattr(import_module(module), function)
        if not limited:
            limit_memory(MEMORY_BYTES)
            limited = True
        try:
            _answer_results(out, called(*arguments))
        except OutageError as error:
            _write_answer(out, {"error": str(error), "kind": "outage"})
        except Exception as error:  # noqa: BLE001 (the boundary around one file)
            try:
                _write_answer(out, {"error": as_record_error(error, "unreadable").reason})
            except Exception as outage:  # noqa: BLE001 (not the file's fault, such as a full disk)
                _write_answer(out, {"error": storage.reason(outage), "kind": "outage"})
    exit_without_shutdown(0)


def _answer_results(out: Any, results: Iterator[Any]) -> None:
    batch: list[Any] = []
    sent = time.monotonic()
    try:
        for result in results:
            batch.append(result)
            if result is not None or len(batch) == BATCH or time.monotonic() - sent > BATCH_S:
                _write_answer(out, {"results": batch})
                batch, sent = [], time.monotonic()
    finally:
        _write_answer(out, {"results": batch})
    _write_answer(out, {"end": True})


def _write_answer(out: Any, answer: dict[str, Any]) -> None:
    with _answering:
        try:
            out.write(json.dumps(answer) + "\n")
            out.flush()
        except BrokenPipeError:  # the caller has ended, also by a signal: nobody waits for this or any other answer
            exit_without_shutdown(0)
