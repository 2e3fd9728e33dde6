"""Names, digests, ids and times that identify runs, models and detectors."""

from datetime import UTC, datetime
from uuid import uuid4

from fer_pipeline.base.config import Config, Id, Name


class Identity(Config):
    """The name and sha256 of a model or detector; for a model of a registry also its version and the requested alias."""

    name: Name
    digest: Name
    version: Id | None = None
    alias: Id | None = None


def new_run_id() -> str:
    """Return a unique id that sorts by time."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%S%f}-{uuid4().hex[:8]}"


def now() -> str:
    """Return the time in UTC, to the second, as ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")
