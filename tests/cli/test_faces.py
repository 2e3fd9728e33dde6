"""`export`, `crops` and `copies`."""

import csv
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import fer_pipeline as fer
from fer_pipeline.base.errors import UserError
from fer_pipeline.cli import faces
from fer_pipeline.cli.faces import CopiesConfig, CropsConfig, ExportConfig, FindConfig
from tests.cli.conftest import Ended


@pytest.mark.parametrize("kind", ["csv", "json", "jsonl", "parquet"])
def test_every_format_has_the_faces(kind: str, labelled: fer.Run, tmp_path: Path) -> None:
    to = tmp_path / "new" / f"faces.{kind}"
    said = faces.export(ExportConfig(labels=labelled.url, to=str(to), certain=True))
    expected = labelled.faces(certain=True)
    assert said is not None and said.faces == expected.num_rows > 0
    assert [path.name for path in to.parent.iterdir()] == [to.name]
    if kind == "parquet":
        assert pq.read_table(to).equals(expected)
        return
    text = to.read_text()
    if kind == "csv":
        rows = list(csv.DictReader(text.splitlines()))
        assert list(rows[0]) == expected.column_names
    else:
        rows = json.loads(text) if kind == "json" else [json.loads(line) for line in text.splitlines()]
    assert [row["path"] for row in rows] == expected["path"].to_pylist()
    assert [float(row["p_happy"]) for row in rows] == pytest.approx(expected["p_happy"].to_pylist())


def test_a_table_goes_to_the_standard_output_as_csv(published: fer.Table) -> None:
    command = [sys.executable, "-m", "fer_pipeline.cli", "export", published.url, "--where", "expression = 'happy'"]
    out = subprocess.run([*command, "--columns", "path, expression"], capture_output=True, text=True, check=True)
    lines = out.stdout.splitlines()
    assert lines[0] == '"path","expression"' and all(line.endswith('"happy"') for line in lines[1:])
    assert len(lines) - 1 == published.faces(where="expression = 'happy'").num_rows > 0


def test_copies_are_written_in_groups(labelled: fer.Run, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    said = faces.copies(CopiesConfig(labels=labelled.url, to=str(tmp_path / "copies.csv")))
    rows = list(csv.DictReader((tmp_path / "copies.csv").read_text().splitlines()))
    assert said is not None and said.groups == len({row["group"] for row in rows}) > 0
    assert sum(said.images.values()) == len(rows) and [row["kind"] for row in rows].count("original") == said.groups
    assert faces.copies(CopiesConfig(labels=labelled.url)) is None
    assert len(capfd.readouterr().out.splitlines()) == 1 + len(rows)


def test_a_page_shows_the_largest_groups_of_copies(
    labelled: fer.Run, published: fer.Table, archive: Path, tmp_path: Path
) -> None:
    """Images that are gone, and those that are not below the source, have no picture."""
    with pytest.raises(UserError, match="--page needs pictures"):
        faces.copies(CopiesConfig(labels=labelled.url, page=str(tmp_path / "copies.html")))
    for labels in (labelled, published):
        pages = []
        for source in (archive, tmp_path):
            config = CopiesConfig(
                labels=labels.url, to=str(tmp_path / "c.csv"), page=str(tmp_path / "copies.html"), source=str(source)
            )
            assert faces.copies(config) is not None
            pages.append((tmp_path / "copies.html").read_text())
        shown = labels.copies()
        assert [page.count("data:image/jpeg;base64") for page in pages] == [len(shown), 0]
        assert all(page.count("<figure>") == len(shown) for page in pages)
        assert "images, like" in pages[1] and all(kind in pages[1] for kind in shown["kind"].to_pylist())


def test_an_export_without_a_face_has_its_columns(labelled: fer.Run, tmp_path: Path) -> None:
    for kind in ("csv", "json", "jsonl", "parquet"):
        faces.export(ExportConfig(labels=labelled.url, to=str(tmp_path / f"x.{kind}"), where="confidence > 2"))
    assert (tmp_path / "x.csv").read_text().count("\n") == 1 and (tmp_path / "x.csv").read_text().startswith('"path"')
    assert json.loads((tmp_path / "x.json").read_text()) == [] and (tmp_path / "x.jsonl").read_text() == ""
    assert "p_happy" in pq.read_table(tmp_path / "x.parquet").column_names


def test_an_export_that_fails_leaves_what_was_there(labelled: fer.Run, tmp_path: Path) -> None:
    to = tmp_path / "faces.csv"
    to.write_text("before")
    with pytest.raises(Exception, match="There is no column 'nope'"):
        faces.export(ExportConfig(labels=labelled.url, to=str(to), columns="nope"))
    assert to.read_text() == "before" and [path.name for path in tmp_path.iterdir()] == ["faces.csv"]


def test_crops_are_pictures_with_their_rows(labelled: fer.Run, archive: Path, tmp_path: Path) -> None:
    out = tmp_path / "crops"
    said = faces.crops(CropsConfig(labels=labelled.url, out=str(out), source=str(archive), top=4, where="not uncertain"))
    with (out / "faces.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert said.faces == 4 == len(rows)
    assert sorted(path.name for path in out.glob("*.jpg")) == [row["picture"] for row in rows]
    assert rows[0]["picture"].startswith(f"00000-{rows[0]['expression']}-") and rows[0]["uncertain"] == "false"
    with pytest.raises(Exception, match="not a new or empty folder"):
        faces.crops(CropsConfig(labels=labelled.url, out=str(out), source=str(archive)))


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["export", "/nowhere"], "There is neither a labelling run nor a published table in '/nowhere'"),
        (["export", "/nowhere", "--to", "x.xls"], "--to: 'x.xls' must end in .csv, .json, .jsonl, .parquet"),
        (["crops", "/nowhere", "--out", "x"], "--source is missing"),
        (["label", "photos", "--outt", "x"], "Unknown option: --outt. Did you mean --out?"),
        (["label", "photos", "--out", "x", "--fps", "zz"], "--fps: Input should be a valid number"),
    ],
)
def test_a_mistake_names_the_option(arguments: list[str], complaint: str, call_here: Callable[..., Ended]) -> None:
    out = call_here(*arguments)
    assert out.returncode == 2 and complaint in out.stderr and len(out.stderr.splitlines()) == 1


def test_a_planted_expression_leads_nowhere(labelled: fer.Run, archive: Path, tmp_path: Path) -> None:
    place = tmp_path / "planted"
    shutil.copytree(labelled.url, place)
    for file in (place / "images").glob("*.parquet"):
        rows = pq.read_table(file)
        evil = [[face | {"expression": "/../../pwned/a"} for face in faces] for faces in rows["faces"].to_pylist()]
        column = pa.array(evil, rows.schema.field("faces").type)
        pq.write_table(rows.set_column(rows.column_names.index("faces"), "faces", column), file)
    out = tmp_path / "a" / "b" / "crops"
    faces.crops(CropsConfig(labels=str(place), out=str(out), source=str(archive), top=2))
    assert len(list(out.glob("*.jpg"))) == 2 and {path.name for path in tmp_path.iterdir()} == {"planted", "a"}


def test_a_link_beside_the_file_is_not_followed_and_a_reader_may_leave(labelled: fer.Run, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("kept")
    (tmp_path / "f.csv.tmp").symlink_to(victim)
    faces.export(ExportConfig(labels=labelled.url, to=str(tmp_path / "f.csv")))
    assert victim.read_text() == "kept" and not (tmp_path / "f.csv").is_symlink()
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"):
        faces.export(ExportConfig(labels=labelled.url, to=str(tmp_path / "file" / "x.csv")))
    command = f"{sys.executable} -m fer_pipeline.cli export {labelled.url} | head -1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith('"path"') and done.stderr == ""


def test_a_picture_is_found_under_any_name_and_size(
    labelled: fer.Run, published: fer.Table, archive: Path, tmp_path: Path
) -> None:
    photo = next(archive.rglob("hopper-640.jpg"))
    pixels = cv2.imread(str(photo))
    assert pixels is not None
    cv2.imwrite(str(tmp_path / "small.jpg"), cv2.resize(pixels, None, fx=0.4, fy=0.4, interpolation=cv2.INTER_AREA))
    cv2.imwrite(str(tmp_path / "mirrored.png"), pixels[:, ::-1])
    cv2.imwrite(str(tmp_path / "other.png"), np.random.default_rng(0).integers(0, 256, (90, 90, 3), np.uint8))
    shutil.copy(photo, tmp_path / "copy.jpg")
    for labels in (labelled.url, published.url):
        found = {
            path.name: {one.kind for one in faces.find(FindConfig(labels=labels, like=str(path))).images if one.uri == str(photo)}
            for path in tmp_path.iterdir()
        }
        assert found == {"small.jpg": {"near"}, "mirrored.png": {"mirrored"}, "other.png": set(), "copy.jpg": {"exact"}}
    (tmp_path / "text.jpg").write_text("no picture")
    with pytest.raises(UserError, match="The picture cannot be read"):
        faces.find(FindConfig(labels=labelled.url, like=str(tmp_path / "text.jpg")))
    with pytest.raises(UserError, match="cannot be read"):
        faces.find(FindConfig(labels=labelled.url, like=str(tmp_path / "none.jpg")))
