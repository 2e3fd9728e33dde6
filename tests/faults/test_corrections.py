"""Publishing a run with corrections is killed before each of its lasting steps; the table has each answer once in the end."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import fer_pipeline as fer
from fer_pipeline.cli import review
from fer_pipeline.cli import table as upkeep
from fer_pipeline.cli.review import CorrectConfig
from fer_pipeline.cli.table import ForgetConfig
from fer_pipeline.jobs import publish
from fer_pipeline.jobs.publish import PublishConfig

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]


def answered(labels: str, faces: list[dict[str, Any]], by: str, file: Path) -> None:
    facts = [{name: face[name] for name in ("content_sha256", "uri", "member", "time_ms", *"xywh")} for face in faces]
    more = {"answer": "disgust", "by": by, "at": "2026-11-30T09:00:00Z"}
    file.write_text("".join(f"{json.dumps(one | more)}\n" for one in facts))
    review.correct(CorrectConfig(labels=labels, file=(str(file),)))


def test_kills_before_every_step_of_publish_lose_and_double_no_answer(archive: Path, tmp_path: Path, local_ray: None) -> None:
    """The table has answers already, and one image of it was erased: the run's answer about that does not come back."""
    first, second = (fer.label(archive, tmp_path / name, detector="mtcnn") for name in ("first", "second"))
    faces = [face for face in first.faces(once=True).to_pylist() if face["face_id"] == 0][:4]
    table = tmp_path / "table"
    publish.run(PublishConfig(run=first.url, table=str(table)))
    answered(str(table), faces[:2], "ann", tmp_path / "a.jsonl")
    upkeep.forget(ForgetConfig(table=str(table), content=(faces[0]["content_sha256"],)))
    answered(second.url, faces, "bob", tmp_path / "b.jsonl")
    steps = 0
    while True:
        copied = str(shutil.copytree(table, tmp_path / f"table-{steps}"))
        config = PublishConfig(run=str(shutil.copytree(second.url, tmp_path / f"run-{steps}")), table=copied)
        command = [sys.executable, "-m", "tests.faults.killed_publish", str(steps), config.model_dump_json()]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert ended.returncode in (0, -signal.SIGKILL), ended.stderr[-2000:]
        publish.run(config)
        said = fer.Table(copied).corrections().to_pylist()
        wanted = [(faces[1]["content_sha256"], "ann"), *((face["content_sha256"], "bob") for face in faces[1:])]
        assert sorted((one["content_sha256"], one["by"]) for one in said) == sorted(wanted), steps
        rows = fer.Table(copied).faces(where="reviewers > 0").to_pylist()
        assert {row["content_sha256"]: row["reviewers"] for row in rows} == {
            face["content_sha256"]: 2 if face is faces[1] else 1 for face in faces[1:]
        }
        shutil.rmtree(copied)
        if ended.returncode == 0:
            break
        steps += 1
    assert steps >= 5
