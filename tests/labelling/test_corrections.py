"""Answers of people: what is one, whose face it is, and what several people say."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from fer_pipeline.labelling.corrections import (
    CORRECTIONS,
    NOT_A_FACE,
    Correction,
    Reviews,
    add_corrections,
    carry_corrections,
    erase_corrections,
    parsed,
    read_corrections,
    table_of,
)

DIGEST, OTHER, CLASSES = "a" * 64, "b" * 64, ("happy", "sad")
FACTS = {"content_sha256": DIGEST, "uri": "/a.jpg", "x": 10.0, "y": 10.0, "w": 20.0, "h": 20.0, "answer": "sad", "by": "ann"}
MORNING = datetime(2026, 11, 30, 9, tzinfo=UTC)


def correction(minute: int = 0, **facts: Any) -> Correction:
    return Correction.model_validate(FACTS | {"at": MORNING + timedelta(minutes=minute)} | facts)


def faces(*rows: dict[str, Any]) -> pa.Table:
    columns = dict.fromkeys(("content_sha256", "uri", "member"), pa.string()) | {"time_ms": pa.int64()}
    whole = {
        "content_sha256": DIGEST,
        "uri": "/a.jpg",
        "member": None,
        "time_ms": None,
        "x": 11.0,
        "y": 11.0,
        "w": 20.0,
        "h": 20.0,
    }
    schema = pa.schema(columns | dict.fromkeys("xywh", pa.float32()))
    return pa.Table.from_pylist([whole | row for row in rows], schema=schema)


def said(corrections: list[Correction], *rows: dict[str, Any]) -> list[tuple[Any, ...]]:
    joined = Reviews(table_of(corrections)).joined(faces(*rows)).to_pylist()
    return [(row["expression_reviewed"], row["reviewers"], row["review_share"]) for row in joined]


NOBODY = (None, 0, None)


def test_an_answer_is_of_the_face_that_shares_its_box_under_any_name() -> None:
    rows: list[dict[str, Any]] = [{"uri": "/moved.jpg"}, {"x": 200.0}, {"content_sha256": OTHER}, {"content_sha256": None}]
    assert said([correction()], *rows) == [("sad", 1, 1), NOBODY, NOBODY, NOBODY]
    assert said([correction()], {"x": 22.0}) == [NOBODY]  # it shares a quarter of the box
    assert said([correction()], {}, {"x": 12.0}) == [("sad", 1, 1), NOBODY]  # the nearer of two


def test_the_same_bytes_in_two_places_have_the_same_answer() -> None:
    assert said([correction()], {}, {"uri": "/b.tar", "member": "a.jpg"}) == [("sad", 1, 1)] * 2


def test_a_frame_is_known_by_its_moment() -> None:
    of_frame = correction(content_sha256=None, uri="/v.mp4", time_ms=1000)
    frame: dict[str, Any] = {"content_sha256": None, "uri": "/v.mp4"}
    rows = [frame | {"time_ms": 1000}, frame | {"time_ms": 2000}, frame | {"uri": "/w.mp4", "time_ms": 1000}]
    assert said([of_frame], *rows) == [("sad", 1, 1), NOBODY, NOBODY]


def test_the_last_answer_of_a_person_and_the_majority_count() -> None:
    assert said([correction(1, answer="happy"), correction(0)], {}) == [("happy", 1, 1)]
    three = [correction(), correction(by="bob"), correction(by="cem", answer=NOT_A_FACE)]
    assert said(three, {}) == [("sad", 3, pytest.approx(2 / 3))]
    assert said([correction(), correction(by="bob", answer="happy")], {}) == [(None, 2, 0.5)]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "it is not JSON"),
        ("[1]", "Input should be a valid"),
        ({"answer": "glad"}, "'glad' is not an answer: happy, sad, not_a_face, cannot_tell, no_face, missed_face are"),
        ({"w": 0}, "w: Input should be greater than or equal to 0.01"),
        ({"x": "NaN"}, "x: Input should be"),
        ({"at": "2026-11-30T09:00:00"}, "at: Input should have timezone info"),
        ({"by": "ann@example.org"}, "by: String should match pattern"),
        ({"content_sha256": "../x"}, "content_sha256: String should match pattern"),
        ({"more": 1}, "unknown key 'more'"),
        ({"k" * 10**6: 1}, "unknown key 'kkkk"),
        ({"time_ms": 10**20}, "time_ms: Input should be less than or equal to"),
        ({"x": 1e300}, "x: Input should be less than or equal to"),
        ({"w": 1e-300}, "w: Input should be greater than or equal to 0.01"),
        ({"at": "9999-12-31T23:59:59-12:00"}, "at: Input should be less than or equal to"),
        ({"at": "0001-01-01T00:00:00+14:00"}, "at: Input should be greater than or equal to"),
        ("[" * 100_000, "it is not JSON"),
    ],
)
def test_a_line_that_is_no_correction_is_named_and_the_rest_is_taken(line: Any, reason: str) -> None:
    good = correction().model_dump_json()
    bad = line if isinstance(line, str) else json.dumps(json.loads(good) | line)
    found, refused = parsed(f"{good}\n\n{bad}\n{good}", CLASSES)
    assert [number for number, _ in found] == [1, 4] and [one.line for one in refused] == [3]
    assert reason in refused[0].reason and len(refused[0].reason) < 300


def test_names_with_separators_of_lines_are_taken() -> None:
    found, refused = parsed(
        json.dumps(json.loads(correction(uri="/a\u2028b\x85.jpg").model_dump_json()), ensure_ascii=False), CLASSES
    )
    assert not refused and found[0][1].uri == "/a\u2028b\x85.jpg"


def test_corrections_are_added_carried_and_erased(tmp_path: Path) -> None:
    run, table = str(tmp_path / "run"), str(tmp_path / "table")
    assert read_corrections(run).equals(CORRECTIONS.empty_table())
    rows = table_of([correction(), correction(1), correction(content_sha256=OTHER, uri="/b.jpg")])
    add_corrections(run, rows)
    add_corrections(run, rows.slice(0, 1))
    assert read_corrections(run).sort_by("at").num_rows == 3
    for _ in range(2):
        carry_corrections(run, table, frozenset({OTHER}))
        assert read_corrections(table)["content_sha256"].to_pylist() == [DIGEST] * 2
    carry_corrections(run, table, frozenset())
    (tmp_path / "table" / "README.txt").write_text("of another program")
    assert erase_corrections(table, ["/b.jpg"], []) == {OTHER} and erase_corrections(table, [], ["c" * 64]) == set()
    assert read_corrections(table).sort_by("at").to_pylist() == rows.slice(0, 2).to_pylist()
    assert erase_corrections(table, [], [DIGEST]) == {DIGEST} and read_corrections(table).num_rows == 0


def test_erased_corrections_of_a_frame_do_not_come_back(tmp_path: Path) -> None:
    run, table = str(tmp_path / "run"), str(tmp_path / "table")
    add_corrections(run, table_of([correction(content_sha256=None, uri="/v.mp4", time_ms=0), correction()]))
    carry_corrections(run, table, ())
    erased = erase_corrections(table, ["/v.mp4"], [])
    carry_corrections(run, table, erased)
    assert read_corrections(table)["uri"].to_pylist() == ["/a.jpg"]
