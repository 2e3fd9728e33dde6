"""The fuzzer finds what it is for: an exception that a boundary lets through."""

from pathlib import Path

import pytest

from tests import fuzz


def test_inputs_can_be_made_again_and_differ(tmp_path: Path) -> None:
    assert fuzz.made("png", 3, 0) == fuzz.made("png", 3, 0) != fuzz.made("png", 4, 0)


def test_a_sound_file_of_every_kind_is_read(tmp_path: Path) -> None:
    kinds = (*fuzz.CODECS, *fuzz.CONTAINERS, *fuzz.PLANTED)
    assert {kind: fuzz.outcome(kind, fuzz.sound(kind), tmp_path) for kind in kinds} == dict.fromkeys(kinds, "ok")


def test_an_escape_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def leak(*_: object) -> str:
        raise TypeError("not caught")

    monkeypatch.setattr(fuzz, "outcome", leak)
    assert [status for _, status, _ in fuzz.batch("png", 0, 2, 0, str(tmp_path / "kept"))] == ["escaped", "escaped"]
    assert len(list((tmp_path / "kept").iterdir())) == 2
