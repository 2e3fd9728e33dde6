"""A table whose files, log or nights are untrusted can do no harm."""

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable

from fer_pipeline.archive.listing import Listing
from fer_pipeline.base.errors import UserError
from fer_pipeline.base.storage import parquet
from fer_pipeline.cli import table as upkeep
from fer_pipeline.cli.table import ForgetConfig, TableConfig, VacuumConfig
from fer_pipeline.jobs import publish
from fer_pipeline.jobs.label import job as label
from fer_pipeline.jobs.label.config import LabelConfig
from fer_pipeline.jobs.publish import PublishConfig
from fer_pipeline.table.delta import LabelTable
from fer_pipeline.table.reuse import PLACES, read_reusable
from tests.table.runs import finished_run, record_of

URIS = [f"/source/{number}.jpg" for number in range(8)]


@pytest.fixture
def table(tmp_path: Path, local_ray: None) -> Path:
    """A table of eight rows in one file."""
    finished_run(str(tmp_path / "run"), [record_of(uri) for uri in URIS])
    publish.run(PublishConfig(run=str(tmp_path / "run"), table=str(tmp_path / "table")))
    return tmp_path / "table"


def edit_log(table: Path, kind: str, change: Callable[[dict[str, Any]], None]) -> None:
    """Change all actions of a kind in the log of a table."""
    for path in (table / "_delta_log").glob("*.json"):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        for line in lines:
            if kind in line:
                change(line[kind])
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def moved(table: Path, place: str) -> None:
    """Move the file of the table, and update the log."""
    (file,) = table.glob("*.parquet")
    (table / place).parent.mkdir(parents=True, exist_ok=True)
    file.rename(table / place)
    edit_log(table, "add", lambda action: action.update(path=place))


def test_who_is_forgotten_is_forgotten_in_folders_too(table: Path) -> None:
    moved(table, "sub/deep/part-1.parquet")
    (table / "sub" / "left-over.parquet").write_bytes((table / "sub/deep/part-1.parquet").read_bytes())
    found = upkeep.forget(ForgetConfig(table=str(table), uri=(URIS[3],)))
    assert found.rows == 1 and found.files_deleted == 2
    assert not [path for path in table.rglob("*.parquet") if URIS[3].encode() in path.read_bytes()]
    assert LabelTable(str(table)).rows == 7
    upkeep.compact(TableConfig(table=str(table)))
    with pytest.raises(UserError, match="no such row in any version"):
        upkeep.forget(ForgetConfig(table=str(table), uri=(URIS[3],)))


@pytest.mark.parametrize(
    "place",
    [
        "../outside.parquet",
        "sub/../../outside.parquet",
        "/etc/x.parquet",
        "s3://b/x.parquet",
        "%2e%2e/x.parquet",
        ".x/y.parquet",
        "_x/y.parquet",
        "part-1.dat",
    ],
)
def test_a_log_that_leads_out_of_its_table_is_refused(place: str, table: Path) -> None:
    outside = table.parent / "outside.parquet"
    (file,) = table.glob("*.parquet")
    outside.write_bytes(file.read_bytes())
    edit_log(table, "add", lambda action: action.update(path=place))
    for work in (
        lambda: upkeep.compact(TableConfig(table=str(table))),
        lambda: upkeep.forget(ForgetConfig(table=str(table), uri=(URIS[3],))),
        lambda: upkeep.vacuum(VacuumConfig(table=str(table))),
        lambda: label.run(LabelConfig(source=str(table), out=str(table.parent / "next"), table=str(table), detector="none")),
    ):
        with pytest.raises(UserError, match=r"names the file .*, which is not below it"):
            work()
    assert outside.exists()


def test_vacuuming_counts_what_it_deletes(table: Path) -> None:
    """The library counts every removed path in the log, even one outside the table."""
    outside = table.parent / "outside.parquet"
    outside.write_bytes(b"not of the table")
    upkeep.forget(ForgetConfig(table=str(table), uri=(URIS[3],)))
    edit_log(table, "remove", lambda action: action.update(path="../outside.parquet", deletionTimestamp=1))
    assert upkeep.vacuum(VacuumConfig(table=str(table), retention_hours=1)).deleted == 0 and outside.exists()


@pytest.mark.parametrize(
    "statistics",
    [
        None,
        "{}",
        "[",
        '{"numRecords": -5, "minValues": {"uri": "zzz"}, "maxValues": {"uri": "aaa"}}',
        '{"numRecords": 1000000000000, "minValues": {"uri": 7}, "maxValues": {}, "nullCount": {"uri": 99}}',
    ],
)
def test_statistics_that_lie_lose_no_row(statistics: str | None, table: Path, tmp_path: Path) -> None:
    edit_log(table, "add", lambda action: action.update(stats=statistics))
    new = [record_of("/source/new.jpg"), record_of(URIS[0], etag="2")]
    finished_run(str(tmp_path / "next"), new, LabelTable(str(table)))
    try:
        publish.run(PublishConfig(run=str(tmp_path / "next"), table=str(table)))
    except (UserError, OSError) as error:  # the library refuses to read such a log
        assert "cannot be read" in str(error) and "\n" not in str(error)
        return
    files = LabelTable(str(table)).files
    rows = pa.concat_tables([pq.read_table(table / file.path) for file in files])
    assert sorted(rows["uri"].to_pylist()) == sorted([*URIS, "/source/new.jpg"])


def test_rows_are_carried_over_from_files_of_the_table_alone(table: Path, tmp_path: Path) -> None:
    for path in ("../outside.parquet", "/etc/passwd", "s3://bucket/x"):
        parquet.write_table(str(tmp_path / "places.parquet"), pa.table([["0" * 64], [path], [0]], schema=PLACES))
        with pytest.raises(UserError, match="which is not below it"):
            read_reusable(str(table), str(tmp_path / "places.parquet"))


def test_the_id_of_a_run_leads_nowhere(table: Path, tmp_path: Path) -> None:
    run = tmp_path / "planted"
    record = finished_run(str(run), [record_of("/source/new.jpg")], LabelTable(str(table)))
    evil = "x/../../../victim/evil"
    (run / "run.json").write_text((run / "run.json").read_text().replace(record.run_id, evil))
    with pytest.raises(UserError, match="run_id"):
        publish.run(PublishConfig(run=str(run), table=str(table)))
    assert not (tmp_path / "victim").exists() and DeltaTable(str(table)).version() == LabelTable(str(table)).version


def test_a_poisoned_index_beside_a_table_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The indexes beside a table come from other machines; here a local listing writes them."""
    source, beside = tmp_path / "source", tmp_path / "table" / "_indexes"
    source.mkdir()
    with zipfile.ZipFile(source / "a.zip", "w") as archive:
        archive.writestr("1.jpg", b"x")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "one"))
    expected = list(Listing(str(source), indexes=str(beside)))
    (index,) = beside.iterdir()
    kept = pq.read_table(index)
    bomb = pa.table({"name": pa.DictionaryArray.from_arrays(pa.array([0] * 9, pa.int32()), ["x" * 10**6])})
    for number, other in enumerate((kept.select(["name"]), pa.concat_tables([kept] * 5000), bomb)):
        pq.write_table(other.replace_schema_metadata(kept.schema.metadata), index)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / f"another-{number}"))
        assert list(Listing(str(source), indexes=str(beside))) == expected
