"""Labels in folders for other tools, with pictures: of each image with a chosen face an upright JPEG in its full size.

FiftyOne, datumaro and CVAT read COCO: https://docs.voxel51.com/user_guide/import_datasets.html#cocodetectiondataset-import,
https://docs.cvat.ai/docs/dataset_management/formats/format-coco/. Hugging Face reads pictures with `metadata.jsonl`:
https://huggingface.co/docs/datasets/image_dataset
"""

import base64
import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Any, Literal

import pyarrow as pa

from fer_pipeline.api.labels import Labels
from fer_pipeline.api.tools import KEY, Row, coco_face, coco_head, coco_image, image_key, picture_name, second_name, write_items
from fer_pipeline.base import storage
from fer_pipeline.base.errors import RecordError
from fer_pipeline.labelling.retention import mark
from fer_pipeline.models.framing import LANDMARK_COLUMNS
from fer_pipeline.report.pictures import FULL_SIZE, cut_faces

FolderTool = Literal["cvat", "fiftyone", "hf"]
PICTURES = {"cvat": "images/default", "fiftyone": "data", "hf": "pictures"}
"""Folder of the pictures in a tool's folder."""
INDEX = {"cvat": "annotations/instances_default.json", "fiftyone": "labels.json", "hf": "metadata.jsonl"}
OF_FACE = ("face_id", "expression", "confidence", "uncertain", "quality", "detection_score")
AT_ONCE = 32
"""Pictures that are in memory at once."""
CARD = """---
pretty_name: Apparent expressions of faces
task_categories: [object-detection]
---
Boxes and labels of faces. A label is the *apparent* expression of a face, not what a person feels. In the European Union it is
prohibited to infer emotions of people at work or in education (AI Act, Art. 5(1)(f)).
"""


@dataclass(frozen=True)
class WrittenFolder:
    """What a folder holds, and how many images have no picture and are left out."""

    faces: int
    images: int
    without_picture: int


class _Pictures:
    """Writes the pictures of images, and counts."""

    def __init__(self, labels: Labels, out: str, tool: FolderTool, source: str) -> None:
        self.labels, self.out, self.folder, self.source = labels, out, storage.join(out, PICTURES[tool]), source
        self.faces = self.images = self.without = 0
        self._names = set[str]()

    def written(self, where: str | None, certain: bool) -> Iterator[tuple[str, list[Row]]]:
        """Write the picture of each image with a chosen face; yield its name and the rows of its faces."""
        for part in self.labels.faces_to_find(certain, where, False):
            rows = part.to_pylist()
            firsts = [place for place, row in enumerate(rows) if not place or image_key(rows[place - 1]) != image_key(row)]
            ends = [*firsts[1:], len(rows)]
            for start in range(0, len(firsts), AT_ONCE):
                some = firsts[start : start + AT_ONCE]
                for first, end, picture in zip(some, ends[start:], self._cut(part.take(pa.array(some))), strict=False):
                    if name := self._write(rows[first], picture):
                        self.faces += end - first
                        yield name, rows[first:end]

    def _cut(self, firsts: pa.Table) -> Iterator[str | RecordError]:
        """Return the picture of the image of each face."""
        records = self.labels.records_of(firsts, self.source)
        wanted = [(record, None) for record in records if record]
        cut = iter(cut_faces(wanted, self.source, self.labels.limits(), FULL_SIZE))
        return (next(cut) if record else RecordError("gone", "it is gone") for record in records)

    def _write(self, row: Row, picture: str | RecordError) -> str | None:
        """Write a picture and return its name; None if there is none."""
        if isinstance(picture, RecordError):
            self.without += 1
            return None
        name = picture_name(row)
        name = second_name(row) if name in self._names else name
        self._names.add(name)
        if not self.images:
            mark(self.out, "export", finished=False)
        self.images += 1
        storage.write_bytes(storage.join(self.folder, name), base64.b64decode(picture.partition(",")[2]))
        return name


def write_folder(
    labels: Labels, out: str, tool: FolderTool, source: str, *, where: str | None = None, certain: bool = False
) -> WrittenFolder:
    """Write the images with a chosen face and their labels, as a tool reads them, into the folder `out`.

    Pictures are made of images below `source` only. Boxes and landmarks are pixels of these pictures.
    """
    pictures = _Pictures(labels, out, tool, source)
    found = pictures.written(where, certain)
    with storage.written(storage.join(out, INDEX[tool])) as file:
        if tool == "hf":
            for name, faces in found:
                file.write(f"{json.dumps(_hf_image(name, faces), ensure_ascii=False)}\n".encode())
        else:
            _write_coco(labels, file, found)
    if tool == "hf":
        storage.write_bytes(storage.join(out, "README.md"), CARD.encode())
    mark(out, "export")
    return WrittenFolder(pictures.faces, pictures.images, pictures.without)


def _write_coco(labels: Labels, file: IO[bytes], found: Iterator[tuple[str, list[Row]]]) -> None:
    """Write COCO with the images and, behind them, their faces, which wait in a temporary file."""
    with tempfile.TemporaryFile() as waiting:

        def images() -> Iterator[dict[str, Any]]:
            for name, faces in found:
                waiting.writelines(f"{json.dumps(coco_face(row, labels.classes))}\n".encode() for row in faces)
                yield coco_image(faces[0], name)

        file.write(coco_head(labels))
        write_items(file, images())
        file.write(b'], "annotations": [')
        waiting.seek(0)
        for number, line in enumerate(waiting):
            file.write((b",\n" if number else b"\n") + line.rstrip())
        file.write(b"]}\n")


def _hf_image(name: str, faces: Sequence[Row]) -> dict[str, Any]:
    first = faces[0]
    lists: dict[str, list[Any]] = {"bbox": [[row[side] for side in "xywh"] for row in faces]}
    lists["landmarks"] = [[row[point] for point in LANDMARK_COLUMNS] if row["right_eye_x"] is not None else [] for row in faces]
    lists |= {column: [row[column] for row in faces] for column in OF_FACE}
    return {"file_name": f"{PICTURES['hf']}/{name}", **{key: first[key] for key in KEY}, "faces": lists}
