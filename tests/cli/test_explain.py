from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from fer_pipeline.base.errors import UserError
from fer_pipeline.base.storage import parquet
from fer_pipeline.cli import explain
from fer_pipeline.cli.explain import ExplainConfig
from fer_pipeline.jobs.label import job as label
from fer_pipeline.jobs.label.config import LabelConfig


@pytest.fixture(scope="module")
def run(archive: Path, tmp_path_factory: pytest.TempPathFactory, local_ray: None) -> str:
    out = tmp_path_factory.mktemp("explained") / "run"
    label.run(LabelConfig(source=str(archive), out=str(out), detector="mtcnn"))
    return str(out)


def test_a_record_is_explained_with_its_faces_its_model_and_its_picture(run: str, archive: Path, tmp_path: Path) -> None:
    photo = next(archive.rglob("hopper-640.jpg"))
    found = explain.run(ExplainConfig(run=run, uri=str(photo), out=str(tmp_path / "why.jpg"), source=str(archive)))
    assert found.row["status"] == "ok" and len(found.row["faces"]) == 1 and Path(found.shard_file).exists()
    assert found.run["model"]["name"] and found.run["detector"]["name"] == "mtcnn" and found.run["settings"]["detect_px"] == 640
    assert found.picture == str(tmp_path / "why.jpg")
    original, marked = cv2.imread(str(photo)), cv2.imread(found.picture)
    assert original is not None and marked is not None and original.shape == marked.shape
    assert (cv2.absdiff(original, marked) > 60).any()


def test_a_picture_is_decoded_in_another_process(
    run: str, archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(cv2, "imdecode", lambda *_: pytest.fail("the image is decoded here"))
    config = ExplainConfig(
        run=run, uri=str(next(archive.rglob("hopper-640.jpg"))), out=str(tmp_path / "why.jpg"), source=str(archive)
    )
    assert explain.run(config).picture == str(tmp_path / "why.jpg")
    monkeypatch.setattr("fer_pipeline.report.pictures.TIMEOUT_S", 0.0)
    assert explain.run(config).picture is None and "cannot be read any more" in caplog.text


def test_the_end_of_a_path_suffices_where_it_is_the_only_one(run: str, archive: Path) -> None:
    assert explain.run(ExplainConfig(run=run, uri="hopper-640.jpg")).row["uri"].endswith("/hopper-640.jpg")
    with pytest.raises(UserError, match=r"matches \d+ records of this run .*name a longer path"):
        explain.run(ExplainConfig(run=run, uri=".jpg"))


def test_the_names_that_it_suggests_are_taken(run: str) -> None:
    with pytest.raises(UserError) as caught:
        explain.run(ExplainConfig(run=run, uri="groups.tar"))
    names = str(caught.value).partition("(")[2].partition(", ...)")[0].split(", ")
    assert len(names) == 3
    for name in names:
        row = explain.run(ExplainConfig(run=run, uri=name)).row
        assert name == f"{row['uri']}/{row['member']}"


def test_a_moment_of_a_video_is_taken_as_it_is_named(archive: Path, tmp_path: Path, local_ray: None) -> None:
    clip = tmp_path / "clip.mp4"
    with av.open(str(clip), "w") as video:
        stream = video.add_stream("mpeg4", rate=2)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for shade in range(0, 250, 40):
            video.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((64, 64, 3), shade, np.uint8))))
        video.mux(stream.encode())
    label.run(LabelConfig(source=str(clip), out=str(tmp_path / "run"), detector="none"))
    with pytest.raises(UserError, match=r"clip.mp4 at 0 ms, .*clip.mp4 at 1000 ms"):
        explain.run(ExplainConfig(run=str(tmp_path / "run"), uri="clip.mp4"))
    assert explain.run(ExplainConfig(run=str(tmp_path / "run"), uri="clip.mp4 at 1000 ms")).row["time_ms"] == 1000


def test_a_failed_record_says_why_and_has_no_picture(run: str, archive: Path, tmp_path: Path) -> None:
    rows = [row for row in _failed(run) if row]
    found = explain.run(
        ExplainConfig(run=run, uri=rows[0]["uri"], member=rows[0]["member"], out=str(tmp_path / "x.jpg"), source=str(archive))
    )
    assert found.row["error"] and found.picture is None and not (tmp_path / "x.jpg").exists()


def _failed(run: str) -> list[dict[str, str]]:
    from fer_pipeline.base import storage

    tables = [parquet.read_table(f"{run}/images/{name}") for name in storage.list_names(f"{run}/images")]
    return [row for table in tables for row in table.to_pylist() if row["status"] == "undecodable"]


def test_what_is_not_there_is_one_sentence(run: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No record of the run"):
        explain.run(ExplainConfig(run=run, uri="nowhere.jpg"))
    with pytest.raises(UserError, match="There is no labelling run"):
        explain.run(ExplainConfig(run=str(tmp_path), uri="a.jpg"))
