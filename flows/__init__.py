"""Prefect flows over the jobs: order, retries, schedules, parameters, artifacts."""

import os
import sys

from fer_pipeline.base.errors import UserError, needs_package

# Prefect reads these variables when it is imported:
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")  # send no telemetry
os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "120")  # default 20 is too short

try:
    import prefect  # noqa: F401 (every flow needs it)
except ModuleNotFoundError as _error:
    print(needs_package("A flow", _error), file=sys.stderr)  # noqa: T201 (the final message of the command)
    sys.exit(UserError.exit_code)
