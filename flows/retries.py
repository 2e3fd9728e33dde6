"""Which failures of a job may pass when it is tried again."""

from typing import Any

from prefect.client.schemas.objects import State

from fer_pipeline.core.errors import FailureRateExceeded, HeldError, StoppedError, UserError


def may_pass(task: Any, run: Any, state: State[Any]) -> bool:
    """Return whether a retry makes sense: not for what the user must mend, what was stopped or held, and failed records."""
    error = state.data if isinstance(state.data, BaseException) else getattr(state.data, "result", None)
    return not isinstance(error, UserError | FailureRateExceeded | HeldError | StoppedError)
