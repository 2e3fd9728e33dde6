"""Run folders of unknown origin must not harm the commands that read them."""

import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fer_pipeline.base import storage
from fer_pipeline.base.errors import UserError
from fer_pipeline.base.storage import parquet
from fer_pipeline.cli import explain, report
from fer_pipeline.cli.explain import ExplainConfig
from fer_pipeline.cli.report import ReportConfig
from fer_pipeline.jobs.label import job as label
from fer_pipeline.jobs.label.config import LabelConfig
from fer_pipeline.report.pictures import PictureProcess

SENTINEL = "sentinel-secret.jpg"


@pytest.fixture
def planted(archive: Path, tmp_path: Path, local_ray: None) -> Path:
    """A run folder of one photo, whose tables name a file outside of its source."""
    source, run = tmp_path / "source", tmp_path / "run"
    photo = next(archive.rglob("hopper-320.jpg")).read_bytes()
    for path in (source / "hopper.jpg", tmp_path / SENTINEL):
        storage.write_bytes(str(path), photo)
        os.utime(path, (1, 1))
    label.run(LabelConfig(source=str(source), out=str(run), detector="mtcnn"))
    for name in ("manifest", "images", "faces"):
        (path,) = (run / name).glob("*.parquet")
        table = pq.read_table(path)
        uris = pa.array([str(tmp_path / SENTINEL)] * len(table))
        parquet.write_table(str(path), table.set_column(table.schema.get_field_index("uri"), "uri", uris))
    return run


def test_nothing_outside_of_the_run_folder_is_read(planted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any) -> None:
        pytest.fail("a picture is asked for")

    monkeypatch.setattr(PictureProcess, "_cut", refused)
    monkeypatch.setattr(PictureProcess, "marked", refused)
    read: list[str] = []
    whole = storage._read

    def noted(url: str, *rest: Any) -> bytes:
        read.append(url)
        return whole(url, *rest)

    monkeypatch.setattr(storage, "_read", noted)
    report.run(ReportConfig(run=str(planted)))
    found = explain.run(ExplainConfig(run=str(planted), uri=SENTINEL))
    assert found.picture is None and found.row["uri"].endswith(SENTINEL)
    assert read and all(storage.is_below(url, str(planted)) for url in read)
    with pytest.raises(UserError, match="--out needs --source"):
        explain.run(ExplainConfig(run=str(planted), uri=SENTINEL, out=str(tmp_path / "x.jpg")))


def test_nothing_outside_of_the_source_is_read(planted: Path, tmp_path: Path) -> None:
    source = str(tmp_path / "source")
    report.run(ReportConfig(run=str(planted), source=source))
    page = (planted / "report.html").read_text()
    assert "data:image/jpeg" not in page and "1 outside the source" in page
    with pytest.raises(UserError, match=rf"names '.*{SENTINEL}', which is not below '{source}'"):
        explain.run(ExplainConfig(run=str(planted), uri=SENTINEL, out=str(tmp_path / "x.jpg"), source=source))
    assert not (tmp_path / "x.jpg").exists()
    report.run(ReportConfig(run=str(planted), source=str(tmp_path)))
    assert "data:image/jpeg" in (planted / "report.html").read_text()  # because --source names it


def test_a_run_whose_manifest_leads_elsewhere_is_not_continued(planted: Path, tmp_path: Path) -> None:
    for path in (planted / "_SUCCESS", *(planted / "images").iterdir()):
        path.unlink()
    again = LabelConfig(source=str(tmp_path / "source"), out=str(planted), detector="mtcnn")
    with pytest.raises(UserError, match=rf"The run in '{planted}' names '.*{SENTINEL}', which is not below"):
        label.run(again)
    assert not list((planted / "images").iterdir())


@pytest.mark.parametrize("facts", [{"settings": {"uncertain_below": "<b>"}}, {"result": {"counts": 3}}, {"run_id": "../evil"}])
def test_an_odd_run_is_one_sentence(planted: Path, facts: dict[str, Any]) -> None:
    kept = json.loads((planted / "run.json").read_text())
    (planted / "run.json").write_text(json.dumps(kept | facts))
    for look in (
        lambda: report.run(ReportConfig(run=str(planted))),
        lambda: explain.run(ExplainConfig(run=str(planted), uri=SENTINEL)),
    ):
        with pytest.raises(UserError, match="not a record of a labelling run"):
            look()


@pytest.mark.parametrize("folder", ["faces", "images", "manifest"])
@pytest.mark.parametrize("how", ["text", "columns", "types"])
def test_a_table_of_something_else_is_one_sentence(planted: Path, folder: str, how: str, tmp_path: Path) -> None:
    (path,) = (planted / folder).glob("*.parquet")
    if how == "text":
        path.write_bytes(b"PAR1 no table PAR1")
    else:
        parquet.write_table(str(path), pa.table({"uri": [7]} if how == "types" else {"a": [1]}))
    look = (
        (lambda: report.run(ReportConfig(run=str(planted), source=str(tmp_path))))
        if folder == "faces"
        else (lambda: explain.run(ExplainConfig(run=str(planted), uri=SENTINEL, out=str(tmp_path / "x"), source=str(tmp_path))))
    )
    with pytest.raises(UserError, match=r"is not a table that this project wrote"):
        look()


def test_a_category_of_megabytes_is_not_unfolded(planted: Path) -> None:
    """A dictionary value takes its bytes once in the file, but once per row as Python strings."""
    (path,) = (planted / "images").glob("*.parquet")
    table = pa.concat_tables([pq.read_table(path)] * 400)
    status = pa.DictionaryArray.from_arrays(pa.array([0] * len(table), pa.int32()), ["x" * 5_000_000])
    column = table.schema.get_field_index("status")
    pq.write_table(table.set_column(column, table.schema.field(column), status), path, dictionary_pagesize_limit=10**8)
    assert path.stat().st_size < 1_000_000
    with pytest.raises(UserError, match=r"is not a table that this project wrote.*a value of more than 4096 bytes"):
        explain.run(ExplainConfig(run=str(planted), uri=SENTINEL))
