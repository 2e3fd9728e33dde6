"""Opening videos to list their frames, in a process of its own: one that crashes native code must not end the listing."""

import json
import select
import subprocess
import sys
from collections.abc import Iterator

from fer_pipeline.core.errors import RecordError
from fer_pipeline.core.manifest import Record
from fer_pipeline.sources.files import File
from fer_pipeline.sources.videos import Video

START_S = 60.0
"""Time that the process may take to start."""


class Opener:
    """The process, started when it is first needed and again after it died."""

    def __init__(self) -> None:
        self._child: subprocess.Popen[bytes] | None = None

    def moments_ms(self, uri: str, fps: float, timeout_s: float) -> list[int]:
        """Return the moments of frames sampled `fps` times a second; raise ValueError where the video cannot be opened."""
        if self._child is None:
            command = [sys.executable, "-c", "from fer_pipeline.sources.opener import serve; serve()"]
            self._child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            self._answer(START_S)
        assert self._child.stdin is not None
        self._child.stdin.write(json.dumps([uri, fps]).encode() + b"\n")
        self._child.stdin.flush()
        answer = self._answer(timeout_s)
        if isinstance(answer, str):
            raise ValueError(answer)
        return answer

    def _answer(self, timeout_s: float) -> list[int] | str:
        """Return what the process says: moments, or what is wrong; it is ended where it says nothing."""
        assert self._child is not None and self._child.stdout is not None
        ready, _, _ = select.select([self._child.stdout], [], [], timeout_s)
        line = self._child.stdout.readline() if ready else b""
        if line:
            return json.loads(line)  # type: ignore[no-any-return]
        self.close()
        return "the process that opens it dies of it" if ready else f"it takes longer than {timeout_s:g} s to open"

    def close(self) -> None:
        """End the process."""
        if self._child is not None:
            self._child.kill()
            self._child.communicate()
            self._child = None


def serve() -> None:
    """Answer requests on standard input, a line of JSON each, until there are no more: the process behind an `Opener`."""
    sys.stdout.write("[]\n")
    sys.stdout.flush()
    for line in sys.stdin:
        uri, fps = json.loads(line)
        video = Video(uri)
        try:
            answer: list[int] | str = video.moments_ms(fps)
        except RecordError as error:
            answer = error.reason
        video.close()
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


def list_frames(file: File, fps: float, timeout_s: float, opener: Opener) -> Iterator[Record | str]:
    """Yield a record for each sampled frame; raise ValueError where the video cannot be opened."""
    for moment in opener.moments_ms(file.uri, fps, timeout_s):
        yield Record(file.uri, time_ms=moment, etag=file.etag)
