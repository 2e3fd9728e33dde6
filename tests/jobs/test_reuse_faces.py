"""A new model labels the faces that an earlier run found, as it would label them after detecting them again."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fer_pipeline.base.errors import UserError
from fer_pipeline.jobs import nightly
from fer_pipeline.jobs.label import job as label
from fer_pipeline.jobs.nightly import NightlyConfig
from fer_pipeline.labelling.run import RunFolder, RunRecord
from fer_pipeline.models.bundle import EMBEDDED, read_bundle, save_bundle
from fer_pipeline.models.card import ModelCard
from fer_pipeline.models.network_config import NetworkConfig
from fer_pipeline.models.networks import build
from fer_pipeline.models.weights import pack
from fer_pipeline.table.delta import LabelTable
from tests.jobs.test_label import config, rows


@pytest.fixture(scope="module")
def photos(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample archive, a photo that is decoded at half of its odd size, and a video."""
    folder = tmp_path_factory.mktemp("source") / "photos"
    shutil.copytree(archive, folder)
    hopper = cv2.imread(str(next(folder.rglob("hopper-640.jpg"))))
    assert hopper is not None
    cv2.imwrite(str(folder / "odd.jpg"), cv2.resize(hopper, (1301, 1777)))
    writer = cv2.VideoWriter(str(folder / "v.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 2, (hopper.shape[1], hopper.shape[0]))
    for _ in range(5):
        writer.write(hopper)
    writer.release()
    return folder


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Another model, whose crops are larger, coloured and cut by the box."""
    folder = tmp_path_factory.mktemp("model") / "other"
    network = NetworkConfig(width=4, image_px=64, channels=3)
    card = ModelCard(name="other", network=network, label_space=read_bundle(EMBEDDED).card.label_space)
    save_bundle(str(folder), pack(build(network, 7), card))
    return str(folder)


@pytest.fixture(scope="module")
def first(photos: Path, tmp_path_factory: pytest.TempPathFactory, local_ray: None) -> Path:
    out = tmp_path_factory.mktemp("first") / "run"
    label.run(config(photos, out))
    return out


@pytest.fixture(scope="module")
def anew(photos: Path, other: str, tmp_path_factory: pytest.TempPathFactory, local_ray: None) -> Path:
    out = tmp_path_factory.mktemp("anew") / "run"
    label.run(config(photos, out, model=other))
    return out


def published(table: str) -> list[dict[str, Any]]:
    """Return the rows of a table that one night has published."""
    return pq.read_table([LabelTable(table).path(file.path) for file in LabelTable(table).files]).to_pylist()  # type: ignore[no-any-return]


def located(out: Path) -> int:
    manifest = pq.read_table(out / "manifest")
    return len(manifest) - int(manifest["faces_row"].null_count)


def test_labels_are_those_of_detecting_again(photos: Path, first: Path, anew: Path, other: str, tmp_path: Path) -> None:
    label.run(config(photos, tmp_path / "run", model=other, reuse_faces=str(first)))
    assert rows(tmp_path / "run") == rows(anew) and rows(tmp_path / "run", "faces") == rows(anew, "faces")
    labelled = [row for row in rows(first) if row["status"] in ("ok", "no_face")]
    assert located(tmp_path / "run") == len(labelled) > 35
    again = label.run(config(photos, tmp_path / "run", model=other, reuse_faces=str(first)))
    assert again.settings["reuse_faces"] == str(first)


def test_a_night_with_a_new_model_keeps_the_faces_of_its_table(
    photos: Path, anew: Path, other: str, tmp_path: Path, local_ray: None
) -> None:
    """Of the files that changed meanwhile, and of new ones, the faces are detected."""
    source, table = tmp_path / "photos", str(tmp_path / "table")
    shutil.copytree(photos, source)
    night = {"source": str(source), "table": table, "page": str(tmp_path / "nights.html"), "detector": "mtcnn"}
    nightly.run(NightlyConfig.model_validate(night | {"out": str(tmp_path / "one")}))
    shutil.copy(next(source.rglob("astronaut*.jpg")), source / "odd.jpg")
    shutil.copy(next(source.rglob("astronaut*.jpg")), source / "new.jpg")
    held = sum(row["status"] in ("ok", "no_face") for row in published(table))
    nightly.run(NightlyConfig.model_validate(night | {"out": str(tmp_path / "two"), "model": other, "accept": ("churn",)}))
    assert located(tmp_path / "two") == held - 1
    anew = tmp_path / "anew"
    label.run(config(source, anew, model=other))
    ours = {(row["uri"], row["member"], row["time_ms"]): row for row in rows(tmp_path / "two")}
    for row in rows(anew):
        found = ours[row["uri"], row["member"], row["time_ms"]]
        assert (found["faces"], found["qualities"]) == (row["faces"], row["qualities"])


@pytest.mark.parametrize("change", [{"detect_px": 320}, {"detection_threshold": 0.99}, {"detector": "none"}])
def test_faces_of_other_settings_are_refused(change: dict[str, object], photos: Path, first: Path, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    label.run(config(photos, whole, limit=4, **change))
    with pytest.raises(UserError, match=r"--reuse-faces: no image in .* was labelled with this detector"):
        label.run(config(photos, tmp_path / "run", reuse_faces=str(whole)))
    assert not (tmp_path / "run" / "run.json").exists()


def test_faces_of_a_place_without_labels_are_refused(photos: Path, tmp_path: Path, local_ray: None) -> None:
    with pytest.raises(UserError, match="neither a labelling run nor a published table"):
        label.run(config(photos, tmp_path / "run", reuse_faces=str(tmp_path / "nowhere")))


def at_begin(monkeypatch: pytest.MonkeyPatch, act: Callable[[], object]) -> None:
    """Act between the listing of a run and its labelling."""
    begin = RunFolder.begin

    def begun(folder: RunFolder, record: RunRecord) -> RunRecord:
        act()
        return begin(folder, record)

    monkeypatch.setattr(RunFolder, "begin", begun)


def test_a_run_whose_faces_are_gone_detects_them(
    photos: Path, first: Path, anew: Path, other: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(first, tmp_path / "first")
    at_begin(monkeypatch, lambda: shutil.rmtree(tmp_path / "first"))
    label.run(config(photos, tmp_path / "run", model=other, reuse_faces=str(tmp_path / "first")))
    assert located(tmp_path / "run") > 35 and rows(tmp_path / "run") == rows(anew)


def test_a_run_that_is_labelled_anew_meanwhile_lends_no_wrong_faces(
    photos: Path, first: Path, anew: Path, other: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its rows stand in another order then."""
    shutil.copytree(first, tmp_path / "first")

    def reverse() -> None:
        for file in (tmp_path / "first" / "images").iterdir():
            rows = pq.read_table(file)
            pq.write_table(rows.take(list(reversed(range(len(rows))))), file)

    at_begin(monkeypatch, reverse)
    label.run(config(photos, tmp_path / "run", model=other, reuse_faces=str(tmp_path / "first")))
    assert located(tmp_path / "run") > 35 and rows(tmp_path / "run") == rows(anew)


def damaged(rows: pa.Table, name: str) -> pa.Table:
    faces = rows["faces"].to_pylist()
    changes: dict[str, Any] = {
        "no faces": None,
        "landmarks of a point": [[face | {"landmarks": [1.0, 2.0]} for face in one] for one in faces],
        "landmarks of some faces": [[face | ({"landmarks": None} if face["face_id"] else {}) for face in one] for one in faces],
        "no place": [[face | {"x": float("nan")} for face in one] for one in faces],
        "a box without a side": [[face | {"w": -1.0} for face in one] for one in faces],
    }
    field = rows.schema.field("faces")
    fields = [one.with_type(pa.list_(pa.float32())) if one.name == "landmarks" else one for one in field.type.value_type]
    kind = pa.list_(pa.struct(fields))
    place = rows.column_names.index("faces")
    if changes[name] is None:
        return rows.drop_columns("faces")
    return rows.set_column(place, pa.field("faces", kind), pa.array(changes[name], kind))


@pytest.mark.parametrize(
    "name", ["no faces", "landmarks of a point", "landmarks of some faces", "no place", "a box without a side"]
)
def test_faces_that_another_program_changed_are_detected(
    name: str, photos: Path, first: Path, anew: Path, other: str, tmp_path: Path
) -> None:
    shutil.copytree(first, tmp_path / "first")
    for file in (tmp_path / "first" / "images").iterdir():
        pq.write_table(damaged(pq.read_table(file), name), file)
    label.run(config(photos, tmp_path / "run", model=other, reuse_faces=str(tmp_path / "first")))
    assert rows(tmp_path / "run") == rows(anew)


def test_a_damaged_file_is_one_sentence_and_a_stray_one_is_passed_by(
    photos: Path, first: Path, other: str, tmp_path: Path
) -> None:
    shutil.copytree(first, tmp_path / "first")
    images = tmp_path / "first" / "images"
    (images / "7.parquet").write_bytes(b"stray")
    label.run(config(photos, tmp_path / "run", model=other, reuse_faces=str(tmp_path / "first"), limit=3))
    (images / "000000.parquet").write_bytes((images / "000000.parquet").read_bytes()[:500])
    with pytest.raises(UserError, match=r"whose faces are to be used again, is damaged, .* leave --reuse-faces out"):
        label.run(config(photos, tmp_path / "again", model=other, reuse_faces=str(tmp_path / "first")))
