"""AffectNet (Mollahosseini et al., 2017): the CSVs of manual annotations, and the later `_exp.npy` layout."""

import io
import posixpath
from dataclasses import dataclass

import numpy as np

from fer_pipeline.archive.record import Record
from fer_pipeline.base import storage
from fer_pipeline.base.errors import UserError
from fer_pipeline.datasets.layouts.folders import plan_images, read_images
from fer_pipeline.datasets.layouts.layout import (
    DROPPED,
    MISLABELLED,
    SPLIT_NAMES,
    AnnotatedFace,
    Excluded,
    LayoutSpec,
    Part,
    Point,
    Reading,
    Sample,
    class_of,
    find_split,
    image_below,
    sample_of,
    words_of,
)
from fer_pipeline.datasets.layouts.tables import Row, plan_csv, read_csv, whole_number
from fer_pipeline.models.label_space import AFFECTNET8, NUMBERINGS, LabelSpace

AFFECTNET_COLUMNS = (
    "subDirectory_filePath",
    "face_x",
    "face_y",
    "face_width",
    "face_height",
    "facial_landmarks",
    "expression",
    "valence",
    "arousal",
)
NO_CLASS = {8: "none", 9: "uncertain", 10: "no face"}
"""AffectNet's classes from 8 on. Their rows are dropped and counted under these names."""
IMAGE_FOLDERS = (
    "",
    "Manually_Annotated_Images",
    "../Manually_Annotated_Images",
    "../Manually_Annotated/Manually_Annotated_Images",
)
"""Possible folders of the images, relative to the CSV's folder."""


@dataclass(frozen=True)
class AffectNetCsv:
    """Ingest cuts faces by the box and the 68 landmarks of the CSV. The split comes from the CSV's name."""

    source: str
    space: LabelSpace
    part_bytes: int = 2 * 1024**2

    def plan(self) -> list[Part]:
        names = [self.source]
        if not self.source.endswith(".csv"):
            names = [storage.join(self.source, name) for name in storage.list_names(self.source) if name.endswith(".csv")]
        if not names:
            raise UserError(f"The folder '{self.source}' holds no CSV: layout affectnet-csv needs one.")
        if unknown := [name for name in names if not self._split(name)]:
            raise UserError(
                f"The name of '{unknown[0]}' contains no split: rename it so that it contains one of {', '.join(SPLIT_NAMES)}, "
                "such as validation.csv."
            )
        return [part for name in names for part in plan_csv(name, "affectnet-csv", AFFECTNET_COLUMNS, self.part_bytes)]

    def read(self, part: Part) -> Reading:
        folder, split = posixpath.dirname(part.uri), self._split(part.uri) or "train"
        images = ""
        for place, row in read_csv(part):
            path = row.get(AFFECTNET_COLUMNS[0], "")
            images = images or self._images(folder, path)
            yield self._sample(row, place, image_below(images or folder, path, place), split)

    @staticmethod
    def _split(csv: str) -> str | None:
        return find_split(words_of(posixpath.basename(csv)))

    def _images(self, folder: str, first: str) -> str:
        """Return the folder that holds the image at the path `first`, or an empty string if none does."""
        for place in IMAGE_FOLDERS:
            candidate = posixpath.normpath(posixpath.join(folder, place)) if place else folder
            if storage.is_local(folder) or not place.startswith(".."):
                images = candidate
            else:
                images = storage.join(folder.rsplit("/", 1)[0], place.removeprefix("../"))
            image = image_below(images, first, first)
            if isinstance(image, Record) and storage.exists(image.uri):
                return images
        return ""

    def _sample(self, row: Row, place: str, image: Record | Excluded, split: str) -> Sample | Excluded:
        number = whole_number(row.get("expression", ""))
        if number in NO_CLASS:
            return Excluded(DROPPED, place, NO_CLASS[number])
        if number is None or number >= len(AFFECTNET8.classes):
            return Excluded(MISLABELLED, place, f"the expression '{row.get('expression', '')[:20]}' is not one of 0 to 10")
        label = class_of(number, self.space, place, NUMBERINGS["affectnet8"])
        if isinstance(label, Excluded):
            return label
        try:
            x, y, width, height = (float(row[name]) for name in AFFECTNET_COLUMNS[1:5])
            landmarks = _five([float(value) for value in row[AFFECTNET_COLUMNS[5]].split(";")])
        except (KeyError, ValueError):
            return Excluded(MISLABELLED, place, "its box or its landmarks are not numbers")
        if isinstance(image, Excluded):
            return image
        return Sample(image, label, split, place, face=AnnotatedFace((x, y, width, height), landmarks))


def _five(values: list[float]) -> tuple[Point, ...] | None:
    """Return `framing.LANDMARKS` of the 68 landmarks `x;y;...` of the iBUG scheme, or None for another number of values."""
    if len(values) != 136:
        return None
    points = np.array(values).reshape(68, 2)
    five = [points[36:42].mean(0), points[42:48].mean(0), points[30], points[48], points[54]]
    return tuple((float(x), float(y)) for x, y in five)


@dataclass(frozen=True)
class AffectNetNpy:
    """`train_set/images/0.jpg` is a face crop, `train_set/annotations/0_exp.npy` its expression."""

    source: str
    space: LabelSpace

    def plan(self) -> list[Part]:
        return plan_images(self.source)

    def read(self, part: Part) -> Reading:
        return read_images(part, self._sample)

    def _sample(self, record: Record, source: str) -> Sample | Excluded:
        folder, name = posixpath.split(record.uri)
        annotation = storage.join(posixpath.dirname(folder), "annotations", f"{posixpath.splitext(name)[0]}_exp.npy")
        try:
            number = int(np.load(io.BytesIO(storage.read_bytes(annotation)), allow_pickle=False).item())
        except (ValueError, *storage.STORAGE_ERRORS) as error:
            return Excluded(MISLABELLED, source, f"its annotation cannot be read: {storage.reason(error)}")
        label = class_of(number, self.space, source, NUMBERINGS["affectnet8"])
        name_of_split = find_split(word for part in posixpath.dirname(source).split("/") for word in words_of(part))
        split = name_of_split or Excluded(MISLABELLED, source, f"no folder above it names a split: {', '.join(SPLIT_NAMES)}")
        return sample_of(record, label, split, source)


TERMS = "AffectNet (Mollahosseini et al., 2017): for research that is not commercial, under its licence agreement."

AFFECTNET_CSV = LayoutSpec(
    name="affectnet-csv",
    help="the CSVs of manual annotations, beside the images",
    open=lambda source, space, options: AffectNetCsv(source, space),
    faces="box",
    terms=TERMS,
)
AFFECTNET_NPY = LayoutSpec(
    name="affectnet-npy",
    help="train_set/images/0.jpg with train_set/annotations/0_exp.npy",
    open=lambda source, space, options: AffectNetNpy(source, space),
    terms=TERMS,
)
