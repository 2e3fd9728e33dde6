"""Log lines for people, and as JSON for those who collect them: one object a line, with the run that it is about."""

import json
import logging
from datetime import UTC, datetime
from typing import Any

from fer_pipeline.core.text import printable

_facts: dict[str, str] = {}


def tell_with_each_line(**facts: str) -> None:
    """Have every line from now on say these facts too, such as `run_id`."""
    _facts.update(facts)


class Lines(logging.Formatter):
    """A message on one line: names of strangers' files can neither begin another line nor command the terminal."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, and an exception's stack below it."""
        line = printable(record.getMessage())
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line

    def formatException(self, ei: Any) -> str:  # noqa: N802 (logging's name)
        """Return an exception's stack, its lines printable."""
        return "\n".join(map(printable, super().formatException(ei).splitlines()))


class JsonLines(Lines):
    """A line of the log as a JSON object: time, level, logger, message, the facts, `shards` where it is about some."""

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
        if shards := getattr(record, "shards", None):
            line["shards"] = shards
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)
