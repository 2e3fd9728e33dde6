from pathlib import Path
from random import Random

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from fer_pipeline.archive.file_list import FileList, root_of
from fer_pipeline.archive.listing import Listing
from fer_pipeline.archive.record import Record, sampled
from fer_pipeline.base.errors import UserError


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    (folder / "a b").mkdir(parents=True)
    for name in ("1.jpg", "2.jpg", "a b/ü.jpg", "notes.doc"):
        (folder / name).write_bytes(name.encode())
    return folder


def test_every_form_names_the_same_files_in_its_order(photos: Path) -> None:
    names = ["2.jpg", "a b/ü.jpg", str(photos / "1.jpg")]
    table = pa.table({"id": [7, 8, 9], "where": names})
    pq.write_table(table, photos / "list.parquet")
    pyarrow.csv.write_csv(table, photos / "list.csv")
    pyarrow.csv.write_csv(table, photos / "list.tsv", pyarrow.csv.WriteOptions(delimiter="\t"))
    (photos / "list.txt").write_bytes("\ufeff2.jpg\r\n\r\na b/ü.jpg\r\n".encode() + str(photos / "1.jpg").encode())
    expected = [str(photos / name) for name in ("2.jpg", "a b/ü.jpg", "1.jpg")]
    for name in ("list.parquet", "list.csv", "list.tsv", "list.txt"):
        found = FileList(str(photos / name), "where")
        assert found.uris == [file.uri for file in found.files()] == expected, name
        assert [(file.size_bytes, file.error) for file in found.files()] == [(5, None), (10, None), (5, None)]


def test_kept_columns_are_as_the_list_has_them(photos: Path) -> None:
    (photos / "l.csv").write_text('where,id,text\n1.jpg,007,"a, ""b""\nc"\n2.jpg,,\n1.jpg,008,later\n')
    found = FileList(str(photos / "l.csv"), "where", keep=["id", "text"])
    one, two = str(photos / "1.jpg"), str(photos / "2.jpg")
    assert found.kept([two, one, two]).to_pylist() == [
        {"id": None, "text": None},
        {"id": "007", "text": 'a, "b"\nc'},
        {"id": None, "text": None},
    ]
    assert found.doubled == 1 and found.uris == [one, two]
    assert one in found and str(photos / "3.jpg") not in found
    typed = pa.table({"where": ["1.jpg"], "id": [7], "kind": pa.array(["x"]).dictionary_encode()})
    pq.write_table(typed, photos / "l.parquet")
    kept = FileList(str(photos / "l.parquet"), "where", keep=["id", "kind"]).kept([one])
    assert kept.schema.types == [pa.int64(), pa.string()] and kept.to_pylist() == [{"id": 7, "kind": "x"}]


def test_what_is_gone_or_no_file_has_an_error_and_a_row(photos: Path) -> None:
    (photos / "l.txt").write_text("1.jpg\ngone.jpg\na b\n")
    found = FileList(str(photos / "l.txt"), "uri")
    assert [(file.error, file.hides) for file in found.files()] == [
        (None, False),
        ("the file cannot be found", False),
        ("a list names files, and this is a folder", False),
    ]
    listing = Listing(str(photos), named=found)
    assert [(record.uri.rpartition("/")[2], bool(record.error)) for record in listing] == [
        ("1.jpg", False),
        ("gone.jpg", True),
        ("a b", True),
    ]
    assert not listing.hidden
    assert listing.covers(str(photos / "1.jpg"), None, None) and not listing.covers(str(photos / "2.jpg"), None, None)


def test_a_list_leads_nowhere_but_below_its_bases(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere.jpg").write_bytes(b"x")
    for text in (
        "../elsewhere.jpg",
        str(tmp_path / "elsewhere.jpg"),
        "http://host/x.jpg",
        "s3://bucket/x.jpg",
        "~/x.jpg",
        "file:///etc/x",
    ):
        (photos / "l.txt").write_text(f"1.jpg\n{text}\n")
        with pytest.raises(UserError, match=r"Entry 2 of .* names .* which is not below .*photos: name a folder"):
            FileList(str(photos / "l.txt"), "uri")
    (photos / "l.csv").write_text("uri,id\n1.jpg,1\n,2\n")
    with pytest.raises(UserError, match=r"Entry 2 of .* names no file"):
        FileList(str(photos / "l.csv"), "uri")


def test_a_relative_path_is_that_of_the_list_or_else_of_the_base(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "l.txt").write_text("photos/1.jpg\na b/ü.jpg\n")
    found = FileList(str(tmp_path / "l.txt"), "uri", [str(photos)])
    assert [file.error for file in found.files()] == [None, None]


def test_the_root_is_what_the_bases_have_in_common(tmp_path: Path) -> None:
    assert root_of(str(tmp_path / "l.txt"), []) == str(tmp_path)
    assert root_of("l.txt", ["/data/a/x", "/data/a/y/z"]) == "/data/a"
    assert root_of("l.txt", ["s3://bucket/a", "s3://bucket/b/"]) == "s3://bucket"
    assert root_of("s3://bucket/lists/l.txt", []) == "s3://bucket/lists"
    for bases in (["/data/x", "/home/x"], ["s3://a/x", "s3://b/x"], ["s3://a/x", "/x"], ["s3://a", "az://a"]):
        with pytest.raises(UserError, match="have no folder in common"):
            root_of("l.txt", bases)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("l.csv", b"where\n1.jpg\n", "has no column 'uri': it has where"),
        ("l.csv", b"", "cannot be read as a list"),
        ("l.csv", b"uri\n", "names no file"),
        ("l.txt", b"\n\n", "names no file"),
        ("l.txt", b"\xff\xfe1\0", "cannot be read as a list"),
        ("l.parquet", b"PAR1", "cannot be read as a list"),
        ("no.csv", None, "There is no list"),
    ],
)
def test_a_list_that_cannot_be_read_is_one_sentence(photos: Path, name: str, content: bytes | None, says: str) -> None:
    if content is not None:
        (photos / name).write_bytes(content)
    with pytest.raises(UserError, match=says):
        FileList(str(photos / name), "uri")
    with pytest.raises(UserError, match="is a folder, and --uri-column needs a list"):
        FileList(str(photos), "uri")


@pytest.mark.parametrize(
    ("column", "says"),
    [
        (pa.array([["x"]]), r"'more' of .* is list<.* plain values"),
        (pa.array([b"\xff"]), r"'more' of .* is binary: .* plain values"),
        (pa.array([b"\xff"]).view(pa.string()), "cannot be read as a list"),
    ],
)
def test_only_plain_values_are_kept(photos: Path, column: pa.Array, says: str) -> None:
    pq.write_table(pa.table({"uri": ["1.jpg"], "more": column}), photos / "l.parquet")
    with pytest.raises(UserError, match=says):
        FileList(str(photos / "l.parquet"), "uri", keep=["more"])
    if column.type != pa.list_(pa.string()):
        pq.write_table(pa.table({"uri": column}), photos / "l.parquet")
        with pytest.raises(UserError, match=r"a list has paths|cannot be read as a list"):
            FileList(str(photos / "l.parquet"), "uri")


def test_odd_lists_are_one_sentence_or_work(photos: Path) -> None:
    (photos / "l.csv").write_text("uri,id,id\n1.jpg,1,2\n")
    with pytest.raises(UserError, match="has two columns 'id'"):
        FileList(str(photos / "l.csv"), "uri", keep=["id"])
    (photos / "l.txt").write_text("1.jpg\n2\0.jpg\n")
    with pytest.raises(UserError, match=r"Entry 2 .* names no file of any disk"):
        FileList(str(photos / "l.txt"), "uri")
    (photos / "a\x85b.jpg").write_bytes(b"x")
    (photos / "l.txt").write_text("a\x85b.jpg\n")
    assert [file.error for file in FileList(str(photos / "l.txt"), "uri").files()] == [None]
    pq.write_table(
        pa.table({"uri": pa.array(["1.jpg"], pa.string_view()), "id": pa.array(["x"], pa.large_string())}), photos / "l.parquet"
    )
    found = FileList(str(photos / "l.parquet"), "uri", keep=["id"])
    assert found.kept(found.uris).to_pylist() == [{"id": "x"}]


def test_what_may_not_be_looked_at_hides_what_it_holds(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So a night does not take its members for gone."""
    (photos / "l.txt").write_text("a.zip\n")

    def denied(path: str) -> None:
        raise PermissionError(13, "Permission denied", path)

    found = FileList(str(photos / "l.txt"), "uri")
    monkeypatch.setattr("fer_pipeline.archive.file_list.os.stat", denied)
    (file,) = found.files()
    assert file.hides and file.error is not None and "cannot be looked at" in file.error


def test_a_sample_is_in_order_without_repeats_and_every_record_may_be_in_it() -> None:
    records = [Record(str(number)) for number in range(50)]
    drawn = [sampled(records, 10, Random(seed)) for seed in range(400)]
    for sample in drawn:
        numbers = [int(record.uri) for record in sample]
        assert len(numbers) == 10 and numbers == sorted(set(numbers))
    counts = [sum(record in sample for sample in drawn) for record in records]
    assert min(counts) > 40 and max(counts) < 130  # 80 expected, standard deviation 8
    assert sampled(records[:3], 10, Random(0)) == records[:3]
