"""The table itself: made, opened, committed to; what the nights make of it is in test_publish.py."""

from pathlib import Path

import pytest

from fer_pipeline.base.errors import UserError
from fer_pipeline.table.delta import NO_TABLE, Changes, LabelTable, require_file_names


def test_a_table_that_is_not_there_has_no_version_and_is_made_once(tmp_path: Path) -> None:
    table = LabelTable(str(tmp_path / "table"))
    assert table.version == NO_TABLE and table.rows == 0 and not table.files
    made = table.make(("happy", "sad"))
    assert made.version == 0 and made.classes == ("happy", "sad")
    assert LabelTable(str(tmp_path / "table")).make(("happy", "sad")).version == 0


def test_the_classes_of_a_table_are_those_of_its_first_model(tmp_path: Path) -> None:
    table = LabelTable(str(tmp_path / "table")).make(("happy", "sad"))
    table.require_classes(("happy", "sad"))
    with pytest.raises(UserError, match="probabilities of happy, sad"):
        table.require_classes(("sad", "happy"))


def test_a_commit_stands_in_the_history_with_its_run(tmp_path: Path) -> None:
    table = LabelTable(str(tmp_path / "table")).make(("happy",))
    table.commit(Changes(added=[], removed=[]), "run-1", {"run_id": "run-1"})
    again = table.refreshed()
    assert again.holds_run("run-1") and not again.holds_run("run-2")
    assert again.version == 1 and again.history()[0]["night"]["run_id"] == "run-1"


def test_a_folder_of_something_else_is_no_table(tmp_path: Path) -> None:
    (tmp_path / "table" / "_delta_log").mkdir(parents=True)
    (tmp_path / "table" / "_delta_log" / f"{0:020d}.json").write_text("{}")
    with pytest.raises((UserError, OSError)):
        LabelTable(str(tmp_path / "table")).make(("happy",))


@pytest.mark.parametrize("path", ["../x.parquet", "/etc/x.parquet", "a/../../x.parquet", "s3://b/x.parquet"])
def test_a_log_names_files_of_its_table_only(path: str) -> None:
    require_file_names(["part-1.parquet"], "table")
    with pytest.raises(UserError):
        require_file_names([path], "table")
