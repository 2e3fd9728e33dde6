"""Progress on standard error: a bar on a terminal, now and then a line elsewhere."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

log = logging.getLogger(__name__)
LINE_EVERY_S = 30.0


class Advance(Protocol):
    """Reports that `count` more are done."""

    def __call__(self, count: int) -> None: ...


@contextmanager
def progress(what: str, total: int) -> Iterator[Advance]:
    """Show the progress of `total` things of the kind `what`."""
    console = Console(stderr=True)
    if console.is_terminal:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TaskProgressColumn(show_speed=True),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=console) as bar:
            task = bar.add_task(what, total=total)
            yield lambda count: bar.advance(task, count)
        return
    done = said = 0
    last = time.monotonic()

    def advance(count: int) -> None:
        nonlocal done, said, last
        done += count
        seconds = time.monotonic() - last
        if seconds >= LINE_EVERY_S or done == total:
            rate = (done - said) / max(seconds, 1e-9)
            ahead = f", {rate:.3g} a second, about {max(1, round((total - done) / rate / 60))} min left" if done < total else ""
            log.info("%s: %d of %d%s", what, done, total, ahead)
            said, last = done, time.monotonic()

    yield advance
