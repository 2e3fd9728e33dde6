"""The one table of failures: the cause of each error of a Ray task or actor."""

from enum import Enum

from ray.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    LocalRayletDiedError,
    NodeDiedError,
    ObjectLostError,
    OutOfDiskError,
    OutOfMemoryError,
    RayActorError,
    RayError,
    RayTaskError,
    RuntimeEnvSetupError,
    WorkerCrashedError,
)

from fer_pipeline.base.boundary import FULL_DISK


class Failure(Enum):
    """The cause of a failed task or actor."""

    PROCESS = "the process died: its record or its node may be the cause"
    MEMORY = "the node ran out of memory and killed the process, perhaps because of other processes"
    MACHINE = "the node, or what Ray needs there, failed: the records are not at fault"
    BUG = "the task raised an error of its own, and a retry would raise it again"


TABLE: dict[type[RayError], Failure] = {
    OutOfMemoryError: Failure.MEMORY,
    WorkerCrashedError: Failure.PROCESS,
    ActorDiedError: Failure.PROCESS,
    ActorUnavailableError: Failure.MACHINE,
    LocalRayletDiedError: Failure.MACHINE,
    NodeDiedError: Failure.MACHINE,
    ObjectLostError: Failure.MACHINE,
    OutOfDiskError: Failure.MACHINE,
    RuntimeEnvSetupError: Failure.MACHINE,
}
"""Failure by Ray's error class; any other error is a bug."""


def failure_of(error: BaseException) -> Failure:
    """Return the cause of an error that ended a task or an actor.

    If a task itself raises one of Ray's errors, it lost another task or actor. This counts as a failed machine; so does a full
    disk.
    """
    cause = cause_of(error)
    found = next((failure for kind, failure in TABLE.items() if isinstance(cause, kind)), Failure.BUG)
    if isinstance(error, RayTaskError) and found is not Failure.BUG:
        return Failure.MACHINE
    return Failure.MACHINE if getattr(cause, "errno", None) in FULL_DISK else found


def cause_of(error: BaseException) -> BaseException:
    """Return the error that a task raised, without the wrapper that Ray adds."""
    return error.cause if isinstance(error, RayTaskError) else error


def is_actor_lost(error: BaseException) -> bool:
    """Tell whether an error of an actor's task says that the actor died, or cannot be reached; not one that the task raised."""
    return isinstance(error, RayActorError | OutOfMemoryError) and not isinstance(error, RayTaskError)
