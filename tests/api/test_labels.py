"""The labels of a run and of its table, as tables and crops."""

import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import fer_pipeline as fer
from fer_pipeline.api.flat import LANDMARK_COLUMNS, chosen
from fer_pipeline.base.errors import UserError

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
