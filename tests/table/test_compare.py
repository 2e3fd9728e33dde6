"""A listing is compared with the table by key, size and etag, within a source and its filters."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from fer_pipeline.archive.files import Selection
from fer_pipeline.archive.listing import Listing
from fer_pipeline.archive.record import Record
from fer_pipeline.base.errors import UserError
from fer_pipeline.base.identity import Identity
from fer_pipeline.base.storage import parquet
from fer_pipeline.jobs import publish
from fer_pipeline.jobs.publish import PublishConfig
from fer_pipeline.labelling.run import settings_digest
from fer_pipeline.table.compare import Comparison
from fer_pipeline.table.delta import LabelTable
from fer_pipeline.table.rows import DigestSet, key_digests
from tests.table.runs import DETECTOR, MODEL, finished_run, record_of, rows_of_table

IDENTITY = {"model_digest": MODEL.digest, "detector_digest": DETECTOR.digest, "settings_digest": settings_digest({})}
URIS = [f"/source/{number}.jpg" for number in range(8)]


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory, local_ray: None) -> LabelTable:
    folder = tmp_path_factory.mktemp("table")
    finished_run(str(folder / "run"), [record_of(uri) for uri in [*URIS, "/elsewhere/1.jpg"]])
    publish.run(PublishConfig(run=str(folder / "run"), table=str(folder / "table")))
    return LabelTable(str(folder / "table"))


def compared(table: LabelTable, listed: Iterable[Record], **options: Any) -> tuple[list[str], Comparison]:
    selection = options.pop("selection", Selection())
    found = Comparison(table, Listing("/source", selection).covers, "/source", options.pop("identity", IDENTITY), 3, **options)
    return [record.uri for record in found.to_label(listed)], found


def test_an_unchanged_source_leaves_nothing_to_label(table: LabelTable) -> None:
    labelled, found = compared(table, map(record_of, URIS))
    assert labelled == [] and found.vanished == 0 and found.held == 8


def test_what_is_new_or_changed_is_labelled_and_what_is_gone_is_known(table: LabelTable) -> None:
    listed = [*map(record_of, URIS[2:]), record_of(URIS[1], etag="2"), record_of("/source/new.jpg")]
    labelled, found = compared(table, listed)
    assert labelled == [URIS[1], "/source/new.jpg"]
    assert (found.new, found.increment().changed, found.vanished, found.held) == (1, 1, 1, 6)


def test_a_row_outside_the_filters_has_not_vanished(table: LabelTable) -> None:
    _, found = compared(table, map(record_of, URIS[:4]), selection=Selection(exclude=tuple(f"{n}.jpg" for n in range(4, 8))))
    assert found.vanished == 0 and len(found.seen) == 4


def test_rows_of_another_model_are_made_anew_as_many_as_are_allowed(table: LabelTable) -> None:
    other = IDENTITY | {"model_digest": "m2"}
    assert len(compared(table, map(record_of, URIS), identity=other)[0]) == 8
    labelled, found = compared(table, map(record_of, URIS), identity=other, relabel_budget=3)
    assert len(labelled) == found.outdated == 3 and found.vanished == 0


def test_the_oldest_rows_are_made_anew_first(tmp_path: Path, local_ray: None) -> None:
    """Three nights relabel six rows of an old model, two per night, in the order in which they were labelled."""
    url, other = str(tmp_path / "table"), Identity(name="model", digest="m2")
    ages = {4: "2026-01-03", 1: "2026-01-01", 5: "2026-01-04", 0: "2026-01-02", 3: "2026-01-06", 2: "2026-01-05"}
    for number, (name, day) in enumerate(ages.items()):
        run = str(tmp_path / f"run-{number}")
        finished_run(run, [record_of(URIS[name])], created_at=f"{day}T00:00:00+00:00")
        publish.run(PublishConfig(run=run, table=url, accept=("drift",)))
    by_age = [URIS[name] for name in sorted(ages, key=lambda name: ages[name])]
    identity = IDENTITY | {"model_digest": "m2"}
    for night in range(3):
        listed = [record_of(uri) for uri in URIS[:6]]
        labelled, found = compared(LabelTable(url), listed, identity=identity, relabel_budget=2)
        assert sorted(labelled) == sorted(by_age[2 * night : 2 * night + 2]) and found.held == 4
        run = str(tmp_path / f"night-{night}")
        finished_run(run, [record_of(uri) for uri in labelled], LabelTable(url), model=other)
        publish.run(PublishConfig(run=run, table=url, accept=("drift",)))
    assert compared(LabelTable(url), [record_of(uri) for uri in URIS[:6]], identity=identity)[0] == []


def test_of_two_members_of_one_name_the_first_is_taken(table: LabelTable) -> None:
    doubled = [Record("/source/a.tar", "x.jpg", 512), Record("/source/a.tar", "x.jpg", 4096)]
    labelled, found = compared(table, [*map(record_of, URIS), *doubled])
    assert labelled == ["/source/a.tar"] and found.doubled == 1


def test_what_a_container_held_that_cannot_be_read_tonight_has_not_vanished(tmp_path: Path, local_ray: None) -> None:
    members = [Record("/source/a.tar", f"{number}.jpg", 512, size_bytes=9, etag="1") for number in range(3)]
    finished_run(str(tmp_path / "run"), members)
    publish.run(PublishConfig(run=str(tmp_path / "run"), table=str(tmp_path / "table")))
    table = LabelTable(str(tmp_path / "table"))
    late, other = (Record("/source/a.tar", size_bytes=99, etag=etag, error="it took longer than 60 s") for etag in "12")
    assert compared(table, [late])[1].vanished == 0
    assert compared(table, [other])[1].vanished == 3


def test_a_folder_that_cannot_be_listed_ends_a_night_whose_table_holds_its_files(tmp_path: Path, local_ray: None) -> None:
    finished_run(str(tmp_path / "run"), [Record("/source/2024/a.jpg", size_bytes=9, etag="1")])
    publish.run(PublishConfig(run=str(tmp_path / "run"), table=str(tmp_path / "table")))
    table = LabelTable(str(tmp_path / "table"))
    _, found = compared(table, [])
    with pytest.raises(UserError, match="The table holds files of '/source/2024', which cannot be listed"):
        found.require_nothing_below(["/source/2023", "/source/2024"])
    found.require_nothing_below(["/source/202", "/source/2024/a.jpg", "/source/2025"])


@pytest.mark.parametrize("row", [Record("/source/album.zip", "1.jpg", 0), Record("/source/album.zip", time_ms=0)])
def test_a_link_to_a_container_that_leads_nowhere_ends_a_night_whose_table_holds_its_members(
    row: Record, tmp_path: Path, local_ray: None
) -> None:
    finished_run(str(tmp_path / "run"), [replace(row, size_bytes=9, etag="1")])
    publish.run(PublishConfig(run=str(tmp_path / "run"), table=str(tmp_path / "table")))
    _, found = compared(LabelTable(str(tmp_path / "table")), [])
    with pytest.raises(UserError, match=r"The table holds files of '/source/album.zip'"):
        found.require_nothing_below(["/source/album.zip"])


def test_places_that_cannot_be_listed_cost_one_look_at_the_files_near_them(
    tmp_path: Path, local_ray: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thousand broken links read the uris of a table file once, and none if they are outside its range of uris."""
    finished_run(str(tmp_path / "run"), [record_of(f"/source/m/{number}.jpg") for number in range(8)])
    publish.run(PublishConfig(run=str(tmp_path / "run"), table=str(tmp_path / "table")))
    _, found = compared(LabelTable(str(tmp_path / "table")), [])
    read: list[str] = []

    def read_columns(url: str, columns: list[str]) -> pa.Table:
        read.append(url)
        return pa.table({"uri": ["/source/m/0.jpg"], "member": pa.nulls(1), "time_ms": pa.nulls(1)})

    monkeypatch.setattr(parquet, "read_columns", read_columns)
    found.require_nothing_below([f"/source/a{number}" for number in range(1000)])
    assert read == []
    found.require_nothing_below([f"/source/m/{number}.jpg" for number in range(1000)])
    assert len(read) == 1


def test_the_budget_is_spent_on_rows_that_are_listed(tmp_path: Path, local_ray: None) -> None:
    """The oldest rows belong to a container that cannot be read, so the budget is spent on the next ones."""
    url, other = str(tmp_path / "table"), IDENTITY | {"model_digest": "m2"}
    members = [Record("/source/a.tar", f"{number}.jpg", 512, size_bytes=9, etag="1") for number in range(3)]
    for number, records in enumerate((members, [record_of(uri) for uri in URIS])):
        run = str(tmp_path / f"run-{number}")
        finished_run(run, records, created_at=f"2026-01-0{number + 1}T00:00:00+00:00")
        publish.run(PublishConfig(run=run, table=url, accept=("drift",)))
    broken = Record("/source/a.tar", size_bytes=9, etag="1", error="it took longer than 60 s")
    labelled, found = compared(LabelTable(url), [broken, *map(record_of, URIS)], identity=other, relabel_budget=2)
    assert labelled == ["/source/a.tar", *URIS[:2]] and (found.outdated, found.held, found.vanished) == (2, 6, 0)


def test_a_label_stays_where_the_same_bytes_cannot_be_labelled_anew(tmp_path: Path, local_ray: None) -> None:
    """Each failed attempt is counted. After the last one the row stays unchanged. Changed bytes lose their label."""
    url, identity = str(tmp_path / "table"), IDENTITY | {"model_digest": "m2"}
    finished_run(str(tmp_path / "run"), [record_of(uri) for uri in URIS[:3]])
    publish.run(PublishConfig(run=str(tmp_path / "run"), table=url))
    listed = [record_of(URIS[0]), record_of(URIS[1], etag="2"), record_of(URIS[2])]
    for night in (1, 2, 3):
        run, table = str(tmp_path / f"night-{night}"), LabelTable(url)
        found = Comparison(table, Listing("/source", Selection()).covers, "/source", identity, 3)
        to_label = list(found.to_label(listed))
        assert [one.attempt for one in to_label if one.uri == URIS[0]] == [night]
        model = Identity(name="model", digest="m2")
        finished_run(run, to_label, table, model=model, failing={URIS[0]: "unreadable", URIS[1]: "timed_out"})
        publish.run(PublishConfig(run=run, table=url, accept=("failed", "drift", "churn")))
        rows = {row["uri"]: row for row in rows_of_table(url)}
        kept, changed, fine = (rows[uri] for uri in URIS[:3])
        assert (kept["status"], kept["attempt"], kept["model_digest"]) == ("ok", night, MODEL.digest) and kept["faces"]
        assert "relabelling failed (unreadable): made to fail" in kept["error"]
        assert (changed["status"], changed["etag"]) == ("timed_out", "2") and fine["model_digest"] == "m2"
    assert compared(LabelTable(url), listed, identity=identity)[0] == []
    assert compared(LabelTable(url), [record_of(URIS[0], etag="9")], identity=identity)[0] == [URIS[0]]


def test_a_table_that_is_not_there_holds_nothing(tmp_path: Path) -> None:
    labelled, found = compared(LabelTable(str(tmp_path / "none")), map(record_of, URIS))
    assert labelled == URIS and found.increment().version == -1


def test_digests_are_found_by_both_halves() -> None:
    digests = key_digests(["a", "b", "c"], [None, "m", None], [None, None, 7])
    found = DigestSet(digests)
    other = digests.copy()
    other[1, 1] += 1
    assert found.find(digests).tolist() == [0, 1, 2] and found.find(other).tolist() == [0, -1, 2]
