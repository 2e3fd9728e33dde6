"""What a model says of faces besides the classes travels to all tables and exports, and is null for other models."""

import csv
import shutil
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
from fer_pipeline.cli import faces
from fer_pipeline.cli.faces import ExportConfig
from fer_pipeline.jobs import publish
from fer_pipeline.jobs.publish import PublishConfig
from fer_pipeline.models.bundle import bundle_of, save_bundle
from fer_pipeline.models.card import ModelCard
from fer_pipeline.models.label_space import FER7
from fer_pipeline.table.delta import LabelTable
from tests.models.test_onnx import foreign

VALUES = [{"column": "valence", "index": 7, "low": -1, "high": 1}, {"column": "arousal", "index": 8}]
WEIGHT = np.random.default_rng(0).normal(size=(48, 9)) / 50


def model_at(folder: Path, further: list[dict[str, Any]], weight: Any = WEIGHT) -> str:
    facts = {"name": "moods", "format": "onnx", "network": {"image_px": 4, "channels": 3}, "label_space": FER7.model_dump()}
    save_bundle(str(folder), bundle_of(ModelCard.model_validate(facts | {"further": further}), foreign(["n", 3, 4, 4], weight)))
    return str(folder)


def test_values_are_columns_of_all_tables(archive: Path, tmp_path: Path, local_ray: None) -> None:
    model = model_at(tmp_path / "model", VALUES)
    run = fer.label(archive, tmp_path / "run", detector="mtcnn", model=model)
    found = run.faces().sort_by([("path", "ascending"), ("face_id", "ascending")])
    assert found["valence"].null_count == 0 and len(set(found["arousal"].to_pylist())) > 3
    assert run.record.outputs == ("valence", "arousal")
    written = pq.read_table(f"{run.url}/faces").to_pylist()
    values = [[row[name] for name in run.record.outputs] for row in found.to_pylist()]
    assert sorted(row["outputs"] for row in written) == sorted(values)
    publish.run(PublishConfig(run=run.url, table=str(tmp_path / "table")))
    table = fer.Table(str(tmp_path / "table"))
    again = table.faces().sort_by([("path", "ascending"), ("face_id", "ascending")])
    for name in ("valence", "arousal"):
        assert again[name].to_pylist() == found[name].to_pylist()
    for one in (run, table):
        faces.export(ExportConfig(labels=one.url, to=str(tmp_path / "x.csv"), where="valence > -2", columns="path,valence"))
        rows = list(csv.DictReader((tmp_path / "x.csv").read_text().splitlines()))
        assert len(rows) == len(found) and all(-1 <= float(row["valence"]) <= 1 for row in rows)
        for kind in ("csv", "parquet", "jsonl"):
            exported = faces.export(ExportConfig(labels=one.url, to=str(tmp_path / f"x.{kind}")))
            assert exported is not None and exported.faces == len(found)
        assert pq.read_table(tmp_path / "x.parquet")["arousal"].null_count == 0
    photo = found["uri"].to_pylist()[found["member"].to_pylist().index(None)]
    predicted = fer.predict(photo, detector="mtcnn", model=model)
    assert predicted["valence"].to_pylist() == [row["valence"] for row in found.to_pylist() if row["uri"] == photo]


def test_a_night_with_another_model_leaves_values_null(archive: Path, tmp_path: Path, local_ray: None) -> None:
    photo, table = next(archive.rglob("hopper-640.jpg")), str(tmp_path / "table")
    for number, options in enumerate(({"model": model_at(tmp_path / "model", VALUES)}, {})):
        source = tmp_path / "photos" / f"{number}.jpg"
        source.parent.mkdir(exist_ok=True)
        source.write_bytes(photo.read_bytes() + b"\0" * number)
        run = fer.label(source.parent, tmp_path / f"run{number}", detector="mtcnn", table=table, relabel_budget=0, **options)
        publish.run(PublishConfig(run=run.url, table=table, accept=("churn", "expressions")))
    rows = {row["path"]: row for row in fer.Table(table).faces().to_pylist()}
    assert rows["0.jpg"]["valence"] is not None and rows["1.jpg"]["valence"] is None


def test_a_run_whose_first_images_show_no_face_is_exported(
    archive: Path, tmp_path: Path, local_ray: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(labels, "SHARDS_AT_ONCE", 1)
    (tmp_path / "photos").mkdir()
    cv2.imwrite(str(tmp_path / "photos" / "a.png"), np.zeros((64, 64, 3), np.uint8))
    shutil.copy(next(archive.rglob("hopper-640.jpg")), tmp_path / "photos" / "b.jpg")
    options = {"detector": "mtcnn", "shard_records": 1, "model": model_at(tmp_path / "model", VALUES)}
    run = fer.label(tmp_path / "photos", tmp_path / "run", **options)
    assert faces.export(ExportConfig(labels=run.url, to=str(tmp_path / "x.csv"))) is not None
    assert "valence" in (tmp_path / "x.csv").read_text()


@pytest.mark.parametrize("names", ["expression,confidence", "uri,path", "x y,z", ",".join(f"a{number}" for number in range(300))])
def test_names_that_no_card_gives_are_refused(names: str, archive: Path, tmp_path: Path, local_ray: None) -> None:
    """Another program may have written a run or a table."""
    run = fer.label(
        next(archive.rglob("hopper-640.jpg")), tmp_path / "run", detector="mtcnn", model=model_at(tmp_path / "m", VALUES)
    )
    publish.run(PublishConfig(run=run.url, table=str(tmp_path / "table")))
    table = LabelTable(str(tmp_path / "table"))
    file = table.path(table.files[0].path)
    rows = pq.read_table(file)
    place = rows.column_names.index("output_names")
    pq.write_table(rows.set_column(place, rows.schema.field(place), pa.array([names] * len(rows))), file)
    with pytest.raises(UserError, match="does not hold the labels that this project writes"):
        fer.Table(str(tmp_path / "table")).faces()


@pytest.mark.parametrize("name", ["confidence", "p_happy", "nose_x", "input"])
def test_a_value_of_the_name_of_a_column_is_refused(name: str, archive: Path, tmp_path: Path) -> None:
    model = model_at(tmp_path / "model", [VALUES[0], {"column": name, "index": 8}])
    with pytest.raises(UserError, match=f"has a further output '{name}': tables or exports have a column of that name"):
        fer.label(archive, tmp_path / "run", detector="mtcnn", model=model)
    with pytest.raises(UserError, match="give it another name in its card"):
        fer.predict(next(archive.rglob("hopper-640.jpg")), detector="mtcnn", model=model)
