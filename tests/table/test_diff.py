from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from fer_pipeline.base.errors import UserError
from fer_pipeline.base.identity import Identity
from fer_pipeline.cli import table as upkeep
from fer_pipeline.cli.table import DiffConfig, RestoreConfig, TableConfig
from fer_pipeline.jobs import publish
from fer_pipeline.jobs.publish import PublishConfig
from fer_pipeline.table.delta import LabelTable
from fer_pipeline.table.thresholds import Thresholds
from tests.table.runs import finished_run, record_of


@pytest.fixture
def table(tmp_path: Path, local_ray: None) -> str:
    """A table of three nights: 20 rows; then 2 new, 1 changed, 3 vanished ones; then 4 rows of another model."""
    url = str(tmp_path / "table")

    def night(number: int, records: list[Any], **options: Any) -> None:
        run = str(tmp_path / f"run-{number}")
        finished_run(run, records, LabelTable(url) if number else None, **options)
        loose = Thresholds.model_validate(dict.fromkeys(Thresholds.model_fields, 1))
        publish.run(PublishConfig(run=run, table=url, audit=loose))

    night(0, [record_of(f"/source/{number:02d}.jpg") for number in range(20)])
    changed = [record_of("/source/20.jpg"), record_of("/source/21.jpg"), record_of("/source/00.jpg", etag="2")]
    night(1, changed, vanished=["/source/05.jpg", "/source/06.jpg", "/source/07.jpg"], expression="sad")
    other = [record_of(f"/source/{number:02d}.jpg") for number in (8, 9, 10, 11)]
    night(2, other, model=Identity(name="model", digest="m2"), expression="happy", failing={})
    return url


def versions(table: str) -> list[str]:
    return [str(one["version"]) for one in reversed(LabelTable(table).history()) if "run_id" in (one["night"] or {})]


def test_a_diff_counts_and_lists_what_changed(table: str, tmp_path: Path) -> None:
    first, second, third = versions(table)
    found = upkeep.changes(DiffConfig(table=table, night=(first, second), out=str(tmp_path / "changes.parquet")))
    assert (found.added, found.removed, found.file_changed, found.relabelled, found.retried) == (2, 3, 1, 0, 0)
    assert found.expressions == {"happy": [4, 0], "sad": [0, 3]}
    rows = pq.read_table(tmp_path / "changes.parquet").to_pylist()
    assert [(row["path"], row["what"]) for row in rows] == [
        ("00.jpg", "file_changed"),
        *((f"0{number}.jpg", "removed") for number in (5, 6, 7)),
        ("20.jpg", "added"),
        ("21.jpg", "added"),
    ]
    assert (rows[0]["expressions_before"], rows[0]["expressions"], rows[1]["expressions"]) == (["happy"], ["sad"], None)

    last = upkeep.changes(DiffConfig(table=table, night=(second,)))
    assert (last.after, last.relabelled, last.relabelled_same, last.added) == (int(third), 4, 4, 0)
    assert upkeep.changes(DiffConfig(table=table)) == upkeep.changes(DiffConfig(table=table, night=(second, third)))
    back = upkeep.changes(DiffConfig(table=table, night=(third, first)))
    assert (back.added, back.removed, back.file_changed, back.relabelled) == (3, 2, 1, 4)


def test_nights_that_a_restore_undid_are_no_last_nights(table: str) -> None:
    first, second, _ = versions(table)
    upkeep.restore(RestoreConfig(table=table, night=second))
    assert upkeep.changes(DiffConfig(table=table)) == upkeep.changes(DiffConfig(table=table, night=(first, second)))
    upkeep.restore(RestoreConfig(table=table, night=first))
    only = upkeep.changes(DiffConfig(table=table))
    assert (only.before, only.after, only.removed) == (int(first) - 1, int(first), 0) and only.added > 0
    upkeep.restore(RestoreConfig(table=table, night=str(int(first) - 1)))
    with pytest.raises(UserError, match="has no night: name versions"):
        upkeep.changes(DiffConfig(table=table))


def test_files_that_were_only_merged_are_no_change(table: str) -> None:
    before = LabelTable(table).version
    upkeep.compact(TableConfig(table=table))
    found = upkeep.changes(DiffConfig(table=table, night=(str(before),)))
    assert found.after > before and not (found.added or found.removed or found.file_changed or found.relabelled or found.retried)


def test_a_version_that_is_unknown_or_gone_is_one_sentence(table: str) -> None:
    with pytest.raises(UserError, match="has no night '77'"):
        upkeep.changes(DiffConfig(table=table, night=("77",)))
    first = versions(table)[0]
    upkeep.compact(TableConfig(table=table))
    LabelTable(table).vacuum(0)
    with pytest.raises(UserError, match="`table vacuum` or `table forget` deleted them"):
        upkeep.changes(DiffConfig(table=table, night=(first,)))
