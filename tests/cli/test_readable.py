"""What a command prints on a terminal, in a real pseudo-terminal, and what it prints into a pipe."""

import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fer_pipeline.api.labels import Run, Table
from fer_pipeline.cli.readable import readable
from tests.cli.conftest import Ended


def on_terminal(*arguments: str) -> str:
    """Return the standard output of a command whose standard output is a terminal."""
    ours, its = pty.openpty()
    try:
        command = [sys.executable, "-m", "fer_pipeline.cli", *arguments]
        done = subprocess.Popen(command, stdout=its, stderr=subprocess.DEVNULL, close_fds=True)
        os.close(its)
        said = b""
        while True:
            try:
                part = os.read(ours, 65536)
            except OSError:  # the terminal is closed
                break
            if not part:
                break
            said += part
        assert done.wait() == 0
        return said.decode().replace("\r\n", "\n")
    finally:
        os.close(ours)


def test_a_terminal_gets_lines_and_a_pipe_or_json_gets_json(published: Table, call_here: Callable[..., Ended]) -> None:
    lines = on_terminal("table", "history", published.url).splitlines()
    assert lines[0].split() == ["version", "UTC", "operation", "night", "what", "it", "did"]
    assert "36 records, 28 faces, 2 failed" in lines[1] and lines[1].startswith("1  ")
    asked, piped = on_terminal("table", "history", published.url, "--json"), call_here("table", "history", published.url)
    assert json.loads(asked) == json.loads(piped.stdout) and len(json.loads(asked)["versions"]) == 2


def test_quiet_hides_lines_and_not_results(labelled: Run) -> None:
    said = on_terminal("explain", labelled.url, "--uri", "hopper-800.jpg", "--quiet")
    assert "neutral" in said and "box in px" in said and labelled.url in said


@pytest.mark.parametrize(
    "command", ["label", "predict", "explain", "nightly", "publish", "table history", "models list", "ingest"]
)
def test_every_form_shows_what_the_command_returns(
    command: str, labelled: Run, published: Table, archive: Path, tmp_path: Path, call_here: Callable[..., Ended]
) -> None:
    photo = str(archive / "2026" / "01" / "hopper-800.jpg")
    night = ["--source", str(archive), "--table", published.url, "--page", str(tmp_path / "nights.html")]
    arguments = {
        "label": [str(archive), "--out", labelled.url, "--detector", "mtcnn", "--shard-records", "8"],
        "predict": [photo, "--detector", "mtcnn", "--out", str(tmp_path / "marked")],
        "explain": [labelled.url, "--uri", "hopper-800.jpg"],
        "nightly": [*night, "--detector", "mtcnn", "--out", str(tmp_path / "run"), "--audit.failed", "1", "--max-attempts", "1"],
        "publish": [labelled.url, "--table", str(tmp_path / "table")],
        "table history": [published.url],
        "models list": ["--registry", str(tmp_path / "registry")],
        "ingest": [],
    }[command]
    shows = {
        "label": ["28, ", "undecodable 2", "skipped"],
        "predict": ["hopper-800.jpg", "neutral", str(tmp_path / "marked")],
        "explain": ["hopper-800.jpg", "neutral", "box in px"],
        "nightly": ["unchanged", "36 rows"],
        "publish": ["published", "36 records"],
        "table history": ["36 records"],
        "models list": ["no models in"],
        "ingest": ["samples"],
    }[command]
    if command == "ingest":
        result = {
            "samples": 5,
            "splits": {"train": 3, "test": 2},
            "excluded": [{"kind": "x", "reason": "a\x1b[31m"}],
            "none": None,
        }
    else:
        out = call_here(*command.split(), *arguments)
        assert out.returncode == 0, out.stderr
        result = json.loads(out.stdout.splitlines()[-1])
    said = readable(command, result)
    assert all(text in said for text in shows), said
    assert "\x1b" not in said and "None" not in said
