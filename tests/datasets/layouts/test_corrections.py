"""Corrected faces of a run become a dataset, cut as labelling cuts them, with the votes of several people."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

import fer_pipeline as fer
from fer_pipeline.base.errors import UserError
from fer_pipeline.cli import review
from fer_pipeline.cli.review import CorrectConfig
from fer_pipeline.datasets.layouts.corrections import VOTE_CLASSES
from fer_pipeline.faces.decode import decode
from fer_pipeline.jobs import ingest, publish
from fer_pipeline.jobs.ingest import IngestConfig
from fer_pipeline.jobs.publish import PublishConfig


@pytest.fixture(scope="module")
def run(archive: Path, tmp_path_factory: pytest.TempPathFactory, local_ray: None) -> fer.Run:
    return fer.label(archive, tmp_path_factory.mktemp("corrected") / "run", detector="mtcnn", shard_records=8)


def line(face: dict[str, Any], answer: str, by: str, chosen: str | None = None) -> str:
    facts = {name: face[name] for name in ("content_sha256", "uri", "member", "time_ms", "x", "y", "w", "h")}
    return json.dumps(facts | {"answer": answer, "by": by, "at": "2026-11-30T09:00:00Z", "chosen": chosen}) + "\n"


def test_a_run_without_corrections_says_what_to_do(run: fer.Run, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no corrections: add some by `fer-pipeline correct` first"):
        ingest.run(IngestConfig(source=run.url, out=str(tmp_path / "data"), layout="corrections"))
    with pytest.raises(UserError, match="holds no labelling run and no published table"):
        ingest.run(IngestConfig(source=str(tmp_path), out=str(tmp_path / "data"), layout="corrections"))


def test_answers_are_labels_and_votes_of_aligned_faces(run: fer.Run, tmp_path: Path) -> None:
    faces = [face for face in run.faces(once=True).to_pylist() if face["side_px"] > 20]
    agreed, split, none, in_tar = faces[0], faces[1], faces[2], next(face for face in faces if face["member"])
    text = line(agreed, "disgust", "ann") + line(agreed, "disgust", "bob") + line(agreed, "happy", "cem")
    text += line(split, "happy", "ann") + line(split, "sad", "bob") + line(none, "not_a_face", "ann")
    text += line(in_tar, "surprise", "ann") if in_tar not in faces[:3] else ""
    (tmp_path / "c.jsonl").write_text(text)
    found = review.correct(CorrectConfig(labels=run.url, file=(str(tmp_path / "c.jsonl"),)))
    info = ingest.run(IngestConfig(source=run.url, out=str(tmp_path / "data"), layout="corrections", crop_px=48))
    assert info.samples + sum(info.dropped.values()) == found.reviewed and info.vote_classes == VOTE_CLASSES
    assert info.dropped["as many people say one thing as another"] >= 1 and info.dropped["people say: not a face"] >= 1
    rows = pq.read_table(tmp_path / "data" / "samples").to_pylist()
    mine = [row for row in rows if info.label_space.classes[row["label"]] == "disgust"]
    votes = dict(zip(VOTE_CLASSES, mine[0]["votes"], strict=True))
    assert votes == dict.fromkeys(VOTE_CLASSES, 0) | {"disgust": 2, "happy": 1}
    assert all(np.asarray(decode(row["image"], 10**6).pixels).shape == (48, 48, 3) for row in rows)
    assert {row["split"] for row in rows} == {"train"} and any("#" in row["sample_id"] for row in rows)


@pytest.mark.parametrize("of", ["run", "table"])
def test_faces_chosen_at_random_are_an_audit(of: str, run: fer.Run, tmp_path: Path) -> None:
    """Of a run and of the table to which it was published, in folders and containers alike, the same crops."""
    where = run.url
    if of == "table":
        where = str(tmp_path / "table")
        publish.run(PublishConfig(run=run.url, table=where))
    faces = [face for face in run.faces(once=True).to_pylist() if face["side_px"] > 20]
    members = [face for face in faces if face["member"]][:2]
    text = "".join(line(face, "sad", "ann", "random") for face in members) + line(faces[-1], "sad", "ann", "margin")
    text += line(members[0], "happy", "ann").replace("T09", "T10")  # the answer that measures is not mixed with a later one
    (tmp_path / "c.jsonl").write_text(text)
    review.correct(CorrectConfig(labels=where, file=(str(tmp_path / "c.jsonl"),)))
    config = IngestConfig(source=where, out=str(tmp_path / "data"), layout="corrections", crop_px=48)
    info = ingest.run(config)
    assert info.quarantined == 0 and info.counts["audit"]["happy"] == 0 and info.counts["audit"]["sad"] >= 2
    assert info.counts["train"]["sad"] >= 1 and info.faces.mode == "align"
    rows = pq.read_table(tmp_path / "data" / "samples").to_pylist()
    if of == "table":
        again = ingest.run(config.model_copy(update={"source": run.url, "out": str(tmp_path / "of_run")}))
        theirs = {row["sha256"] for row in pq.read_table(tmp_path / "of_run" / "samples").to_pylist()}
        assert again.samples >= info.samples and {row["sha256"] for row in rows} <= theirs


def test_a_table_whose_container_is_gone_says_so(run: fer.Run, archive: Path, tmp_path: Path) -> None:
    copied = shutil.copytree(archive, tmp_path / "archive")
    mine, table = fer.label(copied, tmp_path / "run", detector="mtcnn"), str(tmp_path / "table")
    publish.run(PublishConfig(run=mine.url, table=table))
    faces = mine.faces().to_pylist()
    inside = next(face for face in faces if face["member"])
    outside = next(face for face in faces if not face["member"])
    (tmp_path / "c.jsonl").write_text(line(inside, "sad", "ann") + line(outside, "sad", "ann"))
    review.correct(CorrectConfig(labels=table, file=(str(tmp_path / "c.jsonl"),)))
    Path(inside["uri"]).unlink()
    info = ingest.run(IngestConfig(source=table, out=str(tmp_path / "data"), layout="corrections", crop_px=48))
    assert info.quarantined >= 1 and info.samples >= 1
    assert "its container is gone, or holds it no more" in {one["reason"] for one in info.quarantined_records}


@pytest.mark.parametrize("of", ["run", "table"])
def test_crops_that_were_labelled_whole_stay_whole_and_new_answers_are_another_dataset(
    of: str, dataset: Path, tmp_path: Path
) -> None:
    run = fer.label(dataset.parent / "tree" / "validation", tmp_path / "run", detector="none")
    labels = run.url
    if of == "table":
        labels = str(tmp_path / "table")
        publish.run(PublishConfig(run=run.url, table=labels))
    face = run.faces(where="path like '%happy%'").to_pylist()[0]
    (tmp_path / "c.jsonl").write_text(line(face, "happy", "ann"))
    review.correct(CorrectConfig(labels=labels, file=(str(tmp_path / "c.jsonl"),)))
    config = IngestConfig(source=labels, out=str(tmp_path / "data"), layout="corrections")
    info = ingest.run(config)
    assert info.faces.mode == "whole" and info.samples == 1 and ingest.run(config) == info
    sample = pq.read_table(tmp_path / "data" / "samples").to_pylist()[0]
    assert (decode(sample["image"], 10**6).pixels == decode(Path(face["uri"]).read_bytes(), 10**6).pixels).all()
    (tmp_path / "d.jsonl").write_text(line(run.faces(where="path like '%sad%'").to_pylist()[0], "sad", "ann"))
    review.correct(CorrectConfig(labels=labels, file=(str(tmp_path / "d.jsonl"),)))
    with pytest.raises(UserError, match="was begun with another content"):
        ingest.run(config)
