"""One base for every configuration: frozen, and unknown keys are refused."""

from pydantic import BaseModel, ConfigDict, ValidationError


class Config(BaseModel):
    """A frozen configuration; the same class is the command line, the Prefect parameter schema and the record.

    Numbers must be finite: a configuration may be a stranger's.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


def explain(error: ValidationError) -> str:
    """Return the first fault of a pydantic validation error as `key: what is wrong`, for a one-line message."""
    fault = error.errors(include_url=False)[0]
    key = ".".join(str(part) for part in fault["loc"]) or "value"
    if fault["type"] == "extra_forbidden":
        return f"unknown key '{key}'"
    if fault["type"] == "missing":
        return f"'{key}' is missing"
    return f"{key}: {fault['msg']}"
