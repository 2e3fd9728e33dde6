"""Formats log lines as text for people, or as JSON for log collectors: one object per line, with the run that it belongs to."""

import json
import logging
from datetime import UTC, datetime
from typing import Any

from fer_pipeline.base.text import printable

_facts: dict[str, str] = {}


def add_to_each_line(**facts: str) -> None:
    """Add these facts, such as `run_id`, to all JSON lines from now on."""
    _facts.update(facts)


class Lines(logging.Formatter):
    """Formats a message as one line: an untrusted file name can neither start a new line nor control the terminal."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, followed by the stack of an exception."""
        line = printable(record.getMessage())
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line

    def formatException(self, ei: Any) -> str:  # noqa: N802 (logging's name)
        """Return the stack of an exception as printable lines."""
        return "\n".join(map(printable, super().formatException(ei).splitlines()))


class JsonLines(Lines):
    """Formats a log line as a JSON object: time, level, logger, message, the added facts, and `shards` if it names any."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the object as one line."""
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line = {
            "time": time,
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": printable(record.getMessage()),
            **_facts,
        }
        line |= {name: found for name in ("shards", "progress") if (found := getattr(record, name, None))}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)
