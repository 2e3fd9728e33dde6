from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fer_pipeline.core.errors import RecordError
from fer_pipeline.core.manifest import Record
from fer_pipeline.sources.files import Selection
from fer_pipeline.sources.formats.parquets import OpenParquet
from fer_pipeline.sources.listing import Listing
from fer_pipeline.sources.reader import RecordReader

PICTURES = [f"picture {number}".encode() for number in range(100)]


def written(folder: Path, columns: dict[str, Any], name: str = "a.parquet") -> list[Record]:
    pq.write_table(pa.table(columns), folder / name, row_group_size=30)
    return list(Listing(str(folder)))


@pytest.mark.parametrize("column", ["image", "thumbnail"])
def test_every_row_is_a_record(tmp_path: Path, column: str) -> None:
    records, reader = written(tmp_path, {"label": list(range(100)), column: PICTURES}), RecordReader()
    assert [record.member for record in records[:2]] == ["row 0", "row 1"]
    assert [reader.read(record) for record in records] == PICTURES
    assert [reader.read(records[index]) for index in (99, 3, 31, 30, 70)] == [PICTURES[i] for i in (99, 3, 31, 30, 70)]


def test_images_in_the_structs_of_hugging_face_are_found(tmp_path: Path) -> None:
    images = pa.array([{"bytes": picture, "path": "x"} for picture in PICTURES])
    records, reader = written(tmp_path, {"image": images, "label": list(range(100))}), RecordReader()
    assert [reader.read(record) for record in records] == PICTURES


def test_a_row_without_an_image_is_unreadable(tmp_path: Path) -> None:
    records, reader = written(tmp_path, {"image": pa.array([b"one", None], pa.binary())}), RecordReader()
    assert reader.read(records[0]) == b"one"
    with pytest.raises(RecordError, match="the row holds no image"):
        reader.read(records[1])


def test_a_file_without_images_is_skipped_and_counted(tmp_path: Path) -> None:
    pq.write_table(pa.table({"label": [1]}), tmp_path / "labels.parquet")
    listing = Listing(str(tmp_path))
    assert list(listing) == [] and dict(listing.skipped) == {".parquet": 1}


def test_the_column_can_be_named(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": [b"small"], "original": [b"large"]}), tmp_path / "a.parquet")
    (record,) = Listing(str(tmp_path), Selection(image_column="original"))
    assert RecordReader("original").read(record) == b"large"
    (record,) = Listing(str(tmp_path), Selection(image_column="photo"))
    assert record.error and "has no binary column 'photo'; its columns are image, original" in record.error


def test_a_damaged_file_is_one_record_that_says_so(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1 and nothing else")
    (record,) = Listing(str(tmp_path))
    assert record.error and record.error.startswith("the container cannot be read")


@pytest.mark.parametrize("error", [ConnectionResetError("reset"), TimeoutError("late"), OSError(5, "Input/output error")])
def test_one_read_that_fails_costs_no_row_and_two_cost_one(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What breaks one read is not the file's: the reader begins anew, for this row once and for those that follow."""
    images = [bytes([number]) * 2000 for number in range(100)]
    pq.write_table(pa.table({"image": images}), tmp_path / "a.parquet", row_group_size=10)
    opened = OpenParquet(str(tmp_path / "a.parquet"))
    advance, failures = OpenParquet._advance, [False, False, True, False, True, True]
    reopen, opens = OpenParquet._open, [False, False, False, True]

    def failing(self: OpenParquet) -> None:
        if failures and failures.pop(0):
            raise error
        advance(self)

    def not_opened(self: OpenParquet) -> None:
        if opens and opens.pop(0):
            raise error
        reopen(self)

    monkeypatch.setattr(OpenParquet, "_advance", failing)
    monkeypatch.setattr(OpenParquet, "_open", not_opened)
    found: list[bytes | None] = []
    for row in range(100):
        record = Record(str(tmp_path / "a.parquet"), f"row {row}", row)
        try:
            found.append(opened.read(record, lambda *_: b""))
        except OSError:
            found.append(None)
    assert sum(one is None for one in found) == 1, found
    assert all(one in (None, image) for one, image in zip(found, images, strict=True)) and not failures
    opened.close()
