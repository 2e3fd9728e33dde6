"""Prefect flows over the jobs: order, retries, schedules, parameters, artifacts."""

import os

# Prefect reads these variables when it is imported:
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")  # send no telemetry
os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "120")  # default 20 is too short
