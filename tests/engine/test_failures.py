"""Each error that Ray may raise in a job has one entry in the table of failures."""

import errno

import pytest
from ray.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    RayTaskError,
    RuntimeEnvSetupError,
    WorkerCrashedError,
)

from fer_pipeline.base.errors import UserError
from fer_pipeline.engine.failures import Failure, cause_of, failure_of


def raised_in_a_task(error: BaseException) -> BaseException:
    found: BaseException = RayTaskError("label", "Traceback: a remote one", error).as_instanceof_cause()
    return found


@pytest.mark.parametrize(
    ("error", "failure"),
    [
        (WorkerCrashedError(), Failure.PROCESS),
        (ActorDiedError(), Failure.PROCESS),
        (OutOfMemoryError("low on memory"), Failure.MEMORY),
        (NodeDiedError("preempted"), Failure.MACHINE),
        (ActorUnavailableError("unreachable", None), Failure.MACHINE),
        (ObjectLostError("0" * 56, None, ""), Failure.MACHINE),
        (RuntimeEnvSetupError("no network"), Failure.MACHINE),
        (OSError(errno.ENOSPC, "No space left on device"), Failure.MACHINE),
        (raised_in_a_task(OSError(errno.ENOSPC, "No space left on device")), Failure.MACHINE),
        (raised_in_a_task(WorkerCrashedError()), Failure.MACHINE),
        (raised_in_a_task(UserError("Fix this.")), Failure.BUG),
        (ZeroDivisionError(), Failure.BUG),
    ],
)
def test_an_error_is_somebodys_fault(error: BaseException, failure: Failure) -> None:
    assert failure_of(error) is failure


def test_the_cause_of_a_tasks_error_is_what_it_raised() -> None:
    error = UserError("Fix this.")
    assert cause_of(raised_in_a_task(error)) is error and cause_of(error) is error
