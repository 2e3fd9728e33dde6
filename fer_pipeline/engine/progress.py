"""Progress on standard error: a bar on a terminal, otherwise a log line every 30 s."""

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
    """A function that reports that `count` more items are done."""

    def __call__(self, count: int) -> None: ...


@contextmanager
def progress(what: str, total: int) -> Iterator[Advance]:
    """Show the progress of `total` items and yield a function that reports finished items. `what` is the text shown."""
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
    done = logged = 0
    last = time.monotonic()

    def advance(count: int) -> None:
        nonlocal done, logged, last
        done += count
        seconds = time.monotonic() - last
        if seconds >= LINE_EVERY_S or done == total:
            rate = (done - logged) / max(seconds, 1e-9)
            left = f", {rate:.3g} a second, about {max(1, round((total - done) / rate / 60))} min left" if done < total else ""
            log.info("%s: %d of %d%s", what, done, total, left, extra={"progress": {"what": what, "done": done, "all": total}})
            logged, last = done, time.monotonic()

    yield advance
