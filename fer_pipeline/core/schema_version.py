"""Which form `run.json`, `dataset.json` and `model.json` have: an integer that changes only where an older form is misread."""

import json
from typing import Any

import fer_pipeline
from fer_pipeline.core.errors import UserError

FIRST_RELEASE = "0.1.0"
"""What wrote the files that carry no schema version."""


def require_schema_version(text: bytes, readable: range, what: str, remedy: str) -> None:
    """Raise UserError unless the JSON object `text` has a schema version in `readable`.

    A file without one has version 1. What is no JSON object passes: its validation says what is wrong.
    """
    try:
        facts: Any = json.loads(text)
    except (ValueError, RecursionError):
        return
    found = facts.get("schema_version", 1) if isinstance(facts, dict) else 1
    if not isinstance(facts, dict) or found in readable:
        return
    maker = facts.get("version") or FIRST_RELEASE
    raise UserError(
        f"{what} was written by fer-pipeline {maker} (schema {found}) and this is fer-pipeline {fer_pipeline.__version__} "
        f"(schema {readable[-1]}): {remedy}"
    )
