"""Log lines as JSON, for those who collect them: one object a line, with the run that it is about."""

import json
import logging
from datetime import UTC, datetime

_facts: dict[str, str] = {}


def tell_with_each_line(**facts: str) -> None:
    """Have every line from now on say these facts too, such as `run_id`."""
    _facts.update(facts)


class JsonLines(logging.Formatter):
    """A line of the log as a JSON object: time, level, logger, message, the facts, `shards` where it is about some."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the object as one line."""
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line = {"time": time, "level": record.levelname.lower(), "logger": record.name, "message": record.getMessage(), **_facts}
        if shards := getattr(record, "shards", None):
            line["shards"] = shards
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)
