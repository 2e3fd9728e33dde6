"""Publish a run, but die by SIGKILL before the N-th lasting step: `python -m tests.faults.killed_publish N CONFIG`."""

import os
import signal
import sys
from typing import Any

from fer_pipeline.base import storage
from fer_pipeline.jobs import publish
from fer_pipeline.jobs.publish import PublishConfig
from fer_pipeline.table.delta import LabelTable

STEPS = ((storage, "write_bytes"), (storage, "create"), (storage, "remove"), (LabelTable, "commit"))


class Countdown:
    """Kills this process before a step."""

    def __init__(self, step: int) -> None:
        self.left = step

    def before(self, function: Any) -> Any:
        def counted(*arguments: Any, **options: Any) -> Any:
            if self.left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            self.left -= 1
            return function(*arguments, **options)

        return counted


if __name__ == "__main__":
    countdown = Countdown(int(sys.argv[1]))
    for owner, name in STEPS:
        setattr(owner, name, countdown.before(getattr(owner, name)))
    publish.run(PublishConfig.model_validate_json(sys.argv[2]))
