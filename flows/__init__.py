"""Prefect flows over the jobs: order, retries, schedules, parameters, artifacts."""

import os

# Before Prefect is imported:
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")  # nothing is sent home
os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "120")  # where no server is named; 20 s are few
