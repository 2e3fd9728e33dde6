"""The outcome of a command that runs as a Ray job, in a file beside the job's log: log lines may hold untrusted text."""

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator

from fer_pipeline.base.config import Config
from fer_pipeline.base.text import printable

JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Environment variable that Ray sets for the entry point of a job."""


class Outcome(Config):
    """The outcome of a command."""

    exit_code: int
    said: Annotated[str, AfterValidator(printable)] = ""
    """The error message, on one line, if the command failed."""
    result: dict[str, Any] | None = None


def outcome_name(job_id: str) -> str:
    """Return the name of a job's outcome file in the log folder of its node, which the head serves."""
    return f"fer-outcome-{job_id}.json"


def write_outcome(outcome: Outcome) -> None:
    """Write the outcome of this command if it is the entry point of a Ray job."""
    try:
        job_id = json.loads(os.environ[JOB])["metadata"]["job_submission_id"]
    except (KeyError, TypeError, ValueError):
        return
    # Ray does not publish the path of its log folder, but the output of a job, or of its shell, is a file in there.
    for process in ("self", str(os.getppid())):
        for stream in (1, 2):
            try:
                log = Path(f"/proc/{process}/fd/{stream}").readlink()
            except OSError:
                continue
            if log.name == f"job-driver-{job_id}.log":
                path = log.with_name(outcome_name(job_id))
                temporary = path.with_suffix(".part")
                with suppress(OSError):  # on a full disk the exit code is all that is left
                    temporary.write_text(json.dumps(outcome.model_dump(mode="json")))
                    os.replace(temporary, path)
                return
