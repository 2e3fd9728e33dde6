"""Prefect flows over the jobs: order, retries, schedules, parameters, artifacts."""
