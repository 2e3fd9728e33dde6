"""What every Ray job shares: connecting, waiting, failures, tasks, submission, progress, metrics.

Ray reads these environment variables when it is imported, which this package's modules do.
"""

import os

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent home
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
if {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & set(os.environ):
    os.environ.setdefault("RAY_AUTH_MODE", "token")  # clients do not follow their cluster by themselves
