"""Handles SIGTERM and SIGINT: the command shuts down cleanly, and its exit code says which signal it received."""

import atexit
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn

_received: list[int] = []


def handle_stop_signals() -> None:
    """Make SIGTERM and SIGINT raise KeyboardInterrupt, the only exception that Ray passes on. A second signal kills at once.

    An ignored signal stays ignored: a shell ignores SIGINT for its background jobs.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _stop)


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    for one in (signal.SIGTERM, signal.SIGINT):
        signal.signal(one, signal.SIG_DFL)
    _received.append(number)
    raise KeyboardInterrupt


def stopped_code() -> int:
    """Return the exit code of a command that was stopped: 143 after SIGTERM, 130 after SIGINT."""
    return 128 + next(iter(_received), signal.SIGINT)


def stop_message(stopped: KeyboardInterrupt) -> str:
    """Return the last line that a stopped command prints."""
    return f"stopped, {str(stopped) or 'finished work is kept'}; run the same command to continue."


def run_as_process(command: Callable[[], None]) -> NoReturn:
    """Run a command and end this process with its exit code: 0, what it raised as SystemExit, or 1 after another exception."""
    try:
        command()
        exit_code = 0
    except SystemExit as ended:
        exit_code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        if isinstance(ended.code, str):
            print(ended.code, file=sys.stderr)  # noqa: T201 (as Python does)
    except BaseException as error:  # noqa: BLE001 (as Python does)
        sys.excepthook(type(error), error, error.__traceback__)
        exit_code = 1
    exit_without_shutdown(exit_code, after_exit_functions=True)


def exit_without_shutdown(exit_code: int, after_exit_functions: bool = False) -> NoReturn:
    """End this process now. Threads of Arrow and Ray may still run: a Python that shuts down under them can abort, and the
    exit code of a finished command would be SIGABRT's (https://github.com/apache/arrow/issues/34314).

    If asked for, what Python does first runs before: it waits for threads, then calls the functions registered with `atexit`,
    such as that which stops Prefect's temporary server.
    """
    if after_exit_functions:
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # the reader is gone, or the stream is closed
            stream.flush()
    os._exit(exit_code)


@contextmanager
def interrupting_on_sigterm() -> Iterator[Callable[[], None]]:
    """Make SIGTERM raise KeyboardInterrupt, which Ray does not catch; then pass the signal to the previous handler.

    Yield a function to call when Ray has started: it replaces Ray's own handler, which prints a stack and exits with 15.
    """
    outer, received = signal.getsignal(signal.SIGTERM), list[int]()
    if threading.current_thread() is not threading.main_thread() or outer in (None, signal.SIG_IGN):
        yield lambda: None
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        received.append(number)
        raise KeyboardInterrupt

    def install() -> None:
        signal.signal(signal.SIGTERM, interrupt)

    install()
    try:
        yield install
    except SystemExit as ended:
        if ended.code != signal.SIGTERM:
            raise
        received.append(signal.SIGTERM)
        raise KeyboardInterrupt from None
    finally:
        signal.signal(signal.SIGTERM, outer)
        if received:
            signal.raise_signal(signal.SIGTERM)  # the command line, Prefect or the system handles it
