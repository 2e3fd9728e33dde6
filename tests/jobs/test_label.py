"""The labelling job on a real Ray: complete, resumed, killed, run twice at once, refused."""

import json
import shutil
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from fer_pipeline.api.labels import Run, Table
from fer_pipeline.base.errors import FailureRateExceeded, UserError
from fer_pipeline.cli import models, report
from fer_pipeline.cli.models import PushConfig
from fer_pipeline.cli.report import ReportConfig
from fer_pipeline.faces.detectors import yunet
from fer_pipeline.jobs import nightly, publish
from fer_pipeline.jobs.label import job
from fer_pipeline.jobs.label import job as label
from fer_pipeline.jobs.label.config import LabelConfig
from fer_pipeline.jobs.nightly import NightlyConfig
from fer_pipeline.jobs.publish import PublishConfig
from fer_pipeline.labelling.schemas import FACES, IMAGES
from fer_pipeline.models.bundle import EMBEDDED, read_bundle, save_bundle
from fer_pipeline.models.card import ModelCard
from fer_pipeline.models.label_space import FER7
from fer_pipeline.models.network_config import NetworkConfig
from fer_pipeline.models.networks import build
from fer_pipeline.models.weights import pack

Rows = list[dict[str, Any]]


def config(source: Path, out: Path, **options: Any) -> LabelConfig:
    return LabelConfig.model_validate({"source": str(source), "out": str(out), "detector": "mtcnn", "shard_records": 8} | options)


def rows(out: Path, table: str = "images") -> Rows:
    found = pq.read_table(out / table).sort_by("record_id").drop_columns(["run_id", "labelled_at"])
    return found.to_pylist()  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def finished(archive: Path, tmp_path_factory: pytest.TempPathFactory, local_ray: None) -> Path:
    out = tmp_path_factory.mktemp("label") / "run"
    label.run(config(archive, out))
    return out


def test_a_run_folder_holds_all_that_it_should(finished: Path) -> None:
    assert {path.name for path in finished.iterdir()} == {"manifest", "images", "faces", "run.json", "report.html", "_SUCCESS"}
    assert [path.name for path in sorted((finished / "images").iterdir())] == [f"{shard:06d}.parquet" for shard in range(5)]
    assert pq.read_table(finished / "images").schema.equals(IMAGES)
    assert pq.read_table(finished / "faces").schema.equals(FACES)
    classes = json.loads((finished / "run.json").read_text())["classes"]
    for table in ("images", "faces"):
        for path in (finished / table).iterdir():
            assert json.loads(pq.read_schema(path).metadata[b"classes"]) == classes == list(FER7.classes), path


def test_every_record_has_one_row_and_every_face_stands_in_both_tables(finished: Path) -> None:
    images, faces = rows(finished), rows(finished, "faces")
    assert [row["record_id"] for row in images] == list(range(36))
    nested = [(row["record_id"], face["face_id"], face["expression"]) for row in images for face in row["faces"]]
    assert sorted(nested) == sorted((face["record_id"], face["face_id"], face["expression"]) for face in faces)
    run = json.loads((finished / "run.json").read_text())
    assert {*pq.read_table(finished / "faces")["run_id"].to_pylist()} == {run["run_id"]}
    assert {(row["model_digest"], row["detector_digest"]) for row in faces} == {
        (run["model"]["digest"], run["detector"]["digest"])
    }
    assert run["result"]["counts"] == {"no_face": 14, "ok": 20, "undecodable": 2}
    assert run["result"]["faces"] == len(faces) == 28
    assert run["skipped"] == {".txt": 1}
    assert len(run["detector"]["digest"]) == len(run["model"]["digest"]) == 64


def test_running_a_finished_run_again_does_nothing(finished: Path, archive: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    label.run(config(archive, finished))
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before


@pytest.mark.parametrize("option", [{"detect_px": 320}, {"detector": "none"}, {"uncertain_below": 0.9}])
def test_a_run_folder_of_another_configuration_is_refused(finished: Path, archive: Path, option: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="was begun with another"):
        label.run(config(archive, finished, **option))


def test_lost_shards_are_done_again_with_the_same_labels(finished: Path, archive: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(finished, tmp_path / "run"))
    (out / "_SUCCESS").unlink()
    (out / "images" / "000001.parquet").unlink()
    (out / "images" / "000004.parquet").unlink()
    kept = (out / "images" / "000000.parquet").stat().st_mtime_ns
    record = label.run(config(archive, out))
    assert record.result is not None and record.result.labelled_now == 12
    assert rows(out) == rows(finished)
    assert (out / "images" / "000000.parquet").stat().st_mtime_ns == kept


def test_too_many_failures_end_the_run_with_everything_written(archive: Path, tmp_path: Path, local_ray: None) -> None:
    with pytest.raises(FailureRateExceeded, match="2 of 36 records failed"):
        label.run(config(archive, tmp_path / "run", detector="none", max_failure_rate=0.01))
    assert len(rows(tmp_path / "run")) == 36
    assert (tmp_path / "run" / "report.html").exists() and not (tmp_path / "run" / "_SUCCESS").exists()


def test_what_the_user_must_mend_writes_nothing(archive: Path, tmp_path: Path, local_ray: None) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("no image")
    (tmp_path / "bundle").mkdir()
    faults = [
        (config(tmp_path / "none", tmp_path / "out"), "does not exist"),
        (config(tmp_path, tmp_path / "runs" / "one"), "is below its source"),
        (config(tmp_path / "empty", tmp_path / "out"), "holds no images"),
        (config(archive, tmp_path / "out", model=str(tmp_path / "bundle")), "no model bundle"),
        (config(archive, tmp_path / "out", keep=["id"]), "--keep is for a list"),
        (config(archive, tmp_path / "out", base=["/data"]), "--base is for a list"),
        (config(archive, tmp_path / "out", uri_column="uri", keep=["Phash"]), "--keep Phash: tables or exports have"),
        (config(archive, tmp_path / "out", uri_column="uri", keep=["id", "ID"]), "--keep ID: tables or exports have"),
        (config(archive, tmp_path / "out", uri_column="uri", keep=["p_happy"]), "--keep p_happy: tables or exports have"),
        (config(archive, tmp_path / "out", uri_column="uri", keep=["offset"]), "--keep offset: tables or exports have"),
        (config(archive, tmp_path / "out", uri_column="uri"), "is a folder, and --uri-column needs a list"),
        (config(tmp_path / "empty" / "notes.txt", tmp_path / "out"), "name the column by --uri-column"),
        (config(archive, tmp_path / "out", table=str(tmp_path / "t"), limit=3), "--limit is for a first try"),
        (config(archive, tmp_path / "out", detector="yunet", detector_weights=str(archive / "notes.txt")), "sha256"),
    ]
    for faulty, complaint in faults:
        with pytest.raises(UserError, match=complaint):
            label.run(faulty)
        assert not (tmp_path / "out").exists()


def test_rows_say_where_an_image_is_below_its_source_and_which_classes_it_has(finished: Path) -> None:
    images, faces = rows(finished), rows(finished, "faces")
    assert {"2026/01/hopper-800.jpg", "groups.tar/people/1.png"} & {row["path"] for row in images}
    for row in images:
        assert row["path"].startswith(row["folder"]) and row["uri"].endswith(row["path"].removesuffix(f"/{row['member']}"))
        assert (row["phash"] is None) == (row["width"] is None) and row["classes"].split(",") == list(FER7.classes)
    assert {(row["path"], row["folder"]) for row in faces} <= {(row["path"], row["folder"]) for row in images}
    assert all(len(row["probabilities"]) == len(row["classes"].split(",")) for row in faces)


def test_a_list_is_labelled_with_the_columns_that_it_keeps(archive: Path, tmp_path: Path, local_ray: None) -> None:
    names = ["2026/01/hopper-800.jpg", "groups.tar", "gone.jpg", "broken/empty.jpg", "2026/01/hopper-800.jpg"]
    listed = pa.table({"path": names, "id": [3, 1, 4, 1, 5], "note_": ["a", None, "c", "d", "e"]})
    pq.write_table(listed, tmp_path / "list.parquet")
    options = {"uri_column": "path", "base": [str(archive)], "keep": ["id", "note_"], "max_failure_rate": 1}
    out = tmp_path / "run"
    record = label.run(config(tmp_path / "list.parquet", out, **options))
    found = {row["path"]: row for row in rows(out)}
    assert record.source == str(archive) and len(found) == record.records
    assert found["2026/01/hopper-800.jpg"]["id"] == 3 and found["broken/empty.jpg"]["status"] == "undecodable"
    assert found["gone.jpg"]["status"] == "unreadable" and found["gone.jpg"]["note_"] == "c"
    members = [row for path, row in found.items() if path.startswith("groups.tar/")]
    assert len(members) == len(found) - 3 > 1 and {(row["id"], row["note_"]) for row in members} == {(1, None)}
    faces = rows(out, "faces")
    assert {row["id"] for row in faces} <= {1, 3} and faces[0]["id"] == 3
    assert Run(str(out)).faces(columns=["path", "id"])["id"].to_pylist() == [row["id"] for row in faces]
    assert label.run(config(tmp_path / "list.parquet", out, **options)) == record
    with pytest.raises(UserError, match="begun with another keep"):
        label.run(config(tmp_path / "list.parquet", out, **options | {"keep": ["id"]}))
    assert "hopper-800.jpg" in (out / "report.html").read_text()


def test_a_list_makes_no_row_of_a_table_vanish(archive: Path, tmp_path: Path, local_ray: None) -> None:
    table, places = str(tmp_path / "table"), {"page": str(tmp_path / "nights.html")}
    whole = {"source": str(archive), "detector": "mtcnn", "table": table, "out": str(tmp_path / "first"), **places}
    nightly.run(NightlyConfig.model_validate(whole | {"audit": {"failed": 1}}))
    before = Table(table).images()
    (tmp_path / "list.txt").write_text("2026/01/hopper-800.jpg\ngone.jpg\n")
    some = whole | {
        "source": str(tmp_path / "list.txt"),
        "uri_column": "uri",
        "base": [str(archive)],
        "out": str(tmp_path / "second"),
    }
    (tmp_path / "other.txt").write_text("2026/02/coffee-1024.jpg\n")
    other = {"source": str(tmp_path / "other.txt"), "uri_column": "uri", "base": [str(archive)], "table": table}
    earlier = LabelConfig.model_validate(other | {"out": str(tmp_path / "other"), "detector": "mtcnn", "detect_px": 320})
    label.run(earlier)
    night = nightly.run(NightlyConfig.model_validate(some | {"audit": {"failed": 1}, "max_failure_rate": 1}))
    after = Table(table).images()
    assert night.vanished == 0 and night.records == 1
    assert sorted(after["path"].to_pylist()) == sorted([*before["path"].to_pylist(), "gone.jpg"])
    published = publish.run(PublishConfig(run=str(tmp_path / "other"), table=table))  # another list is another scope
    assert published.records == 1 and len(Table(table).images()) == len(after)


def test_a_first_try_labels_the_first_or_some_records(archive: Path, tmp_path: Path, finished: Path, local_ray: None) -> None:
    all_paths = [row["path"] for row in rows(finished)]
    label.run(config(archive, tmp_path / "first", limit=5, max_failure_rate=1))
    assert [row["path"] for row in rows(tmp_path / "first")] == all_paths[:5]
    label.run(config(archive, tmp_path / "some", sample=7, max_failure_rate=1))
    some = [row["path"] for row in rows(tmp_path / "some")]
    assert len(some) == 7 and some == [path for path in all_paths if path in some]


def test_labels_under_the_archives_own_prior_stand_beside_the_rows(finished: Path, archive: Path, tmp_path: Path) -> None:
    before = sorted((finished / "faces").iterdir())
    held = [file.read_bytes() for file in before]
    result = report.run(ReportConfig(run=str(finished), prior="em"))
    assert result.corrected == str(finished / "faces_prior_em") and [file.read_bytes() for file in before] == held
    faces, corrected = pq.read_table(finished / "faces").to_pylist(), pq.read_table(result.corrected).to_pylist()
    assert [(one["record_id"], one["face_id"]) for one in corrected] == [(one["record_id"], one["face_id"]) for one in faces]
    classes = read_bundle(EMBEDDED).card.label_space.classes
    for row in corrected:
        assert sum(row["probabilities"]) == pytest.approx(1, abs=1e-5)
        assert row["expression"] == classes[int(np.argmax(row["probabilities"]))]
        assert row["confidence"] == max(row["probabilities"])
    assert "own class prior" in (finished / "report.html").read_text()
    card = ModelCard(name="another", network=NetworkConfig(width=4), label_space=read_bundle(EMBEDDED).card.label_space)
    save_bundle(str(tmp_path / "another"), pack(build(card.network, 7), card))
    with pytest.raises(UserError, match="did not label the run"):
        report.run(ReportConfig(run=str(finished), prior="em", model=str(tmp_path / "another")))
    shutil.rmtree(finished / "faces_prior_em")
    report.run(ReportConfig(run=str(finished), source=str(archive)))


def test_the_page_can_be_written_again_with_and_without_faces(finished: Path, archive: Path) -> None:
    assert "data:image/jpeg;base64" in (finished / "report.html").read_text()
    report.run(ReportConfig(run=str(finished)))
    assert "data:image" not in (finished / "report.html").read_text()
    report.run(ReportConfig(run=str(finished), source=str(archive)))
    assert "data:image" in (finished / "report.html").read_text()


def test_the_driver_decodes_nothing(archive: Path, tmp_path: Path, local_ray: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """An untrusted image may kill, hang or bloat its decoder, so another process cuts the pictures of the page."""
    for owner, name in ((cv2, "imdecode"), (Image, "open")):
        monkeypatch.setattr(owner, name, lambda *_, **__: pytest.fail("the driver decodes"))
    label.run(config(archive, tmp_path / "run", detector="none"))
    page = (tmp_path / "run" / "report.html").read_text()
    assert page.count("data:image/jpeg") > 10 and "Faces without a picture" not in page


def test_a_page_that_cannot_be_drawn_does_not_cost_the_run(
    archive: Path, tmp_path: Path, local_ray: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "label_report", Mock(side_effect=RuntimeError("no ink")))
    record = label.run(config(archive, tmp_path / "run", detector="none"))
    assert record.result and (tmp_path / "run" / "_SUCCESS").exists()
    page = (tmp_path / "run" / "report.html").read_text()
    assert "no ink" in page and f"fer-pipeline report {tmp_path / 'run'}" in page


def test_a_missing_detector_labels_no_table_anew(
    archive: Path, tmp_path: Path, local_ray: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Without a table `auto` falls back with a warning; with one, all rows would be labelled again, with other faces."""
    monkeypatch.setenv("FER_PIPELINE_MODELS", str(tmp_path / "empty"))
    monkeypatch.setattr(yunet.WEIGHTS, "url", "http://127.0.0.1:9/yunet.onnx")
    photo, table = next(archive.rglob("hopper-640.jpg")), str(tmp_path / "table")
    night = {"source": str(photo), "table": table, "page": str(tmp_path / "nights.html")}
    with pytest.raises(UserError, match="For a table yunet is not replaced by mtcnn"):
        nightly.run(NightlyConfig.model_validate(night | {"out": str(tmp_path / "first")}))
    nightly.run(NightlyConfig.model_validate(night | {"out": str(tmp_path / "second"), "detector": "mtcnn"}))
    with pytest.raises(UserError, match=r"For a table whose faces mtcnn found, yunet is not replaced .*\$FER_PIPELINE_MODELS"):
        nightly.run(NightlyConfig.model_validate(night | {"out": str(tmp_path / "third")}))
    caplog.clear()
    label.run(LabelConfig(source=str(photo), out=str(tmp_path / "run")))
    assert "The slower detector mtcnn finds the faces" in caplog.text


@pytest.mark.parametrize("name", ["runs#1", "runs?x=1", "per%20cent", "sp ace"])
def test_a_run_and_a_model_stand_where_they_are_said_to(name: str, archive: Path, tmp_path: Path, local_ray: None) -> None:
    place, photos = tmp_path / name, tmp_path / name / "photos#1"
    photos.mkdir(parents=True)
    shutil.copy(next(archive.rglob("hopper-640.jpg")), photos / "photo#1%20.jpg")
    models.push(PushConfig(model=EMBEDDED, name="faces", alias=("production",), registry=str(place / "registry")))
    model = f"{place}/registry/faces@production"
    record = label.run(LabelConfig(source=str(photos), out=str(place / "run"), detector="none", model=model))
    assert record.result and record.result.counts == {"ok": 1} and record.model.version == "1"
    assert (place / "run" / "_SUCCESS").exists() and [path.name for path in tmp_path.iterdir()] == [name]
    assert report.run(ReportConfig(run=str(place / "run"))).report == str(place / "run" / "report.html")
