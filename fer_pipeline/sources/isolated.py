"""A process of its own for work that may crash or hang native code: it must not end the listing."""

import json
import select
import subprocess
import sys
from importlib import import_module
from typing import Any

from fer_pipeline.core.errors import RecordError

START_S = 60.0
"""Time that the process may take to start."""


class IsolatedProcess:
    """Calls functions of this project in another process, which is started when first needed and again after it died."""

    def __init__(self) -> None:
        self._child: subprocess.Popen[bytes] | None = None

    def call(self, function: str, *arguments: Any, timeout_s: float) -> Any:
        """Return `function(*arguments)`, named `package.module:function`; arguments and result pass as JSON.

        Raise ValueError with the reason where the function raises RecordError, kills the process or takes too long.
        """
        if self._child is None:
            command = [sys.executable, "-c", "from fer_pipeline.sources.isolated import serve; serve()"]
            self._child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            self._answer(START_S)
        assert self._child.stdin is not None
        self._child.stdin.write(json.dumps([function, arguments]).encode() + b"\n")
        self._child.stdin.flush()
        answer = self._answer(timeout_s)
        if "error" in answer:
            raise ValueError(answer["error"])
        return answer["result"]

    def _answer(self, timeout_s: float) -> dict[str, Any]:
        """Return what the process says; it is ended where it says nothing."""
        assert self._child is not None and self._child.stdout is not None
        ready, _, _ = select.select([self._child.stdout], [], [], timeout_s)
        line = self._child.stdout.readline() if ready else b""
        if line:
            return json.loads(line)  # type: ignore[no-any-return]
        self.close()
        return {"error": "the process that opens it dies of it" if ready else f"it takes longer than {timeout_s:g} s to open"}

    def close(self) -> None:
        """End the process."""
        if self._child is not None:
            self._child.kill()
            self._child.communicate()
            self._child = None


def serve() -> None:
    """Answer calls on standard input, one line of JSON each, until there are no more: the other process."""
    _say({"result": "ready"})
    for line in sys.stdin:
        name, arguments = json.loads(line)
        module, _, function = name.partition(":")
        try:
            _say({"result": getattr(import_module(module), function)(*arguments)})
        except RecordError as error:
            _say({"error": error.reason})


def _say(answer: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()
