"""Run a night whose driver is killed at a named point: `python -m tests.nights.killed POINT CONFIGURATION`."""

import os
import signal
import sys
import threading
import time
from typing import Any

from fer_pipeline.jobs import nightly, publish
from fer_pipeline.jobs.label import dispatch, job
from fer_pipeline.jobs.nightly import NightlyConfig
from fer_pipeline.table.delta import LabelTable

POINTS = ("list", "label", "audit", "before the commit", "in the commit", "after the commit")


def killed(*_: Any, **__: Any) -> Any:
    os.kill(os.getpid(), signal.SIGKILL)


def after(function: Any) -> Any:
    def killing(*arguments: Any, **options: Any) -> Any:
        function(*arguments, **options)
        killed()

    return killing


def within(function: Any, delay_s: float) -> Any:
    def killing(*arguments: Any, **options: Any) -> Any:
        threading.Timer(delay_s, killed).start()
        function(*arguments, **options)
        time.sleep(60)

    return killing


def plant(point: str) -> None:
    """Have this process killed at the point."""
    owner: Any
    owner, name, how = {
        "list": (job, "write_manifest", after),
        "label": (dispatch.Dispatcher, "_after_step", killed),
        "audit": (publish, "audit", killed),
        "before the commit": (LabelTable, "commit", killed),
        "in the commit": (LabelTable, "commit", lambda commit: within(commit, 0.003)),
        "after the commit": (LabelTable, "commit", after),
    }[point]
    setattr(owner, name, how if how is killed else how(getattr(owner, name)))


if __name__ == "__main__":
    plant(sys.argv[1])
    nightly.run(NightlyConfig.model_validate_json(sys.argv[2]))
