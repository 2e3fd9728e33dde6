"""Labels in the formats of other tools, and people's answers from them: COCO (CVAT, FiftyOne, datumaro) and Label Studio.

https://cocodataset.org/#format-data, https://labelstud.io/guide/predictions, https://labelstud.io/guide/task_format
"""

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import IO, Any, Literal
from xml.sax.saxutils import quoteattr

import numpy as np

from fer_pipeline.api.labels import Labels
from fer_pipeline.archive.files import inner_path, with_ending
from fer_pipeline.base.errors import UserError
from fer_pipeline.labelling.corrections import CANNOT_TELL, NOT_A_FACE, face_of
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
    file.write(coco_head(labels))
    images = (row for part in labels.image_batches() for row in flat_images(part, labels.root()).to_pylist())
    write_items(file, (coco_image(row, _name(row)) for row in images if row["width"]))
    file.write(b'], "annotations": [')
    count = write_items(file, (coco_face(row, labels.classes) for row in _faces(labels, where, certain)))
    file.write(b"]}\n")
    return count


def write_label_studio(labels: Labels, file: IO[bytes], *, where: str | None = None, certain: bool = False) -> int:
    """Write one task for each image with a chosen face, its labels as predictions, in one array; return the number of faces.

    Boxes are in percent of the upright image, which Label Studio shows. It needs the controls of `label_studio_config`.
    """
    count = 0

    def tasks() -> Iterator[dict[str, Any]]:
        nonlocal count
        for _, group in groupby(_faces(labels, where, certain), key=image_key):
            faces = list(group)
            count += len(faces)
            yield _task(faces)

    file.write(b"[")
    write_items(file, tasks())
    file.write(b"]\n")
    return count


def label_studio_config(classes: Sequence[str]) -> str:
    """Return the labelling configuration for tasks of `write_label_studio`."""
    choices = "".join(f"<Label value={quoteattr(name)}/>" for name in (*classes, NOT_A_FACE, CANNOT_TELL))
    boxes = f'<RectangleLabels name="{CLASS}" toName="image">{choices}</RectangleLabels>'
    return f'<View><Image name="image" value="$image"/>{boxes}</View>'


def answers_of(text: str, labels: Labels, by: str | None, at: str) -> Iterator[dict[str, Any] | str] | None:
    """Yield the answers in a file of a tool as lines of corrections have them, or why one is none; None for a file of lines.

    `labels`: those that were exported. `by`, `at`: of answers in COCO, which does not say.
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
    return _of_coco(found, labels, by, at)


def coco_head(labels: Labels) -> bytes:
    """Return the beginning of a COCO object, up to its images."""
    categories = [
        {"id": number, "name": name, "supercategory": "apparent expression", "keypoints": list(LANDMARKS), "skeleton": []}
        for number, name in enumerate((*labels.classes, NOT_A_FACE, CANNOT_TELL), 1)
    ]
    head = {"info": {"description": f"Apparent expressions: {labels.url}"}, "licenses": [], "categories": categories}
    return f'{json.dumps(head)[:-1]}, "images": ['.encode()


def write_items(file: IO[bytes], items: Iterator[dict[str, Any]]) -> int:
    """Write the items of a list and return their number."""
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


def image_key(row: Row) -> tuple[Any, ...]:
    """Return what tells the image of a face from all others."""
    return tuple(row[name] for name in KEY[1:])


def image_number(row: Row) -> int:
    """Return the number of an image or a frame, the same in every export."""
    return _number(*image_key(row))


def _name(row: Row) -> str:
    return row["path"] if row["time_ms"] is None else f"{row['path']}#t={row['time_ms'] / 1000:g}"


def picture_name(row: Row) -> str:
    """Return the name of an image as an upright JPEG in a folder: its path, with the moment of a frame, and the ending."""
    path = inner_path(row["path"])
    return with_ending(path, "upright", ".jpg", ".jpeg") if row["time_ms"] is None else f"{path}/{row['time_ms']}.jpg"


def second_name(row: Row) -> str:
    """Return a name for an image whose `picture_name` is taken by an image of another source."""
    stem, _, ending = picture_name(row).rpartition(".")
    return f"{stem}-{image_number(row):014x}.{ending}"


def _known(row: Row, names: Sequence[str]) -> dict[str, Any]:
    return {name: row[name] for name in names if row.get(name) is not None}


def coco_image(row: Row, name: str) -> dict[str, Any]:
    """Return an image of COCO with a file name."""
    facts = {"id": image_number(row), "file_name": name, "width": row["width"], "height": row["height"]}
    return facts | _known(row, KEY)


def coco_face(row: Row, classes: Sequence[str]) -> dict[str, Any]:
    """Return a face as an annotation of COCO."""
    box = [row[name] for name in "xywh"]
    points = [row[name] for name in LANDMARK_COLUMNS]
    is_known = all(value is not None for value in points)
    keypoints = [value for x, y in zip(points[::2], points[1::2], strict=True) for value in (x, y, 2)] if is_known else []
    attributes = _known(row, ("expression", "uncertain", "quality", "detection_score", "expression_reviewed", *KEY))
    return {
        "id": _number(image_number(row), row["face_id"]),
        "image_id": image_number(row),
        "category_id": 1 + classes.index(row["expression"]),  # as in `coco_head`
        "bbox": box,
        "area": box[2] * box[3],
        "iscrowd": 0,
        "segmentation": [],
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


def _of_coco(found: Mapping[str, Any], labels: Labels, by: str, at: str) -> Iterator[dict[str, Any] | str]:
    """Yield the answers in a COCO object: the faces whose category differs from the exported label.

    A tool may keep our attributes where they are (datumaro), beside the box (FiftyOne), or drop them (CVAT): then a face is found
    by the name of its image and by its box.
    """
    try:
        names = {one["id"]: one["name"] for one in found["categories"]}
        images = {one["id"]: one for one in found["images"]}
        known = [{**one, **(one.get("attributes") or {})} for one in found["annotations"]]
        bare = {images[one["image_id"]]["file_name"] for one in known if not _is_ours(one)}
    except (AttributeError, KeyError, TypeError) as error:
        yield f"its images, categories or annotations have no {error}"
        return
    faces = _faces_named(labels, bare) if bare else {}
    for one in known:
        try:
            image, box = images[one["image_id"]], [float(side) for side in one["bbox"]]
            x, y, w, h = box
            if x >= image["width"] or y >= image["height"] or x + w <= 0 or y + h <= 0:
                yield f"the box {box} of annotation {one['id']} is outside its image of {image['width']} x {image['height']} px"
                continue
            those = () if _is_ours(one) else faces.get(image["file_name"], ())
            face = one if _is_ours(one) else _face_at(box, those)
            if len({image_key(row) for row in those}) > 1:
                yield f"several images have the name '{image['file_name']}' of annotation {one['id']}"
            elif face is None:
                yield f"there is no face at the box {box} of annotation {one['id']}"
            elif (answer := names[one["category_id"]]) != face["expression"]:
                facts = {name: face.get(name) for name in KEY} | dict(zip("xywh", box, strict=True))
                yield facts | {"answer": answer, "seen": face["expression"], "by": by, "at": at}
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            yield f"an annotation is incomplete: {error}"


def _is_ours(annotation: Row) -> bool:
    """Tell whether an annotation still says which face of which image it is."""
    return "expression" in annotation and "uri" in annotation


def _faces_named(labels: Labels, names: set[str]) -> dict[str, list[Row]]:
    """Return the faces of images by the names that they have in exports."""
    found = defaultdict[str, list[Row]](list)
    for row in _faces(labels, None, False):
        for name in {_name(row), picture_name(row), second_name(row)} & names:
            found[name].append(row)
    return found


def _face_at(box: Sequence[float], faces: Sequence[Row]) -> Row | None:
    """Return the face that shares most with a box; None if none shares enough."""
    boxes = np.array([[row[side] for side in "xywh"] for row in faces], np.float64).reshape(-1, 4)
    place = face_of(box, boxes) if len(boxes) else None
    return None if place is None else faces[place]
