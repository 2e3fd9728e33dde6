"""Prefect flows over the jobs: order, retries, schedules, parameters, artifacts."""

import os

os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")  # before Prefect is imported: nothing is sent home
