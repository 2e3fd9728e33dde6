"""Errors that are not bugs: failed clusters (exit code 1), user errors (2), too many failures (3), held runs (4), bad records."""

from typing import ClassVar


class JobError(Exception):
    """A job failed, but not because of a bug. The message is one sentence that says what happened and what to do."""

    exit_code: ClassVar[int]


class UserError(JobError):
    """The user must fix something. The message is one sentence that says what to do. Exit code 2; nothing is written."""

    exit_code = 2


class FailureRateExceeded(JobError):  # noqa: N818 (it names what happened)
    """More records failed than the run allows. Exit code 3; every row is written, `_SUCCESS` is not."""

    exit_code = 3


class HeldError(JobError):
    """A finished run failed its audit. Exit code 4; the run is not published."""

    exit_code = 4


class ClusterError(JobError):
    """The cluster cannot finish the job. Exit code 1; finished work is committed, and the same command continues."""

    exit_code = 1


class StoppedError(JobError):
    """Somebody stopped the job. Exit code 143, as after SIGTERM; finished work is kept."""

    exit_code = 143


JOB_ERRORS: tuple[type[JobError], ...] = (ClusterError, UserError, FailureRateExceeded, HeldError)
"""The errors with which a command ends unless somebody stops it."""


def needs_package(what: str, error: ImportError) -> UserError:
    """Return the error of something that needs a package which the install for labelling (group `label`) leaves out."""
    package = (error.name or "ray[train]").partition(".")[0]  # Ray's own error names no package
    whole = "install the whole project, with `make install` in a clone or with `pip install .`"
    return UserError(f"{what} needs the package {package}, which the install for labelling leaves out: {whole}.")


class RecordError(Exception):
    """One record cannot be labelled."""

    def __init__(self, status: str, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        """The status of the record's row: one of `schemas.FAILED`."""
        self.reason = reason
        """What is wrong, in one line: the `error` of the record's row."""


class OutageError(OSError):
    """The store or this machine failed, not the file."""


class ChangedError(RecordError):
    """The file is no longer the version that was listed."""

    def __init__(self) -> None:
        super().__init__("changed", "the file changed after it was listed: start a new run, which lists it again")
