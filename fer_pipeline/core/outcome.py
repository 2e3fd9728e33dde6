"""How a command ended that runs as a Ray job, in a file beside the job's log: lines of the log may be anybody's words."""

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator

from fer_pipeline.core.config import Config
from fer_pipeline.core.text import printable

JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Environment variable that the entry point of a Ray job has."""


class Outcome(Config):
    """What a command came to."""

    exit_code: int
    said: Annotated[str, AfterValidator(printable)] = ""
    """Its last sentence, on one line, where it did not end well."""
    result: dict[str, Any] | None = None


def outcome_name(job_id: str) -> str:
    """Return the name of a job's file in the folder of its node's logs, which the head gives out."""
    return f"fer-outcome-{job_id}.json"


def write_outcome(outcome: Outcome) -> None:
    """Write how this command ended, where it is the entry point of a Ray job."""
    try:
        job_id = json.loads(os.environ[JOB])["metadata"]["job_submission_id"]
    except (KeyError, TypeError, ValueError):
        return
    # Ray names its folder of logs to nobody, but gives a job, or the shell that it runs in, a file there to write to.
    for process in ("self", str(os.getppid())):
        for stream in (1, 2):
            try:
                log = Path(f"/proc/{process}/fd/{stream}").readlink()
            except OSError:
                continue
            if log.name == f"job-driver-{job_id}.log":
                path = log.with_name(outcome_name(job_id))
                begun = path.with_suffix(".part")
                with suppress(OSError):  # a full disk: the exit code tells what it can
                    begun.write_text(json.dumps(outcome.model_dump(mode="json")))
                    os.replace(begun, path)
                return
