"""Commands that run in this process."""

import io
import logging
import signal
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass

import pytest

from fer_pipeline.cli.main import main


@dataclass
class Ended:
    """The outcome of a command that runs in this process, to save importing Ray again."""

    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def call_here() -> Iterator[Callable[..., Ended]]:
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    formatters = [(one, one.formatter) for one in logging.getLogger().handlers]

    def call(*arguments: str) -> Ended:
        with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err, pytest.raises(SystemExit) as ended:
            main(list(arguments))
        assert isinstance(ended.value.code, int)
        return Ended(ended.value.code, out.getvalue(), err.getvalue())

    yield call
    for number, handler in handlers.items():
        signal.signal(number, handler)
    for one, formatter in formatters:
        one.setFormatter(formatter)
