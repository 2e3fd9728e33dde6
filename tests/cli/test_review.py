"""`correct`: answers of people about the faces of a run or a table."""

import json
import shutil
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

import fer_pipeline as fer
from fer_pipeline.base.errors import UserError
from fer_pipeline.cli import review
from fer_pipeline.cli import table as upkeep
from fer_pipeline.cli.review import CorrectConfig, Corrected
from fer_pipeline.cli.table import ForgetConfig, RestoreConfig, TableConfig, VacuumConfig
from fer_pipeline.jobs import publish
from fer_pipeline.jobs.publish import PublishConfig
from fer_pipeline.table import forget


@pytest.fixture
def run(labelled: fer.Run, tmp_path: Path) -> fer.Run:
    shutil.copytree(labelled.url, tmp_path / "run")
    return fer.Run(str(tmp_path / "run"))


def lines(faces: list[dict[str, Any]], by: str, answer: str | None = None, minute: int = 0) -> str:
    keys = ("content_sha256", "uri", "member", "time_ms", "x", "y", "w", "h")
    more = {"by": by, "at": f"2026-11-30T09:{minute:02d}:00Z"}
    rows = [
        {key: face[key] for key in keys} | {"answer": answer or face["expression"], "seen": face["expression"]} for face in faces
    ]
    return "".join(f"{json.dumps(row | more)}\n" for row in rows)


def correct(labels: str, folder: Path, *texts: str) -> Corrected:
    for number, text in enumerate(texts):
        (folder / f"{number}.jsonl").write_text(text)
    return review.correct(
        CorrectConfig(labels=labels, file=tuple(str(folder / f"{number}.jsonl") for number in range(len(texts))))
    )


def distinct(labels: fer.Run | fer.Table, count: int) -> list[dict[str, Any]]:
    """Return faces of images with different bytes."""
    found: list[dict[str, Any]] = labels.faces(once=True).to_pylist()
    return [face for face in found if face["face_id"] == 0][:count]


def test_corrections_of_two_people_stand_beside_the_labels(run: fer.Run, tmp_path: Path) -> None:
    before, faces = run.faces(), distinct(run, 4)
    assert "expression_reviewed" not in before.column_names
    one, other = lines(faces[:3], "ann", "disgust"), lines(faces[2:4], "bob", "not_a_face")
    found = correct(run.url, tmp_path, one, other)
    assert (found.added, found.known, found.without_face, found.refused) == (5, 0, 0, 0)
    assert found.reviewed >= 4 and found.in_conflict >= 1
    again = correct(run.url, tmp_path, one, other, lines(faces[2:3], "bob", "disgust", minute=1))
    assert (again.added, again.known, again.in_conflict) == (1, 5, 0)
    after = run.faces()
    assert after.select(before.column_names).equals(before)
    said = {(row["content_sha256"], row["face_id"]): row["expression_reviewed"] for row in after.to_pylist()}
    assert [said[face["content_sha256"], face["face_id"]] for face in faces] == ["disgust"] * 3 + ["not_a_face"]
    assert run.faces(where="expression_reviewed = 'not_a_face'").num_rows >= 1
    assert len(run.corrections()) == 6


def test_lines_of_other_labels_and_broken_ones_are_named_and_the_rest_is_taken(
    run: fer.Run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    faces = distinct(run, 2)
    gone = lines([faces[0] | {"content_sha256": "0" * 64, "uri": "/elsewhere.jpg"}], "ann")
    found = correct(run.url, tmp_path, lines(faces, "ann") + gone + "{\n" + lines(faces[:1], "bob", "glad"))
    assert (found.added, found.without_face, found.refused) == (3, 1, 2)
    with pytest.raises(UserError, match="every line is refused"):
        correct(run.url, tmp_path, "{\n")
    with pytest.raises(UserError, match="cannot be read as a file of corrections"):
        review.correct(CorrectConfig(labels=run.url, file=(str(tmp_path / "none.jsonl"),)))


def test_corrections_travel_with_a_run_and_survive_what_happens_to_a_table(run: fer.Run, archive: Path, tmp_path: Path) -> None:
    """Publishing, compaction, a restore, and the erasure of another image. That of the image itself takes them, too."""
    faces = distinct(run, 3)
    correct(run.url, tmp_path, lines(faces[:2], "ann", "disgust"))
    table = str(tmp_path / "table")
    publish.run(PublishConfig(run=run.url, table=table))
    correct(run.url, tmp_path, lines(faces[2:], "ann", "disgust"))
    publish.run(PublishConfig(run=run.url, table=table))
    digests = [face["content_sha256"] for face in faces]

    def reviewed() -> set[str]:
        return set(fer.Table(table).faces(where="expression_reviewed = 'disgust'")["content_sha256"].to_pylist())

    assert reviewed() == set(digests)
    upkeep.compact(TableConfig(table=table))
    upkeep.vacuum(VacuumConfig(table=table, retention_hours=1))
    other = fer.label(next(archive.rglob("astronaut-640.jpg")), tmp_path / "other", detector="mtcnn")
    publish.run(PublishConfig(run=other.url, table=table, accept=("drift",)))
    upkeep.restore(RestoreConfig(table=table, night=run.record.run_id))
    assert reviewed() == set(digests)
    upkeep.forget(ForgetConfig(table=table, content=(digests[0],)))
    assert reviewed() == set(digests[1:]) and digests[0] not in fer.Table(table).corrections()["content_sha256"].to_pylist()
    publish.run(PublishConfig(run=run.url, table=table))
    assert digests[0] not in fer.Table(table).corrections()["content_sha256"].to_pylist()


def test_an_erasure_that_was_interrupted_can_be_repeated(run: fer.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After it, neither the run nor the same file brings the corrections back."""
    (face,) = distinct(run, 1)
    correct(run.url, tmp_path, lines([face], "ann", "disgust"))
    table = str(tmp_path / "table")
    publish.run(PublishConfig(run=run.url, table=table))
    config = ForgetConfig(table=table, content=(face["content_sha256"],))
    with monkeypatch.context() as patch:
        patch.setattr(forget, "erase_corrections", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            upkeep.forget(config)
    upkeep.forget(config)
    publish.run(PublishConfig(run=run.url, table=table))
    assert len(fer.Table(table).corrections()) == 0
    with pytest.raises(UserError, match="every line is refused"):
        correct(table, tmp_path, lines([face], "ann", "disgust"))


def test_corrections_of_a_face_that_is_gone_can_be_erased(run: fer.Run, tmp_path: Path) -> None:
    table = str(tmp_path / "table")
    publish.run(PublishConfig(run=run.url, table=table))
    elsewhere = distinct(run, 1)[0] | {"content_sha256": "0" * 64, "uri": "/elsewhere.jpg"}
    correct(table, tmp_path, lines([elsewhere], "ann", "disgust"))
    upkeep.forget(ForgetConfig(table=table, uri=("/elsewhere.jpg",)))
    assert len(fer.Table(table).corrections()) == 0
    with pytest.raises(UserError, match="holds no such row"):
        upkeep.forget(ForgetConfig(table=table, uri=("/elsewhere.jpg",)))
