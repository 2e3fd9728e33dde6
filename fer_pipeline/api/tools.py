"""Labels in the formats of other tools, and people's answers from them: COCO (CVAT, FiftyOne, datumaro) and Label Studio.

https://cocodataset.org/#format-data, https://labelstud.io/guide/predictions, https://labelstud.io/guide/task_format
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import IO, Any, Literal
from xml.sax.saxutils import quoteattr

from fer_pipeline.api.labels import Labels
from fer_pipeline.base.errors import UserError
from fer_pipeline.labelling.corrections import CANNOT_TELL, NOT_A_FACE
from fer_pipeline.models.framing import LANDMARK_COLUMNS, LANDMARKS
from fer_pipeline.table.flat import flat_images

Tool = Literal["coco", "label-studio"]
KEY = ("content_sha256", "uri", "member", "time_ms")
"""What names an image, so that answers find it again."""
SAFE_BITS = 53
"""Bits of a whole number that every reader of JSON keeps."""
FACE, CLASS = "face", "expression"
"""Names of the controls of Label Studio: boxes, and the class of each."""
Row = Mapping[str, Any]


def write_coco(labels: Labels, file: IO[bytes], *, where: str | None = None, certain: bool = False) -> int:
    """Write all images and the chosen faces as one COCO object; return the number of faces.

    Boxes and landmarks are pixels of the upright image. Images and faces have the same ids in every export.
    """
    categories = [
        {"id": number, "name": name, "supercategory": "apparent expression", "keypoints": list(LANDMARKS), "skeleton": []}
        for number, name in enumerate((*labels.classes, NOT_A_FACE, CANNOT_TELL), 1)
    ]
    head = {"info": {"description": f"Apparent expressions: {labels.url}"}, "licenses": [], "categories": categories}
    file.write(f'{json.dumps(head)[:-1]}, "images": ['.encode())
    images = (row for part in labels.image_batches() for row in flat_images(part, labels.root()).to_pylist())
    _write_items(file, map(_coco_image, (row for row in images if row["width"])))
    file.write(b'], "annotations": [')
    numbers = {name: number for number, name in enumerate(labels.classes, 1)}
    count = _write_items(file, (_coco_face(row, numbers, labels.classes) for row in _faces(labels, where, certain)))
    file.write(b"]}\n")
    return count


def write_label_studio(labels: Labels, file: IO[bytes], *, where: str | None = None, certain: bool = False) -> int:
    """Write one task for each image with a chosen face, its labels as predictions, in one array; return the number of faces.

    Boxes are in percent of the upright image, which Label Studio shows. It needs the controls of `label_studio_config`.
    """
    count = 0

    def tasks() -> Iterator[dict[str, Any]]:
        nonlocal count
        for _, group in groupby(_faces(labels, where, certain), key=lambda row: tuple(row[name] for name in KEY[1:])):
            faces = list(group)
            count += len(faces)
            yield _task(faces)

    file.write(b"[")
    _write_items(file, tasks())
    file.write(b"]\n")
    return count


def label_studio_config(classes: Sequence[str]) -> str:
    """Return the labelling configuration for tasks of `write_label_studio`."""
    choices = "".join(f"<Label value={quoteattr(name)}/>" for name in (*classes, NOT_A_FACE, CANNOT_TELL))
    boxes = f'<RectangleLabels name="{CLASS}" toName="image">{choices}</RectangleLabels>'
    return f'<View><Image name="image" value="$image"/>{boxes}</View>'


def answers_of(text: str, by: str | None, at: str) -> Iterator[dict[str, Any] | str] | None:
    """Yield the answers in a file of a tool as lines of corrections have them, or why one is none; None for a file of lines.

    `by`, `at`: of answers in COCO, which does not say.
    """
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if isinstance(found, list):
        return (answer for task in found for answer in _of_task(task))
    if not (isinstance(found, dict) and isinstance(found.get("annotations"), list)):
        return None
    if not by:
        raise UserError("A COCO file does not say who answered: name a pseudonym by --by.")
    return _of_coco(found, by, at)


def _write_items(file: IO[bytes], items: Iterator[dict[str, Any]]) -> int:
    count = 0
    for count, item in enumerate(items, 1):
        file.write((("," if count > 1 else "") + "\n" + json.dumps(item, ensure_ascii=False, default=str)).encode())
    return count


def _faces(labels: Labels, where: str | None, certain: bool) -> Iterator[dict[str, Any]]:
    for part in labels.faces_to_find(certain, where, False):
        yield from part.to_pylist()


def _number(*parts: Any) -> int:
    """Return the same whole number for the same parts, another one for others."""
    digest = hashlib.blake2b(json.dumps(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> (64 - SAFE_BITS)


def _image_number(row: Row) -> int:
    return _number(row["uri"], row["member"], row["time_ms"])


def _known(row: Row, names: Sequence[str]) -> dict[str, Any]:
    return {name: row[name] for name in names if row.get(name) is not None}


def _coco_image(row: Row) -> dict[str, Any]:
    moment = "" if row["time_ms"] is None else f"#t={row['time_ms'] / 1000:g}"
    facts = {"id": _image_number(row), "file_name": f"{row['path']}{moment}", "width": row["width"], "height": row["height"]}
    return facts | _known(row, KEY)


def _coco_face(row: Row, numbers: Mapping[str, int], classes: Sequence[str]) -> dict[str, Any]:
    box = [row[name] for name in "xywh"]
    points = [row[name] for name in LANDMARK_COLUMNS]
    is_known = all(value is not None for value in points)
    keypoints = [value for x, y in zip(points[::2], points[1::2], strict=True) for value in (x, y, 2)] if is_known else []
    attributes = _known(row, ("expression", "uncertain", "quality", "detection_score", "expression_reviewed", *KEY))
    return {
        "id": _number(_image_number(row), row["face_id"]),
        "image_id": _image_number(row),
        "category_id": numbers[row["expression"]],
        "bbox": box,
        "area": box[2] * box[3],
        "iscrowd": 0,
        "score": row["confidence"],
        "attributes": attributes | {name: row[f"p_{name}"] for name in classes},
    } | ({"keypoints": keypoints, "num_keypoints": len(points) // 2} if is_known else {})


def _task(faces: Sequence[Row]) -> dict[str, Any]:
    """Return the task of an image, from its faces."""
    first = faces[0]
    results = []
    for row in faces:
        width, height = row["width"], row["height"]
        value = {
            "x": 100 * row["x"] / width,
            "y": 100 * row["y"] / height,
            "width": 100 * row["w"] / width,
            "height": 100 * row["h"] / height,
            "rotation": 0,
            "rectanglelabels": [row["expression"]],
        }
        shape = {"original_width": width, "original_height": height, "image_rotation": 0}
        control = {"from_name": CLASS, "to_name": "image", "type": "rectanglelabels"}
        facts = {"id": f"{FACE}-{row['face_id']}", "score": row["confidence"], "value": value}
        results.append(facts | control | shape | {"meta": _known(row, ("expression", "uncertain", "quality"))})
    predictions = [{"model_version": first["model"], "score": min(row["confidence"] for row in faces), "result": results}]
    return {"data": {"image": first["uri"], "path": first["path"]} | _known(first, KEY), "predictions": predictions}


def _of_task(task: Any) -> Iterator[dict[str, Any] | str]:
    """Yield the answers in a task as Label Studio exports it (JSON): one for each box of each annotation."""
    try:
        data, name = task["data"], f"task {task.get('id')}"
        predicted = {one["id"]: one["value"] for said in task.get("predictions") or () for one in said["result"]}
        given = [one for one in task["annotations"] if not one.get("was_cancelled")]
    except (AttributeError, KeyError, TypeError):
        yield "it is no task of Label Studio: export as JSON, not as JSON-MIN"
        return
    for annotation in given:
        for result in annotation.get("result") or ():
            try:
                yield _of_result(result, annotation, data, predicted)
            except (AttributeError, IndexError, KeyError, TypeError) as error:
                yield f"{name} has a box without {error}"


def _of_result(result: Any, annotation: Any, data: Row, predicted: Mapping[str, Any]) -> dict[str, Any]:
    value, seen = result["value"], predicted.get(result["id"], {}).get("rectanglelabels", [None])
    scales = (result["original_width"] / 100, result["original_height"] / 100) * 2
    box = [value[name] * scale for name, scale in zip(("x", "y", "width", "height"), scales, strict=True)]
    person = annotation["completed_by"]
    person = person["id"] if isinstance(person, dict) else person
    at = annotation.get("updated_at") or annotation["created_at"]
    facts = {name: data.get(name) for name in KEY} | dict(zip("xywh", box, strict=True))
    return facts | {"answer": value["rectanglelabels"][0], "seen": seen[0], "by": f"label-studio-{person}", "at": at}


def _of_coco(found: Mapping[str, Any], by: str, at: str) -> Iterator[dict[str, Any] | str]:
    """Yield the answers in a COCO object: faces whose category is another one than the label that was exported."""
    try:
        names = {one["id"]: one["name"] for one in found["categories"]}
        images = {one["id"]: one for one in found["images"]}
    except (KeyError, TypeError) as error:
        yield f"its images or categories have no {error}"
        return
    for one in found["annotations"]:
        try:
            image, attributes, box = images[one["image_id"]], one.get("attributes") or {}, [float(side) for side in one["bbox"]]
            answer, seen = names[one["category_id"]], attributes.get("expression")
            facts = {name: attributes.get(name, image.get(name)) for name in KEY} | dict(zip("xywh", box, strict=True))
            x, y, w, h = box
            if x >= image["width"] or y >= image["height"] or x + w <= 0 or y + h <= 0:
                yield f"the box {box} of annotation {one['id']} is outside its image of {image['width']} x {image['height']} px"
            elif answer != seen:
                yield facts | {"answer": answer, "seen": seen, "by": by, "at": at}
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            yield f"an annotation is incomplete: {error}"
