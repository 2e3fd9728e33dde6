"""Labels go to COCO and Label Studio and answers come back: nothing lost, nothing moved."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

import fer_pipeline as fer
from fer_pipeline.api.tools import label_studio_config
from fer_pipeline.base.errors import UserError
from fer_pipeline.cli import faces, review
from fer_pipeline.cli.faces import ExportConfig
from fer_pipeline.cli.review import CorrectConfig, Corrected

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


@pytest.mark.tools
def test_the_packages_of_the_tools_read_what_is_exported(run: fer.Run, tmp_path: Path) -> None:
    coco, tasks = (exported(run, tmp_path, tool) for tool in ("coco", "label-studio"))
    (tmp_path / "config.xml").write_text(label_studio_config(run.classes))
    script, python = Path(__file__).with_name("in_tools.py"), ROOT / ".venv-tools" / "bin" / "python"
    files = [str(tmp_path / name) for name in ("coco.json", "label-studio.json", "config.xml")]
    done = subprocess.run([str(python), str(script), *files], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1]) == {
        "faces": len(coco["annotations"]),
        "images": len(coco["images"]),
        "precision_of_itself": 1.0,
        "tasks": len(tasks),
        "predictions": len(tasks),
    }
