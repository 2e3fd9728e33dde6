"""The errors that are not bugs: a cluster's (exit 1), the user's (2), too many failures (3), a held run (4), one bad record."""

from typing import ClassVar


class JobError(Exception):
    """How a job ends that does not end well, and is no bug: one sentence that says what happened and what to do."""

    exit_code: ClassVar[int]


class UserError(JobError):
    """Something only the user can mend, in one sentence that says what to do. Exit code 2, nothing written."""

    exit_code = 2


class FailureRateExceeded(JobError):  # noqa: N818 (it names what happened)
    """More records failed than the run allows. Exit code 3; every row is written, `_SUCCESS` is not."""

    exit_code = 3


class HeldError(JobError):
    """A finished run falls short in its audit. Exit code 4; it is not published."""

    exit_code = 4


class MisfortuneError(JobError):
    """The cluster loses more than it does. Exit code 1; what is done is committed, and the same command continues."""

    exit_code = 1


class StoppedError(JobError):
    """A job was stopped from outside. Exit code 143, as of SIGTERM; what is done is kept."""

    exit_code = 143


JOB_ERRORS: tuple[type[JobError], ...] = (MisfortuneError, UserError, FailureRateExceeded, HeldError)
"""What a command ends with by itself."""


class RecordError(Exception):
    """One record that cannot be labelled."""

    def __init__(self, status: str, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        """The status of its row: one of `schemas.FAILED`."""
        self.reason = reason
        """What is wrong, in one line: the `error` of its row."""


class OutageError(OSError):
    """What failed is the store or this machine, not the file."""


class ChangedError(RecordError):
    """A file is not, or no more, the one that was listed."""

    def __init__(self) -> None:
        super().__init__("changed", "the file changed after it was listed: a new run lists it anew")
