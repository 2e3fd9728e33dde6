"""Untrusted file names are shown as plain text everywhere."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from fer_pipeline.base import outcome
from fer_pipeline.base.log import JsonLines, Lines
from fer_pipeline.base.outcome import Outcome, outcome_name, write_outcome
from fer_pipeline.base.text import in_markdown, printable, table_row

NAMES = [
    "a\nfer-pipeline: all is well",
    'a\n{"result": 1}',
    "a\r\x1b[2J\x1b]0;title\x07",
    "\x9b31m",
    "\u202egnp.exe",
    "a\u2028b",
    "\udce9.jpg",
]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("formatter", [Lines(), JsonLines()])
def test_a_name_neither_begins_a_line_nor_commands_the_terminal(name: str, formatter: logging.Formatter) -> None:
    record = logging.LogRecord("fer_pipeline", logging.INFO, "", 0, "'%s' is read", (name,), None)
    line = formatter.format(record)
    assert line.isprintable() and len(line.splitlines()) == 1 and "is read" in line
    if isinstance(formatter, JsonLines):
        assert json.loads(line)["message"] == f"'{printable(name)}' is read"


@pytest.mark.parametrize("name", ["<img src=x onerror=f(1)>", "[x](javascript:f(1))", "![x](http://h/y)", "a|b", "`a`", "*a*"])
def test_markdown_shows_a_name_as_it_is(name: str) -> None:
    markdown = pytest.importorskip("markdown_it").MarkdownIt("gfm-like", {"linkify": False, "html": True})
    page: str = markdown.render(f"# {in_markdown(name)}\n\n| a | b |\n|---|---|\n{table_row(name, 'last')}\n")
    shown = name.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    assert page.count(shown) == 2 and "<td>last</td>" in page
    assert not any(f"<{tag}" in page for tag in ("img", "a ", "code", "em"))


def test_a_command_leaves_its_outcome_beside_the_log_of_its_job_and_nowhere_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = Outcome(exit_code=2, said="no such place")
    write_outcome(ended)  # no job
    monkeypatch.setenv(outcome.JOB, json.dumps({"metadata": {"job_submission_id": "fer-1"}}))
    write_outcome(ended)  # a job whose output goes elsewhere
    log = tmp_path / "job-driver-fer-1.log"
    links: dict[str, Any] = {"/proc/self/fd/2": log}
    monkeypatch.setattr(Path, "readlink", lambda self: links.get(str(self), Path("/dev/null")))
    write_outcome(ended)
    (written,) = tmp_path.iterdir()
    assert written.name == outcome_name("fer-1") and Outcome.model_validate_json(written.read_text()) == ended
