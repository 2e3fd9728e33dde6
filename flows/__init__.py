"""Prefect flows over the jobs: order, retries, schedules, parameters, artifacts."""

import os

os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")  # before Prefect is imported: nothing is sent home

import os

os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "120")  # where no server is named; 20 s are few
