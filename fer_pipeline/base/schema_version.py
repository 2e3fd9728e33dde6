"""The schema version of `run.json`, `dataset.json` and `model.json`: it changes only if an older file would be misread."""

import json
from typing import Any

import fer_pipeline
from fer_pipeline.base.errors import UserError


def require_schema_version(text: bytes, readable: range, what: str, remedy: str) -> None:
    """Raise UserError unless the JSON object `text` has a schema version in `readable`.

    A file without one has version 1. Anything but a JSON object passes: its validation reports what is wrong.
    """
    try:
        facts: Any = json.loads(text)
    except (ValueError, RecursionError):
        return
    if isinstance(facts, dict):
        maker = facts.get("version") or "0.1.0"  # the first release wrote no version
        require_readable(facts.get("schema_version", 1), readable, what, f"fer-pipeline {maker}", remedy)


def require_readable(version: Any, readable: range, what: str, maker: str, remedy: str) -> None:
    """Raise UserError unless a schema version is in `readable`; `maker` names what wrote it."""
    if version not in readable:
        raise UserError(
            f"{what} was written by {maker} (schema {version}) and this is fer-pipeline {fer_pipeline.__version__} "
            f"(schema {readable.stop - 1}): {remedy}"
        )
