import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import feather

from fer_pipeline.archive.files import Selection
from fer_pipeline.archive.formats.arrows import Batches, OpenArrow
from fer_pipeline.archive.formats.parquets import OpenParquet
from fer_pipeline.archive.formats.rows import ELEMENT, image_columns
from fer_pipeline.archive.listing import Listing
from fer_pipeline.archive.reader import RecordReader
from fer_pipeline.archive.record import Record
from fer_pipeline.base.errors import RecordError

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
    assert list(listing) == [] and dict(listing.skipped) == {".parquet (no image column: name it with --image-column)": 1}


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
    """A failed read does not mean a damaged file: the reader reopens the file, once for each row."""
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


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("p_dict.parquet", 4), ("p_struct_view.parquet", 2), ("p_Image_caps.parquet", 2), ("p_image_and_hash.parquet", 2),
        ("p_images_plural.parquet", 2), ("p_ext.pq", 2), ("p_ext.parq", 2), ("hf.arrow", 2), ("p_list_bin.parquet", 3),
        ("p_list_struct.parquet", 3),
    ],
)  # fmt: skip
def test_a_table_of_the_field_is_read_whole(name: str, count: int, shared: Path) -> None:
    """04c3eb5 skipped all of these."""
    records, reader = list(Listing(str(shared / "data" / "field" / name))), RecordReader()
    assert len(records) == count
    assert {reader.read(record)[:3] for record in records} <= {b"\xff\xd8\xff", b"\x89PN"}
    reader.close()


def test_two_columns_of_images_ask_which(shared: Path) -> None:
    listing = Listing(str(shared / "data" / "field" / "p_image_and_thumb.parquet"))
    assert list(listing) == []
    assert "name it with --image-column, such as face_image or thumbnail" in listing.holds_nothing()
    chosen = Selection(image_column="face_image")
    assert len(list(Listing(str(shared / "data" / "field" / "p_image_and_thumb.parquet"), chosen))) == 2


def test_binaries_of_a_fixed_size_are_images_unless_they_are_too_small(tmp_path: Path) -> None:
    image = pa.array([bytes(90)] * 3, pa.binary(90))
    pq.write_table(pa.table({"x": image, "md5": pa.array([bytes(16)] * 3, pa.binary(16))}), tmp_path / "a.parquet")
    records, reader = list(Listing(str(tmp_path))), RecordReader()
    assert [reader.read(record) for record in records] == [bytes(90)] * 3
    reader.close()


def test_a_digest_beside_a_struct_or_a_plain_column_is_no_image() -> None:
    digest, struct = pa.field("sha512", pa.binary(64)), pa.field("x", pa.struct([("bytes", pa.binary()), ("path", pa.string())]))

    def paths(*fields: pa.Field) -> list[str]:
        return [column.path for column in image_columns(pa.schema(fields))]

    assert paths(digest, pa.field("payload", pa.binary())) == ["payload"]
    assert paths(digest, struct) == ["x.bytes"]
    assert paths(struct, pa.field("md5", pa.binary())) == ["x.bytes", "md5"], "which of the two is not known"


STRUCT = [{"bytes": b"one", "path": "1"}, {"bytes": b"two", "path": "2"}]
LISTS = {
    "binaries": pa.array([[b"one", b"two"], [], None, [b"three"]]),
    "large": pa.array([[b"one", b"two"], [], None, [b"three"]], pa.large_list(pa.large_binary())),
    "structs": pa.array([STRUCT, [], None, [{"bytes": b"three", "path": ""}]]),
    "inside": pa.array([{"all": STRUCT}, {"all": []}, None, {"all": [{"bytes": b"three", "path": ""}]}]),
}


def write_arrow(table: pa.Table, path: Path) -> None:
    with pa.ipc.new_file(path, table.schema) as file:
        file.write_table(table, 2)


def write_stream(table: pa.Table, path: Path) -> None:
    with pa.ipc.new_stream(path, table.schema) as stream:
        stream.write_table(table, 2)


WRITERS = {
    "a.parquet": lambda table, path: pq.write_table(table, path, row_group_size=2),
    "a.arrow": write_arrow,
    "stream.arrow": write_stream,
    "a.feather": feather.write_feather,
    "lz4.feather": lambda table, path: feather.write_feather(table, path, compression="lz4", chunksize=2),
}


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("form", LISTS)
def test_every_image_of_a_list_is_a_record(form: str, name: str, tmp_path: Path) -> None:
    """04c3eb5 skipped them."""
    WRITERS[name](pa.table({"label": [1, 2, 3, 4], "frames": LISTS[form]}), tmp_path / name)
    records, reader = list(Listing(str(tmp_path))), RecordReader()
    assert [record.member for record in records] == ["row 0 image 0", "row 0 image 1", "row 3 image 0"]
    assert [reader.read(record) for record in records] == [b"one", b"two", b"three"]
    assert [reader.read(record) for record in reversed(records)] == [b"three", b"two", b"one"]
    with pytest.raises(RecordError, match="the row holds 1 images"):
        reader.read(replace(records[2], offset=(records[2].offset or 0) + ELEMENT))
    reader.close()


@pytest.mark.parametrize("name", WRITERS)
def test_images_in_structs_of_structs_are_found_and_null_structs_are_rows(name: str, tmp_path: Path) -> None:
    inner = pa.array(
        [{"image": {"bytes": b"one", "path": ""}, "mask": b"m"}, None, {"image": {"bytes": b"two", "path": ""}, "mask": None}]
    )
    WRITERS[name](pa.table({"sample": inner}), tmp_path / name)
    records, reader = list(Listing(str(tmp_path))), RecordReader()
    assert [record.member for record in records] == ["row 0", "row 1", "row 2"]
    assert (reader.read(records[0]), reader.read(records[2])) == (b"one", b"two")
    with pytest.raises(RecordError, match="the row holds no image"):
        reader.read(records[1])
    chosen = list(Listing(str(tmp_path), Selection(image_column="sample.mask")))
    assert RecordReader("sample.mask").read(chosen[0]) == b"m"


@pytest.mark.parametrize("name", WRITERS)
def test_rows_are_read_in_any_order_from_any_form_of_file(name: str, tmp_path: Path) -> None:
    WRITERS[name](pa.table({"image": PICTURES, "label": list(range(100))}), tmp_path / name)
    records, reader = list(Listing(str(tmp_path))), RecordReader()
    assert [record.member for record in records[:2]] == ["row 0", "row 1"] and len(records) == 100
    assert [reader.read(records[index]) for index in (99, 3, 31, 30, 70)] == [PICTURES[i] for i in (99, 3, 31, 30, 70)]


@pytest.mark.parametrize("name", ["a.arrow", "stream.arrow"])
def test_a_damaged_arrow_file_is_rows_that_say_so(name: str, tmp_path: Path) -> None:
    WRITERS[name](pa.table({"image": PICTURES}), tmp_path / name)
    data = (tmp_path / name).read_bytes()
    place = data.index(b"picture 50") - 100
    offsets = data.rindex(np.array([0, 9], np.int32).tobytes(), 0, data.index(b"picture 0")) if b"picture 0" in data else place
    for broken in (data[: len(data) // 2], data[:offsets] + b"\xff" * 8 + data[offsets + 8 :], b"ARROW1\0\0", b""):
        (tmp_path / name).write_bytes(broken)
        records = list(Listing(str(tmp_path)))
        assert not broken or any("the container cannot be read" in (record.error or "") for record in records)


def test_an_arrow_file_with_a_type_of_python_is_refused(tmp_path: Path) -> None:
    class Odd(pa.ExtensionType):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__(pa.binary(), "odd")

        def __arrow_ext_serialize__(self) -> bytes:
            return b""

        @classmethod
        def __arrow_ext_deserialize__(cls, storage_type: pa.DataType, serialized: bytes) -> "Odd":
            return cls()

    pa.register_extension_type(Odd())
    try:
        column = pa.ExtensionArray.from_storage(Odd(), pa.array([b"x"]))
        write_stream(pa.table({"image": column}), tmp_path / "a.arrow")
        with pytest.raises(pa.ArrowInvalid, match="extension type"):
            OpenArrow(str(tmp_path / "a.arrow"))
    finally:
        pa.unregister_extension_type("odd")


BINARY, FIELDS = pa.binary(), [("bytes", pa.binary()), ("path", pa.string())]


@pytest.mark.parametrize(
    ("columns", "chosen"),
    [
        ({"image": BINARY, "bytes": BINARY}, ["image"]),
        ({"image": pa.struct(FIELDS), "bytes": BINARY}, ["image.bytes"]),
        ({"raw": BINARY, "thumbnail": pa.struct([("data", BINARY)])}, ["raw"]),
        ({"foo": BINARY, "masks": pa.list_(BINARY)}, ["foo"]),
        ({"foo": BINARY, "meta": pa.struct([("mask", BINARY)])}, ["foo"]),
        ({"foo": BINARY, "bar": BINARY}, ["foo", "bar"]),
        ({"s": pa.struct([("image", pa.struct(FIELDS)), ("mask", BINARY)])}, ["s.image.bytes"]),
        ({"a": pa.list_(BINARY), "images": pa.list_(BINARY)}, ["images"]),
        ({"a": pa.list_(BINARY), "b": pa.struct([("c", BINARY)])}, ["a", "b.c"]),
    ],
)
def test_a_column_by_itself_comes_before_fields_and_lists(columns: dict[str, pa.DataType], chosen: list[str]) -> None:
    """As before these were read: rows of one file must not come from two columns."""
    assert [column.path for column in image_columns(pa.schema(columns.items()))] == chosen


def test_a_late_row_of_an_arrow_file_is_read_without_those_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_arrow(pa.table({"image": PICTURES}), tmp_path / "a.arrow")
    records, read, advance = list(Listing(str(tmp_path))), list[int](), Batches._advance

    def counted(self: Batches, number: int) -> pa.RecordBatch | None:
        read.append(number)
        return advance(self, number)

    monkeypatch.setattr(Batches, "_advance", counted)
    reader = RecordReader()
    assert reader.read(records[99]) == PICTURES[99] and read == [49]


@pytest.mark.parametrize(
    ("change", "rows", "error"),
    [
        (lambda data: data[:-8], 100, "the stream ends at byte .* without a mark: it may be cut off"),
        (lambda data: data + data, 100, "bytes follow the end of the stream"),
        (lambda data: data[: len(data) // 2], None, "cannot be read"),
        (lambda data: b"", 0, "the file is empty"),
        (lambda data: b"FEA1" + data, 0, "Feather of version 1"),
    ],
)
def test_a_stream_that_is_cut_off_or_goes_on_is_a_row_that_says_so(
    change: Callable[[bytes], bytes], rows: int | None, error: str, tmp_path: Path
) -> None:
    write_stream(pa.table({"image": PICTURES}), tmp_path / "a.arrow")
    (tmp_path / "a.arrow").write_bytes(change((tmp_path / "a.arrow").read_bytes()))
    *found, last = Listing(str(tmp_path))
    assert re.search(error, last.error or "") and rows in (None, len(found))


def test_two_columns_of_one_name_are_refused_by_name(tmp_path: Path) -> None:
    write_arrow(pa.table([pa.array([b"one"]), pa.array([b"two"])], names=["image", "image"]), tmp_path / "a.arrow")
    (record,) = Listing(str(tmp_path))
    assert "two columns of one name" in (record.error or "")
