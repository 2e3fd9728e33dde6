"""Progress on standard error: a bar on a terminal, now and then a line elsewhere."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

log = logging.getLogger(__name__)
LINE_EVERY_S = 15.0


class Advance(Protocol):
    """Reports that `count` more are done."""

    def __call__(self, count: int) -> None: ...


@contextmanager
def progress(what: str, total: int) -> Iterator[Advance]:
    """Show the progress of `total` things of the kind `what`."""
    console = Console(stderr=True)
    if console.is_terminal:
        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
        with Progress(*columns, console=console) as bar:
            task = bar.add_task(what, total=total)
            yield lambda count: bar.advance(task, count)
        return
    done, last = 0, time.monotonic()

    def advance(count: int) -> None:
        nonlocal done, last
        done += count
        if time.monotonic() - last >= LINE_EVERY_S or done == total:
            last = time.monotonic()
            log.info("%s: %d of %d", what, done, total)

    yield advance
