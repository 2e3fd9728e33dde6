"""docs/python.md: its examples run as they stand, and its columns are those that there are."""

import doctest
import re
from pathlib import Path

import pytest

import fer_pipeline as fer

PAGE = Path(__file__).resolve().parents[2] / "docs" / "python.md"


def test_the_examples_print_what_the_page_says(archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "archive").symlink_to(archive)
    monkeypatch.chdir(tmp_path)
    failed, tried = doctest.testfile(str(PAGE), module_relative=False, optionflags=doctest.ELLIPSIS)
    assert failed == 0 and tried > 10


def test_the_columns_of_the_page_are_those_of_faces(labelled: fer.Run) -> None:
    table = PAGE.read_text().partition("## Columns of faces")[2]
    said = [name for line in table.splitlines() if line.startswith("| `") for name in re.findall(r"`(\w+)`", line.split("|")[1])]
    there = labelled.faces().column_names
    classes = [f"p_{name}" for name in labelled.classes]
    assert said == [name if name not in classes else "p_CLASS" for name in there if name not in classes[1:]]
