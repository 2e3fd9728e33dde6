"""Labels go to COCO and Label Studio and answers come back: nothing lost, nothing moved."""

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

import fer_pipeline as fer
from fer_pipeline.api.folders import PICTURES
from fer_pipeline.api.tools import label_studio_config, picture_name
from fer_pipeline.base.errors import UserError
from fer_pipeline.cli import faces, review, sample_archive
from fer_pipeline.cli.faces import ExportConfig
from fer_pipeline.cli.review import CorrectConfig, Corrected
from fer_pipeline.cli.sample_archive import SampleArchiveConfig
from fer_pipeline.jobs import publish
from fer_pipeline.jobs.publish import PublishConfig
from tests.conftest import copies

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def run(labelled: fer.Run, tmp_path: Path) -> fer.Run:
    shutil.copytree(labelled.url, tmp_path / "run")
    return fer.Run(str(tmp_path / "run"))


def exported(run: fer.Run, tmp_path: Path, tool: Any) -> Any:
    file = tmp_path / f"{tool}.json"
    found = faces.export(ExportConfig(labels=run.url, to=str(file), format=tool))
    assert found is not None and found.faces == run.faces().num_rows
    return json.loads(file.read_text())


def corrected(run: fer.Run, tmp_path: Path, content: Any, by: str | None = None) -> Corrected:
    (tmp_path / "answers.json").write_text(json.dumps(content))
    return review.correct(CorrectConfig(labels=run.url, file=(str(tmp_path / "answers.json"),), by=by))


def test_coco_has_every_image_and_face_where_it_is_and_takes_answers_back(run: fer.Run, tmp_path: Path) -> None:
    found, images, rows = exported(run, tmp_path, "coco"), run.images().to_pylist(), run.faces().to_pylist()
    by_id = {one["id"]: one for one in found["images"]}
    assert len(by_id) == len(found["images"]) == sum(one["width"] is not None for one in images)
    names = {one["id"]: one["name"] for one in found["categories"]}
    assert len({one["id"] for one in found["annotations"]}) == len(rows)
    for row, one in zip(rows, found["annotations"], strict=True):
        image = by_id[one["image_id"]]
        assert (image.get("uri"), image.get("member"), image.get("time_ms")) == (row["uri"], row["member"], row["time_ms"])
        assert (image["width"], image["height"]) == (row["width"], row["height"])
        assert one["bbox"] == pytest.approx([row[name] for name in "xywh"], abs=0.01)
        assert names[one["category_id"]] == row["expression"] and len(one["keypoints"]) == 15 == 3 * one["num_keypoints"]
        assert one["attributes"]["happy"] == pytest.approx(row["p_happy"])
    again = exported(run, tmp_path, "coco")
    assert again == found, "ids are the same in every export"
    assert corrected(run, tmp_path, found, "ann").added == 0, "what nobody changed is no answer"
    number = {name: number for number, name in names.items()}
    distinct = {
        one["attributes"]["content_sha256"]: one for one in found["annotations"] if one["attributes"].get("content_sha256")
    }
    changed = list(distinct.values())[:2]
    for one, answer in zip(changed, ("disgust", "not_a_face"), strict=True):
        one["category_id"] = number[answer]
    found["annotations"][-1] |= {"bbox": [10**5, 0, 10, 10], "category_id": number["fear"]}
    back = corrected(run, tmp_path, found, "ann")
    assert (back.added, back.without_face, back.refused) == (2, 0, 1)
    assert set(run.corrections()["answer"].to_pylist()) == {"disgust", "not_a_face"}
    with pytest.raises(UserError, match="does not say who answered: name a pseudonym by --by"):
        corrected(run, tmp_path, found)


def test_label_studio_gets_tasks_with_predictions_and_its_export_is_taken(run: fer.Run, tmp_path: Path) -> None:
    tasks, rows = exported(run, tmp_path, "label-studio"), run.faces().to_pylist()
    results = [(task, one) for task in tasks for one in task["predictions"][0]["result"]]
    assert len(results) == len(rows) and len(tasks) == len({(row["uri"], row["member"], row["time_ms"]) for row in rows})
    for row, (task, one) in zip(rows, results, strict=True):
        value = one["value"]
        pixels = [value[name] * one[side] / 100 for name, side in
                  zip(("x", "y", "width", "height"), ("original_width", "original_height") * 2, strict=True)]  # fmt: skip
        assert pixels == pytest.approx([row[name] for name in "xywh"], abs=0.01)
        assert (task["data"]["uri"], task["data"].get("member")) == (row["uri"], row["member"])
        assert value["rectanglelabels"] == [row["expression"]]
    answered = []
    for number, task in enumerate(tasks, 1):
        result = [one | {"value": one["value"] | {"rectanglelabels": ["sad"]}} for one in task["predictions"][0]["result"]]
        note = {
            "id": number,
            "completed_by": {"id": 7, "email": "x"},
            "created_at": "2026-11-30T09:00:00.000000Z",
            "result": result,
        }
        answered.append(task | {"id": number, "annotations": [note, note | {"was_cancelled": True}]})
    back = corrected(run, tmp_path, answered)
    assert (back.added, back.without_face, back.refused, back.reviewed) == (len(rows), 0, 0, len(rows))
    said = run.corrections().to_pylist()
    assert {row["by"] for row in said} == {"label-studio-7"} and {row["answer"] for row in said} == {"sad"}
    assert {row["seen"] for row in said} == {row["expression"] for row in rows}
    broken = corrected(run, tmp_path, [{"id": 1, "image": "x"}, answered[0]])
    assert broken.refused == 1 and broken.known == len(answered[0]["annotations"][0]["result"])


def test_impossible_exports_say_what_to_do(run: fer.Run, tmp_path: Path) -> None:
    for options in ({"to": str(tmp_path / "x.csv")}, {"to": str(tmp_path / "x.json"), "columns": "uri"}):
        with pytest.raises(UserError, match=r"The format coco has all columns and copies: name a \.json file by --to"):
            faces.export(ExportConfig.model_validate({"labels": run.url, "format": "coco"} | options))


def test_folders_hold_upright_pictures_and_the_labels_of_their_faces(run: fer.Run, archive: Path, tmp_path: Path) -> None:
    rows = run.faces().to_pylist()
    for tool in ("cvat", "fiftyone", "hf"):
        out = tmp_path / tool
        found = faces.export(ExportConfig(labels=run.url, to=str(out), format=tool, source=str(archive)))
        assert found is not None and (found.faces, found.without_picture) == (len(rows), 0)
        names = {str(path.relative_to(out / PICTURES[tool])) for path in (out / PICTURES[tool]).rglob("*.jpg")}
        assert names == {picture_name(row) for row in rows} and len(names) == found.images
        for row in rows:
            picture = cv2.imread(str(out / PICTURES[tool] / picture_name(row)), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
            assert picture is not None and picture.shape == (row["height"], row["width"], 3)
    turned = [np.asarray(cv2.imread(str(tmp_path / "hf/pictures/phone" / f"orientation-{one}.jpg")), int) for one in (3, 6, 8)]
    assert all(np.abs(turned[0] - one).mean() < 3 for one in turned[1:]), "they show one picture"
    lines = (tmp_path / "hf/metadata.jsonl").read_text().splitlines()
    assert [face for line in lines for face in json.loads(line)["faces"]["expression"]] == [row["expression"] for row in rows]


def test_pictures_that_are_gone_are_left_out_and_a_name_stands_once(archive: Path, tmp_path: Path, local_ray: None) -> None:
    source = tmp_path / "source"
    source.mkdir()
    photos = sorted(archive.rglob("hopper-*.jpg"))[:3]
    for name, photo in zip(("a.png", "a.png.upright.jpg", "gone.jpg"), photos, strict=True):
        shutil.copy(photo, source / name)
    run = fer.label(source, tmp_path / "run", detector="mtcnn")
    (source / "gone.jpg").unlink()
    config = ExportConfig(labels=run.url, to=str(tmp_path / "out"), format="fiftyone", source=str(source))
    found = faces.export(config)
    assert found is not None and (found.images, found.without_picture, found.faces) == (2, 1, 2)
    index = json.loads((tmp_path / "out/labels.json").read_text())
    names = [one["file_name"] for one in index["images"]]
    assert names == ["a.png.upright.jpg", "a.png.upright.jpg.upright.jpg"] and len(index["annotations"]) == 2
    with pytest.raises(UserError, match="is not a new or empty folder"):
        faces.export(config)
    with pytest.raises(UserError, match="name the folder by --to and the images by --source"):
        faces.export(config.model_copy(update={"source": None}))


def test_images_of_one_path_have_two_names_and_no_answer_lands_on_the_other_one(
    archive: Path, tmp_path: Path, local_ray: None
) -> None:
    """Two sources of a table have a picture of the same name, with a face at the same place."""
    table, photo = str(tmp_path / "table"), next(archive.rglob("hopper-640.jpg"))
    for name in ("one", "other"):
        (tmp_path / "all" / name).mkdir(parents=True)
        (tmp_path / "all" / name / "001.jpg").write_bytes(photo.read_bytes() + name.encode())
        run = fer.label(tmp_path / "all" / name, tmp_path / f"run-{name}", detector="mtcnn")
        publish.run(PublishConfig(run=run.url, table=table))
    faces.export(ExportConfig(labels=table, to=str(tmp_path / "out"), format="cvat", source=str(tmp_path / "all")))
    found = json.loads((tmp_path / "out/annotations/instances_default.json").read_text())
    assert found["images"][0]["file_name"] == "001.jpg" and re.fullmatch(
        r"001-[0-9a-f]{14}\.jpg", found["images"][1]["file_name"]
    )
    for one in found["annotations"]:
        one |= {"attributes": {}, "category_id": len(found["categories"]) - 1}
    (tmp_path / "answers.json").write_text(json.dumps(found))
    back = review.correct(CorrectConfig(labels=table, file=(str(tmp_path / "answers.json"),), by="ann"))
    assert (back.added, back.refused) == (1, 1)
    (answer,) = fer.Table(table).corrections().to_pylist()
    assert answer["uri"] == found["images"][1]["uri"] and answer["answer"] == "not_a_face"


@pytest.mark.parametrize("keep", ["attributes", "beside", "nothing"])
def test_answers_come_back_however_little_a_tool_keeps(keep: str, run: fer.Run, archive: Path, tmp_path: Path) -> None:
    """As datumaro, FiftyOne and CVAT write COCO: with our attributes, with them beside the box, without them; new ids."""
    faces.export(ExportConfig(labels=run.url, to=str(tmp_path / "cvat"), format="cvat", source=str(archive)))
    found = json.loads((tmp_path / "cvat/annotations/instances_default.json").read_text())
    images = {one["id"]: number for number, one in enumerate(found["images"], 1)}
    for one in found["images"]:
        facts = {name: one[name] for name in ("file_name", "width", "height")}
        one.clear()
        one.update(facts | {"id": len(images)})
    for number, one in enumerate(found["images"], 1):
        one["id"] = number
    for number, one in enumerate(found["annotations"], 1):
        kept = one.pop("attributes")
        one |= {"id": number, "image_id": images[one["image_id"]], "bbox": [round(side, 2) for side in one["bbox"]]}
        one |= {"attributes": {"attributes": kept, "beside": {}, "nothing": {"occluded": False}}[keep]}
        one |= kept if keep == "beside" else {}
    assert corrected(run, tmp_path, found, "ann").added == 0, "what nobody changed is no answer"
    ids = {one["name"]: one["id"] for one in found["categories"]}
    for one in found["annotations"]:
        one["category_id"] = ids["not_a_face"]
    found["annotations"].append(found["annotations"][0] | {"id": 10**6, "bbox": [0, 0, 1, 1], "attributes": {}})
    back = corrected(run, tmp_path, found, "ann")
    assert back.added >= len(found["annotations"]) - 1 and (keep == "beside" or back.refused == 1)
    assert back.reviewed == run.faces().num_rows and set(run.faces()["expression_reviewed"].to_pylist()) == {"not_a_face"}


@pytest.mark.tools
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("count", "least"), [(1, 140), pytest.param(8, 1000, marks=pytest.mark.long)])
def test_every_tool_holds_what_is_here_and_gives_it_back(count: int, least: int, tmp_path: Path, local_ray: None) -> None:
    """Turned pictures, members of tars and zips, frames of videos; read by the tools' own packages, and taken back from them."""
    sample_archive.run(SampleArchiveConfig(dest=str(tmp_path / "one")))
    source = copies(tmp_path / "one", tmp_path / "source", count)
    run = fer.label(source, tmp_path / "run", detector="mtcnn", fps=1)
    rows = run.faces().to_pylist()
    assert len(rows) >= least and any(row["time_ms"] for row in rows) and any(row["member"] for row in rows)
    for tool in ("coco", "label-studio", "cvat", "fiftyone", "hf"):
        to = tmp_path / (f"{tool}.json" if tool in ("coco", "label-studio") else tool)
        options = {"labels": run.url, "to": str(to), "format": tool, "source": str(source)}
        faces.export(ExportConfig.model_validate(options))
    (tmp_path / "config.xml").write_text(label_studio_config(run.classes))
    script, python = Path(__file__).with_name("in_tools.py"), ROOT / ".venv-tools" / "bin" / "python"
    done = subprocess.run([str(python), str(script), str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    names: dict[str, Callable[[Any], str]] = {
        "in_pycocotools": lambda row: row["path"] if row["time_ms"] is None else f"{row['path']}#t={row['time_ms'] / 1000:g}",
        "in_label_studio": lambda row: f"{row['path']}@{row['time_ms']}",
        "in_fiftyone": picture_name,
        "in_datumaro": picture_name,
        "in_datasets": lambda row: f"{row['uri']}|{row['member']}|{row['time_ms']}",
    }
    for tool, seen in json.loads((tmp_path / "seen.json").read_text()).items():
        assert len(seen) == len(rows), tool
        places = {name: [row for row in rows if names[tool](row) == name] for name in {one[0] for one in seen}}
        for name, (width, height, *box), label, score in seen:
            off = [max(abs(side - row[axis]) for side, axis in zip(box, "xywh", strict=True)) for row in places[name]]
            row = places[name].pop(int(np.argmin(off)))
            assert min(off) < 0.5 and (width, height, label) == (row["width"], row["height"], row["expression"]), tool
            assert score == pytest.approx(row["confidence"], abs=1e-5)
        assert not any(places.values())
    for tool in ("fiftyone", "datumaro"):
        content = json.loads((tmp_path / f"from-{tool}.json").read_text())
        assert corrected(run, tmp_path, content, tool).added == 0
        content["categories"].append({"id": 99, "name": "not_a_face"})
        for one in content["annotations"]:
            one["category_id"] = 99
        back = corrected(run, tmp_path, content, tool)
        assert back.added == back.reviewed == len(rows), tool
