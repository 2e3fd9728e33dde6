"""Serve schedules, but die by SIGKILL before the first run gets its process: `python -m tests.production.killed FILE`."""

import os
import signal
import sys
from typing import Any

from prefect.runner import _flow_run_executor as executor

from flows.deploy import main


async def killed(*_: Any, **__: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    executor.FlowRunExecutor._start_process = killed  # type: ignore[method-assign, assignment]
    main(sys.argv[1:])
