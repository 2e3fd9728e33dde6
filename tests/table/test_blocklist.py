"""A person who was erased does not come back, under whatever name."""

import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pytest

from fer_pipeline.api.labels import Table
from fer_pipeline.base.errors import UserError
from fer_pipeline.cli import table as upkeep
from fer_pipeline.cli.table import ForgetConfig
from fer_pipeline.jobs import nightly, publish
from fer_pipeline.jobs.label import job as label
from fer_pipeline.jobs.label.config import LabelConfig
from fer_pipeline.jobs.nightly import NightlyConfig
from fer_pipeline.jobs.publish import PublishConfig
from fer_pipeline.labelling.run import RunFolder
from fer_pipeline.table.blocklist import Blocklist, read_blocklist
from tests.table.runs import finished_run, record_of


def rows_of(table: str) -> dict[str, dict[str, Any]]:
    return {row["path"]: row for row in Table(table).images().to_pylist()}


def test_erased_images_are_blocked_and_their_near_copies_named(archive: Path, tmp_path: Path, local_ray: None) -> None:
    source = tmp_path / "photos"
    source.mkdir()
    for name in ("hopper-800.jpg", "astronaut-1024.jpg", "coffee-1024.jpg"):
        shutil.copy(next(archive.rglob(name)), source / name)
    table = str(tmp_path / "table")

    def night(number: int) -> Any:
        places = {"source": str(source), "table": table, "out": f"{tmp_path}/run-{number}", "page": str(tmp_path / "nights.html")}
        return nightly.run(
            NightlyConfig.model_validate(places | {"detector": "mtcnn", "max_vanished": 1, "audit": {"failed": 1, "vanished": 1}})
        )

    label.run(LabelConfig(source=str(source), out=str(tmp_path / "before"), detector="mtcnn"))
    night(1)
    found = upkeep.forget(ForgetConfig(table=table, uri=("hopper-800.jpg",)))
    assert (found.rows, found.blocked) == (1, 1) and "not blocked" not in found.says
    assert len(read_blocklist(table).contents) == len(read_blocklist(table).phashes) == 1

    night(2)
    row = rows_of(table)["hopper-800.jpg"]
    assert (row["status"], row["faces"], row["phash"], row["width"]) == ("blocked", 0, None, None)
    assert night(3).state == "unchanged"

    shutil.move(f"{table}/_blocked", tmp_path / "kept")  # the block is lifted, and set again
    assert night(4).state == "published" and rows_of(table)["hopper-800.jpg"]["faces"] == 1
    shutil.copy(source / "hopper-800.jpg", source / "copy.jpg")
    night(5)
    assert upkeep.forget(ForgetConfig(table=table, uri=("hopper-800.jpg",))).rows == 2
    assert set(rows_of(table)) == {"astronaut-1024.jpg", "coffee-1024.jpg"}
    (source / "copy.jpg").unlink()

    (source / "hopper-800.jpg").rename(source / "renamed.jpg")
    copy = cv2.resize(np.asarray(cv2.imread(str(source / "renamed.jpg"))), None, fx=0.6, fy=0.6, interpolation=cv2.INTER_AREA)
    cv2.imwrite(str(source / "smaller.jpg"), copy, [cv2.IMWRITE_JPEG_QUALITY, 60])
    night(6)
    rows = rows_of(table)
    assert {path: row["status"] for path, row in rows.items()} == {
        "astronaut-1024.jpg": "ok",
        "coffee-1024.jpg": "no_face",
        "renamed.jpg": "blocked",
        "smaller.jpg": "ok",  # a person decides
    }
    record = RunFolder(f"{tmp_path}/run-6").load()
    assert record and record.result and record.result.near_blocked_first == ["smaller.jpg"] and record.result.failed == 0
    page = Path(f"{tmp_path}/run-6/report.html").read_text()
    assert "look like images that were erased" in page and "smaller.jpg" in page and "blocked" in page

    other = str(tmp_path / "other")  # a run that labelled the image before it was erased
    shutil.copytree(f"{table}/_blocked", f"{other}/_blocked")
    publish.run(PublishConfig(run=str(tmp_path / "before"), table=other))
    row = rows_of(other)["hopper-800.jpg"]
    assert (row["status"], row["faces"], row["phash"], row["taken_at"]) == ("blocked", 0, None, None)
    assert rows_of(other)["astronaut-1024.jpg"]["faces"] == 1


def test_the_end_of_a_path_names_one_file_or_none(tmp_path: Path, local_ray: None) -> None:
    finished_run(str(tmp_path / "run"), [record_of(f"/source/{name}.jpg") for name in ("a/1", "b/1", "b/21")])
    table = str(tmp_path / "table")
    publish.run(PublishConfig(run=str(tmp_path / "run"), table=table))
    for uri, says in (("1.jpg", r"is the end of 2 files \(/source/a/1.jpg, /source/b/1.jpg"), ("2.jpg", "no such row")):
        with pytest.raises(UserError, match=says):
            upkeep.forget(ForgetConfig(table=table, uri=(uri,)))
    assert not (tmp_path / "table" / "_blocked").exists()
    assert upkeep.forget(ForgetConfig(table=table, uri=("b/1.jpg",))).rows == 1
    assert sorted(Table(table).images()["uri"].to_pylist()) == ["/source/a/1.jpg", "/source/b/21.jpg"]


def test_near_copies_are_found_by_their_bits() -> None:
    ours = "0" * 64
    hashes = pa.chunked_array([[None, "f" * 3 + "0" * 61, "f" * 3 + "1" + "0" * 60, "f" * 64, "no hash"]], pa.string())
    assert Blocklist(frozenset(), (ours,)).near(hashes).tolist() == [False, True, False, False, False]
    assert not Blocklist().near(hashes).any()
