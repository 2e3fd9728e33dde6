"""The command line from outside: exit codes, one sentence for the user, one JSON line last."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from fer_pipeline.cli import COMMANDS


def call(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "-m", "fer_pipeline.cli", *arguments], capture_output=True, text=True, timeout=120)


def test_help_names_every_command() -> None:
    out = call("--help")
    assert out.returncode == 0
    assert all(command.split()[0] in out.stdout for command in COMMANDS)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["label", "/nowhere", "--out", "/tmp/never", "--detector", "none"], "The source '/nowhere' does not exist."),
        (["label", "/nowhere"], "'out' is missing"),
        (["label", "a", "--out", "b", "--detector", "haar"], "detector: Input should be"),
        (["label", "a", "--out", "b", "--detectr", "yunet"], "Unknown option: --detectr"),
        (["lable", "a"], "lable"),
        (["label", "a", "--config", "/nowhere.toml"], "'/nowhere.toml' cannot be read"),
        (["report", "/nowhere"], "no finished labelling run"),
        (["label", "a", "--out", "b", "--model", "face@production"], "Which registry?"),
        (["label", "a", "--out", "b", "--model", "/nowhere/face@production"], "has no face@production: there is no model 'face'"),
        (["evaluate", "embedded", "/nowhere", "test", "/tmp/never"], "'/nowhere' is not an ingested dataset"),
        (["models", "export", "/nowhere", "/tmp/never"], "no model bundle at '/nowhere'"),
        (["models", "puhs"], "puhs"),
        (["publish", "/nowhere", "--table", "/tmp/never"], "'/nowhere' holds no finished run"),
        (["table", "history", "/nowhere"], "There is no table at '/nowhere'"),
        (["nightly", "--source", "/nowhere", "--table", "/tmp/never"], "The source '/nowhere' does not exist."),
        (["nightly", "--source", "a", "--table", "b", "--audit.failed", "2"], "less than or equal to 1"),
        (["label", "a", "--out", "s3://KEY:secret@bucket/run"], "credentials by the environment"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(arguments: list[str], complaint: str) -> None:
    out = call(*arguments)
    assert out.returncode == 2 and out.stdout == ""
    assert complaint in out.stderr and "Traceback" not in out.stderr
    assert len(out.stderr.strip().splitlines()) == 1


def test_the_last_line_is_json_and_options_come_from_a_file_too(tmp_path: Path) -> None:
    (tmp_path / "options.toml").write_text(f'[sample-archive]\ndest = "{tmp_path / "archive"}"\n')
    out = call("--config", str(tmp_path / "options.toml"), "sample-archive")
    assert out.returncode == 0, out.stderr
    assert json.loads(out.stdout.splitlines()[-1])["images"] == 36
    again = call("sample-archive", str(tmp_path / "archive"))
    assert again.returncode == 2 and "not a new or empty folder" in again.stderr
