"""Which failed jobs Prefect retries."""

from typing import Any

from prefect.client.schemas.objects import State

from fer_pipeline.base.errors import FailureRateExceeded, HeldError, StoppedError, UserError


def may_pass(task: Any, run: Any, state: State[Any]) -> bool:
    """Return whether a retry can help. It cannot after invalid input, a stop, a held night or too many failed records."""
    error = state.data if isinstance(state.data, BaseException) else getattr(state.data, "result", None)
    return not isinstance(error, UserError | FailureRateExceeded | HeldError | StoppedError)
