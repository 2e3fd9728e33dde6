"""The command line from outside: exit codes, one sentence for the user, one JSON line last."""

import json
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from fer_pipeline.base import storage
from fer_pipeline.cli.main import COMMANDS
from tests.cli.conftest import Ended


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
        (["label", "/nowhere"], "--out is missing"),
        (["label", "a", "--out", "b", "--detector", "haar"], "detector: Input should be"),
        (["label", "a", "--out", "b", "--detectr", "yunet"], "Unknown option: --detectr"),
        (["lable", "a"], "lable"),
        (["label", "a", "--config", "/nowhere.toml"], "'/nowhere.toml' cannot be read"),
        (["report", "/nowhere"], "no finished labelling run"),
        (["label", "a", "--out", "b", "--model", "face@production"], "No registry is given"),
        (["label", "a", "--out", "b", "--model", "/nowhere/face@production"], "has no face@production: there is no model 'face'"),
        (["evaluate", "embedded", "--data", "/nowhere", "--split", "test", "--out", "/tmp/never"], "not an ingested dataset"),
        (["models", "export", "/nowhere", "--out", "/tmp/never"], "no model bundle at '/nowhere'"),
        (["label", "a.jpg", "b.jpg", "--out", "c"], "the command does not take 'b.jpg': give `label` one folder"),
        (
            ["label", "https://x/a.jpg", "--out", "c"],
            "'https://x/a.jpg' is neither a local path nor an s3://, gs:// or az:// URL",
        ),
        (["label", "a", "--out", "b", "--empty-include"], "--empty-include"),
        (["--show-config"], "--show-config needs a command"),
        (["label", "--parameters", "{"], "--parameters is not valid JSON"),
        (["label", "--parameters", '{"confg": {}}'], '--parameters must be an object with "config"'),
        (["label", "--parameters", '{"config": {"source": "a"}}'], "--parameters: 'out' is missing"),
        (["models", "puhs"], "puhs"),
        (["publish", "/nowhere", "--table", "/tmp/never"], "'/nowhere' holds no finished run"),
        (["table", "history", "/nowhere"], "There is no table at '/nowhere'"),
        (["nightly", "--source", "/nowhere", "--table", "/tmp/never"], "The source '/nowhere' does not exist."),
        (["nightly", "--source", "a", "--table", "b", "--audit.failed", "2"], "less than or equal to 1"),
        (["label", "a", "--out", "s3://KEY:secret@bucket/run"], "credentials by the environment"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(arguments: list[str], complaint: str, call_here: Callable[..., Ended]) -> None:
    out = call_here(*arguments)
    assert out.returncode == 2 and out.stdout == ""
    assert complaint in out.stderr and "Traceback" not in out.stderr
    assert len(out.stderr.strip().splitlines()) == 1


def test_the_last_line_is_json_and_options_come_from_a_file_too(tmp_path: Path) -> None:
    (tmp_path / "options.toml").write_text(f'[sample-archive]\ndest = "{tmp_path / "archive"}"\n')
    out = call("--config", str(tmp_path / "options.toml"), "sample-archive")
    assert out.returncode == 0, out.stderr
    assert json.loads(out.stdout.splitlines()[-1])["images"] == 148
    again = call("sample-archive", str(tmp_path / "archive"))
    assert again.returncode == 2 and "not a new or empty folder" in again.stderr


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[labell]\nfps = 2", "a table or key 'labell', which is not a command: did you mean [label]?"),
        ("fps = 2", "a table or key 'fps', which is not a command: tables are named after commands"),
        ("[label]\nsorce = 'a'", "sorce"),
        ("[label", "cannot be read"),
    ],
)
def test_a_file_of_options_that_cannot_be_meant_is_refused(
    text: str, complaint: str, tmp_path: Path, call_here: Callable[..., Ended]
) -> None:
    (tmp_path / "options.toml").write_text(text)
    out = call_here("label", "/nowhere", "--out", "/tmp/never", "--config", str(tmp_path / "options.toml"))
    assert out.returncode == 2 and complaint in out.stderr and len(out.stderr.strip().splitlines()) == 1


def test_flags_go_before_the_environment_and_that_before_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "options.toml").write_text("[label]\nfps = 3.0\ndetect-px = 100\nmax-pixels = 7\n")
    monkeypatch.setenv("FER_PIPELINE_LABEL_FPS", "4.0")
    monkeypatch.setenv("FER_PIPELINE_LABEL_DETECT_PX", "200")
    out = call("label", "photos", "--out", "b", "--fps", "5", "--config", str(tmp_path / "options.toml"), "--show-config")
    assert out.returncode == 0, out.stderr
    facts = tomllib.loads(out.stdout)["label"]
    assert (facts["fps"], facts["detect-px"], facts["max-pixels"], facts["source"]) == (5.0, 200, 7, "photos")
    for line in (
        "fps = 5.0  # flag",
        "detect-px = 200  # $FER_PIPELINE_LABEL_DETECT_PX",
        f"max-pixels = 7  # {tmp_path / 'options.toml'}",
        'source = "photos"  # argument',
        'model = "embedded"  # default',
        "# image-column is not set",
    ):
        assert line in out.stdout.splitlines()


def test_a_variable_that_is_no_option_is_named(
    monkeypatch: pytest.MonkeyPatch, call_here: Callable[..., Ended], caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("FER_PIPELINE_LABEL_DETECT_XP", "640")
    monkeypatch.setenv("FER_PIPELINE_LABEL_DETECT_PX", "640")
    monkeypatch.setenv("FER_PIPELINE_MODELS", "/nowhere")
    call_here("label", "/nowhere", "--out", "/tmp/never")
    said = [record.getMessage() for record in caplog.records if "is no option" in record.getMessage()]
    assert said == [
        "$FER_PIPELINE_LABEL_DETECT_XP is no option of label, so it changes nothing: did you mean $FER_PIPELINE_LABEL_DETECT_PX?"
    ]


def test_a_variable_that_cannot_be_meant_is_named_unless_a_flag_goes_before_it(
    monkeypatch: pytest.MonkeyPatch, call_here: Callable[..., Ended]
) -> None:
    monkeypatch.setenv("FER_PIPELINE_LABEL_DETECT_PX", "many")
    out = call_here("label", "/nowhere", "--out", "/tmp/never")
    assert out.returncode == 2 and "$FER_PIPELINE_LABEL_DETECT_PX, --detect-px: Input should be a valid integer" in out.stderr
    out = call_here("label", "/nowhere", "--out", "/tmp/never", "--detect-px", "few")
    assert out.returncode == 2 and "--detect-px" in out.stderr and "$" not in out.stderr


def test_the_help_of_a_command_has_groups_and_no_flag_for_nothing() -> None:
    out = call("label", "--help").stdout
    assert all(title in out for title in ("What goes in and out", "How", "Limits", "The cluster")) and "--empty" not in out
    assert "Usage: fer-pipeline label --out STR [OPTIONS] SOURCE\n" in out
    assert "Exit codes: 0 done" in call("--help").stdout


def test_what_the_store_or_the_disk_forbids_is_the_users_to_mend(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call_here: Callable[..., Ended]
) -> None:
    for name, value in (("AWS_ENDPOINT_URL", "http://127.0.0.1:1"), ("AWS_ACCESS_KEY_ID", "a"), ("AWS_SECRET_ACCESS_KEY", "b")):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(storage, "exists", lambda url: pytest.fail("the store is asked again, with patience"))
    out = call_here("label", "s3://bucket/photos", "--out", str(tmp_path / "run"))
    assert out.returncode == 2 and "cannot be reached" in out.stderr


def test_a_filter_that_lets_nothing_through_is_named(archive: Path, tmp_path: Path) -> None:
    out = call("label", str(archive), "--out", str(tmp_path / "run"), "--detector", "none", "--include", "*.jpgx")
    assert out.returncode == 2 and "--include *.jpgx excludes all" in out.stderr.splitlines()[-1]


def test_a_finish_says_in_words_what_came_of_it_unless_told_to_be_quiet(archive: Path, tmp_path: Path) -> None:
    command = ["label", str(archive), "--out", str(tmp_path / "run"), "--detector", "none"]
    out = call(*command)
    assert f"Labelled 36 images: 34 faces, 2 failed. Page: {tmp_path}/run/report.html" in out.stderr.splitlines()
    assert json.loads(out.stdout.splitlines()[-1])["records"] == 36
    again = call(*command, "--quiet")
    assert again.returncode == 0 and again.stderr == "" and json.loads(again.stdout)["records"] == 36


def test_log_lines_are_json_objects_on_demand_and_name_the_run(archive: Path, tmp_path: Path) -> None:
    out = call("label", str(archive), "--out", str(tmp_path / "run"), "--detector", "none", "--json-log")
    lines = [json.loads(line) for line in out.stderr.splitlines()]
    run_id = json.loads(out.stdout.splitlines()[-1])["run_id"]
    assert lines[-1]["message"].startswith("Labelled 36 images") and lines[-1]["run_id"] == run_id
    assert {line["level"] for line in lines} == {"info"} and all(line["time"].endswith("+00:00") for line in lines)
