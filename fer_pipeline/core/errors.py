"""The errors that are not bugs: a cluster's (exit 1), the user's (2), too many failures (3), a held run (4), one bad record."""


class UserError(Exception):
    """Something only the user can mend, in one sentence that says what to do. Exit code 2, nothing written."""


class FailureRateExceeded(Exception):  # noqa: N818 (it names what happened)
    """More records failed than the run allows. Exit code 3; every row is written, `_SUCCESS` is not."""


class HeldError(Exception):
    """A finished run falls short in its audit. Exit code 4; it is not published."""


class MisfortuneError(Exception):
    """The cluster loses more than it does. Exit code 1; what is done is committed, and the same command continues."""


class RecordError(Exception):
    """One record that cannot be labelled."""

    def __init__(self, status: str, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        """The status of its row: one of `schemas.FAILED`."""
        self.reason = reason
        """What is wrong, in one line: the `error` of its row."""


class ChangedError(RecordError):
    """A file is not, or no more, the one that was listed."""

    def __init__(self) -> None:
        super().__init__("changed", "the file changed after it was listed: a new run lists it anew")
