import hashlib

import pyarrow as pa
import pytest

from fer_pipeline.faces.quality import QUALITY
from fer_pipeline.labelling import faces_table
from fer_pipeline.labelling.faces_table import Contents, content_digests, qualities_of_faces


def test_each_face_has_its_quality_and_that_of_earlier_versions_none() -> None:
    blank = dict.fromkeys(field.name for field in QUALITY)
    rows = [
        {"faces": [{"x": 1.0}, {"x": 2.0}], "qualities": [blank | {"side_px": 1.0}, blank | {"side_px": 2.0}]},
        {"faces": [{"x": 3.0}], "qualities": None},
        {"faces": [], "qualities": []},
        {"faces": [{"x": 4.0}, {"x": 5.0}], "qualities": [blank]},  # by another program
        {"faces": [{"x": 6.0}], "qualities": [blank | {"side_px": 6.0, "quality_reasons": "LOW_CONTRAST"}]},
    ]
    schema = pa.schema([("faces", pa.list_(pa.struct([("x", pa.float32())]))), ("qualities", pa.list_(QUALITY))])
    found = qualities_of_faces(pa.Table.from_pylist(rows, schema=schema))
    assert found["side_px"].to_pylist() == [1, 2, None, None, None, 6] and found.column_names == [field.name for field in QUALITY]
    assert qualities_of_faces(pa.Table.from_pylist(rows[1:3], schema=schema))["quality"].to_pylist() == [None]
    assert len(qualities_of_faces(schema.empty_table())) == 0


def column(numbers: list[int]) -> pa.ChunkedArray:
    return pa.chunked_array([[hashlib.sha256(str(number).encode()).hexdigest() for number in numbers]])


def test_copies_are_counted_without_their_original_over_all_parts() -> None:
    whole = Contents()
    for numbers in ([1, 2, 3, 1], [2, 4], [5, 1]):
        part = Contents()
        part.add(content_digests(column(numbers)))
        whole.merge(part)
    assert whole.copies == 3


def test_what_is_no_digest_is_no_copy() -> None:
    contents = Contents()
    contents.add(content_digests(pa.chunked_array([[None, None, "", "", "x" * 64, "x" * 64]], pa.string())))
    assert contents.copies == 0


def test_above_its_limit_the_count_is_an_estimate_in_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faces_table, "MOST_CONTENTS", 1000)
    contents = Contents()
    for start in range(0, 20_000, 500):
        contents.add(content_digests(column([number % 12_000 for number in range(start, start + 500)])))
    assert sum(map(len, contents._digests)) <= 1000
    assert contents.copies == pytest.approx(8_000, rel=0.15)
