"""The labels of a run and of its table, as tables and crops."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import fer_pipeline as fer
from fer_pipeline.api import labels
from fer_pipeline.base.errors import UserError
from fer_pipeline.jobs import publish
from fer_pipeline.jobs.publish import PublishConfig
from fer_pipeline.models.framing import LANDMARK_COLUMNS
from fer_pipeline.table import places
from fer_pipeline.table.delta import LabelTable
from fer_pipeline.table.flat import chosen

CLASSES = ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")


def test_faces_are_those_of_the_run_flat(labelled: fer.Run) -> None:
    faces, written = labelled.faces(), pq.read_table(f"{labelled.url}/faces")
    assert len(faces) == len(written) > 10
    probabilities = np.stack([faces[f"p_{name}"].to_numpy() for name in CLASSES], 1)
    assert np.array_equal(probabilities, np.array(written["probabilities"].to_pylist(), np.float32))
    landmarks = np.stack([faces[name].to_numpy() for name in LANDMARK_COLUMNS], 1)
    assert np.array_equal(landmarks, np.array(written["landmarks"].to_pylist(), np.float32))
    for name in ("uri", "member", "time_ms", "face_id", "expression", "confidence", "uncertain", "x", "w", "model", "run_id"):
        assert faces[name].to_pylist() == written[name].to_pylist(), name
    assert faces["width"].null_count == 0 and faces["p_happy"].type == pa.float32()
    tar = next(row for row in faces.to_pylist() if row["member"])
    assert tar["path"] == f"{Path(tar['uri']).name}/{tar['member']}" and tar["folder"] == Path(tar["path"]).parent.as_posix()


def test_once_each_content_counts_once(archive: Path, tmp_path: Path, local_ray: None) -> None:
    photo = next(archive.rglob("hopper-640.jpg"))
    for name in ("b.jpg", "a.jpg", "deep/c.jpg"):
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(photo, tmp_path / "photos" / name)
    shutil.copy(next(archive.rglob("astronaut-640.jpg")), tmp_path / "photos/d.jpg")
    run = fer.label(tmp_path / "photos", tmp_path / "run", detector="mtcnn", shard_records=1)
    publish.run(PublishConfig(run=run.url, table=str(tmp_path / "table")))
    for labels_of in (run, fer.Table(str(tmp_path / "table"))):
        assert sorted(labels_of.faces()["path"].to_pylist()) == ["a.jpg", "b.jpg", "d.jpg", "deep/c.jpg"]
        assert sorted(labels_of.faces(once=True)["path"].to_pylist()) == ["a.jpg", "d.jpg"]
        assert labels_of.faces(once=True, where="path = 'b.jpg'").num_rows == 0
        found = labels_of.copies().select(["group", "kind", "path", "like"]).to_pylist()
        kinds = {"a.jpg": "original", "b.jpg": "exact", "deep/c.jpg": "exact"}
        assert found == [{"group": 0, "kind": kind, "path": path, "like": "a.jpg"} for path, kind in kinds.items()]
    assert sorted(one.row["path"] for one in run.crops(once=True)) == ["a.jpg", "d.jpg"]


def test_a_copy_that_failed_does_not_hide_the_one_that_was_labelled() -> None:
    rows = [("1", []), ("1", [1]), (None, [1]), ("1", [1]), ("2", [1])]
    images = pa.table({"content_sha256": [one for one, _ in rows], "faces": [faces for _, faces in rows]})
    known = set[str]()
    assert labels._without_copies(images, known).to_pylist() == [True, True, True, False, True]
    assert labels._without_copies(images, known).to_pylist() == [False, False, True, False, False]


def test_copies_are_those_of_the_run_and_of_its_table(labelled: fer.Run, published: fer.Table) -> None:
    found = labelled.copies()
    assert found.equals(published.copies()) and {"original", "resized", "mirrored"} <= set(found["kind"].to_pylist())
    likes = [Path(row["like"]).name for row in found.to_pylist() if row["kind"] == "original"]
    assert likes == ["hopper-1600.jpg", "astronaut-1600.jpg", "coffee-1600.jpg", "coins-1600.jpg"]


def test_a_table_has_the_faces_of_its_run(labelled: fer.Run, published: fer.Table) -> None:
    assert published.version == 1 and [one["operation"] for one in published.history()][-1] == "CREATE TABLE"
    order = [("path", "ascending"), ("time_ms", "ascending"), ("face_id", "ascending")]
    assert published.faces().sort_by(order).equals(labelled.faces().sort_by(order))
    assert published.images(where="status != 'ok'").num_rows == labelled.images(where="status != 'ok'").num_rows > 0
    assert published.images().num_rows == labelled.record.records == labelled.images().num_rows


def test_faces_are_chosen_by_certainty_by_sql_and_by_column(labelled: fer.Run) -> None:
    everything = labelled.faces().to_pylist()
    certain = labelled.faces(certain=True)
    assert 0 < len(certain) < len(everything) and not any(certain["uncertain"].to_pylist())
    found = labelled.faces(where="expression = 'happy' and confidence > 0.8 and not uncertain", columns=["path", "confidence"])
    expected = [row for row in everything if row["expression"] == "happy" and row["confidence"] > 0.8 and not row["uncertain"]]
    assert found.to_pylist() == [{"path": row["path"], "confidence": row["confidence"]} for row in expected] and expected
    assert labelled.faces(where="labelled_at > '2020' and note is null").num_rows == len(everything)
    assert labelled.faces(where="expression = 'none'").num_rows == 0


@pytest.mark.parametrize("where", ["expresion = 'happy'", "happy;", "1; drop table faces", "", "count(*)"])
def test_an_impossible_condition_is_one_sentence(where: str) -> None:
    with pytest.raises(UserError, match=r"cannot be used: .* the columns are expression"):
        chosen(pa.table({"expression": ["happy"]}), where or " ")


def test_a_column_or_an_option_that_is_none_is_named(labelled: fer.Run, tmp_path: Path, archive: Path) -> None:
    with pytest.raises(UserError, match="There is no column 'p_joy': choose from path, folder"):
        labelled.faces(columns=["p_joy"])
    with pytest.raises(UserError, match="unknown key 'detectr'"):
        fer.label(archive, tmp_path / "run", detectr="yunet")
    with pytest.raises(UserError, match="There is no labelling run in"):
        fer.Run(str(tmp_path / "nothing"))
    with pytest.raises(UserError, match="There is no table in"):
        fer.Table(str(tmp_path / "nothing"))


@pytest.mark.parametrize("of", ["run", "table"])
def test_crops_show_the_most_confident_faces(of: str, labelled: fer.Run, published: fer.Table) -> None:
    labels: fer.Run | fer.Table = labelled if of == "run" else published
    crops = labels.crops(where="expression = 'happy'", top=3)
    confidences = sorted(labelled.faces(where="expression = 'happy'")["confidence"].to_pylist(), reverse=True)
    assert [one.row["confidence"] for one in crops] == confidences[:3]
    for one in crops:
        assert np.asarray(cv2.imdecode(np.frombuffer(one.jpeg, np.uint8), cv2.IMREAD_COLOR)).shape == (128, 128, 3)
        assert one._repr_jpeg_() == one.jpeg and "happy" in repr(one) and "record_id" not in one.row
    assert len(labels.crops(top=1000)) == labelled.faces().num_rows, "also those in tars, zips and videos"


def test_only_pictures_below_the_source_are_opened(labelled: fer.Run, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert labelled.crops(source=str(tmp_path), top=5) == []
    assert "5 of the faces have no picture: outside the source" in caplog.text
    with pytest.raises(UserError, match="Name the folder or URL of the images"):
        fer.Run(labelled.url).crops()


def test_a_run_that_is_not_finished_has_the_labels_of_what_is_done(labelled: fer.Run, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(labelled.url, copy)
    for name in ("images/000000.parquet", "_SUCCESS"):
        (copy / name).unlink()
    assert fer.Run(str(copy)).images().num_rows == labelled.images().num_rows - 8


def test_importing_is_quick_and_loads_nothing_heavy() -> None:
    code = (
        "import sys, fer_pipeline as fer; print(sorted({'ray', 'cv2', 'pyarrow', 'torch', 'numpy'} & set(sys.modules)), dir(fer))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.startswith("[]") and "predict" in out
    with pytest.raises(AttributeError, match="no attribute 'labels'"):
        fer.labels  # noqa: B018


@pytest.mark.parametrize(
    ("where", "rows"),
    [
        ("\"Expression\" = 'happy'", 2),
        ("EXPRESSION = 'happy' and confidence > '0.8'", 1),
        ("uncertain", 1),
        ("labelled_at < '2030'", 3),
        ("expression in ('sad', 'a \"quoted\" text', 'select')", 1),
    ],
)
def test_a_condition_means_what_it_says(where: str, rows: int) -> None:
    table = pa.table(
        {
            "expression": ["happy", "happy", "sad"],
            "confidence": pa.array([0.9, 0.5, 0.7], pa.float32()),
            "uncertain": [False, True, False],
            "labelled_at": pa.array([datetime(2026, 1, 1, tzinfo=UTC)] * 3),
        }
    )
    assert chosen(table, where).num_rows == rows


@pytest.mark.parametrize("where", ['"p_hapy" > 0.1', "confidence >= (select max(confidence) from faces)", '"happy" = expression'])
def test_what_another_database_would_refuse_is_refused(where: str) -> None:
    with pytest.raises(UserError, match=r"there is no column|without select"):
        chosen(pa.table({"expression": ["happy"], "confidence": [0.9]}), where)


def planted(published: fer.Table, tmp_path: Path, change: Callable[[pa.Table], pa.Table]) -> fer.Table:
    """Return a copy of the table in which somebody has changed the rows of its file."""
    place = tmp_path / "planted"
    shutil.copytree(published.url, place)
    (file,) = place.glob("*.parquet")
    pq.write_table(change(pq.read_table(file)), file)
    return fer.Table(str(place))


def replaced(name: str, values: pa.Array | pa.ChunkedArray) -> Callable[[pa.Table], pa.Table]:
    return lambda rows: rows.set_column(rows.column_names.index(name), name, values)


def test_a_table_that_names_files_elsewhere_opens_none_of_them(
    published: fer.Table, archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    monkeypatch.setattr(places, "Listing", lambda uri, *_: opened.append(uri))
    rows = pq.read_table(next(Path(published.url).glob("*.parquet")))
    elsewhere = pa.array([f"/etc/{number}.tar" for number in range(len(rows))])
    table = planted(published, tmp_path, replaced("uri", elsewhere))
    assert table.crops(source=str(archive)) == [] and opened == []


def test_a_face_is_not_cut_from_another_picture(archive: Path, tmp_path: Path, local_ray: None, caplog: Any) -> None:
    photos = tmp_path / "photos"
    shutil.copytree(archive / "2026", photos)
    run = fer.label(photos, tmp_path / "run", detector="mtcnn")
    publish.run(PublishConfig(run=run.url, table=str(tmp_path / "table")))
    table = fer.Table(str(tmp_path / "table"), source=str(photos))
    everything = len(table.crops(top=100))
    changed = next(photos.rglob("hopper-640.jpg"))
    changed.write_bytes(next(photos.rglob("astronaut-640.jpg")).read_bytes())
    for labels_of in (run, table):
        assert len(labels_of.crops(top=100)) == everything - 1
        assert "the file changed after it was listed" in caplog.text


def test_damaged_and_planted_rows_are_one_sentence(published: fer.Table, tmp_path: Path) -> None:
    rows = pq.read_table(next(Path(published.url).glob("*.parquet")))
    short = [[face | {"probabilities": [1.0]} for face in faces] for faces in rows["faces"].to_pylist()]
    changes = [
        lambda rows: rows.drop_columns(["uri"]),
        replaced("uri", pa.array(["x" * 40_000] * len(rows))),
        replaced("faces", pa.array([None] * len(rows), rows.schema.field("faces").type)),
        replaced("faces", pa.array(short, rows.schema.field("faces").type)),
        replaced("faces", pa.array(["none"] * len(rows))),
        replaced("qualities", pa.array([[{"quality": "high"} for _ in faces] for faces in rows["faces"].to_pylist()])),
        replaced("qualities", pa.array([7] * len(rows))),
        replaced("phash", pa.array([1.5] * len(rows)).cast(pa.float64())),
    ]
    for number, change in enumerate(changes):
        place = tmp_path / str(number)
        place.mkdir()
        table = planted(published, place, change)
        try:
            table.faces()
        except UserError as error:
            assert "does not hold the labels that this project writes" in str(error), number
        else:
            assert number in (2, 7), "rows without faces are none, and what is no hash is none"


def test_a_table_that_does_not_name_its_classes_numbers_them(published: fer.Table, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(LabelTable, "classes", ())
    table = fer.Table(published.url)
    assert table.classes == tuple("0123456") and table.faces(where="p_0 >= 0").num_rows == published.faces().num_rows
