"""AffectNet (Mollahosseini et al., 2017): the manually annotated CSVs beside their images, and the later `_exp.npy` layout."""

import io
import posixpath
from dataclasses import dataclass

import numpy as np

from fer_pipeline.core import storage
from fer_pipeline.core.errors import UserError
from fer_pipeline.core.labels import AFFECTNET8, NUMBERINGS, LabelSpace
from fer_pipeline.core.manifest import Record
from fer_pipeline.sources.files import name_below
from fer_pipeline.sources.layouts.folders import plan_images
from fer_pipeline.sources.layouts.layout import (
    DAMAGED,
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
    image_below,
    named_split,
    sample_of,
    words_of,
)
from fer_pipeline.sources.layouts.tables import Row, plan_csv, read_csv, whole_number

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
"""What AffectNet's classes from 8 on say; such rows are dropped, and counted by these words."""
IMAGE_FOLDERS = (
    "",
    "Manually_Annotated_Images",
    "../Manually_Annotated_Images",
    "../Manually_Annotated/Manually_Annotated_Images",
)
"""Where the images stand, seen from the CSV's folder."""


@dataclass(frozen=True)
class AffectNetCsv:
    """Faces are cut from the images by the box and the 68 landmarks of the CSV; the split is what the CSV's name says."""

    source: str
    space: LabelSpace
    part_bytes: int = 2 * 1024**2

    def plan(self) -> list[Part]:
        names = [self.source]
        if not self.source.endswith(".csv"):
            names = [storage.join(self.source, name) for name in storage.list_names(self.source) if name.endswith(".csv")]
        if not names:
            raise UserError(f"The folder '{self.source}' holds no CSV, which layout affectnet-csv needs.")
        if nameless := [name for name in names if not self._split(name)]:
            raise UserError(
                f"The name of '{nameless[0]}' says no split: rename it so that it has one of {', '.join(SPLIT_NAMES)} in it, "
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
        return named_split(words_of(posixpath.basename(csv)))

    def _images(self, folder: str, first: str) -> str:
        """Return the folder below which the images stand, empty where this one is in none of them."""
        for place in IMAGE_FOLDERS:
            candidate = posixpath.normpath(posixpath.join(folder, place)) if place else folder
            if storage.is_local(folder) or not place.startswith(".."):
                images = candidate
            else:
                images = storage.join(folder.rsplit("/", 1)[0], place.removeprefix("../"))
            found = image_below(images, first, first)
            if isinstance(found, Record) and storage.exists(found.uri):
                return images
        return ""

    def _sample(self, row: Row, place: str, image: Record | Excluded, split: str) -> Sample | Excluded:
        number = whole_number(row.get("expression", ""))
        if number in NO_CLASS:
            return Excluded(DROPPED, place, NO_CLASS[number])
        if number is None or number >= len(AFFECTNET8.classes):
            return Excluded(MISLABELLED, place, f"the expression '{row.get('expression', '')[:20]}' is not one of 0 to 10")
        label = class_of(AFFECTNET8.classes[number], self.space, place)
        if isinstance(label, Excluded):
            return label
        try:
            x, y, width, height = (float(row[name]) for name in AFFECTNET_COLUMNS[1:5])
            landmarks = _five([float(value) for value in row[AFFECTNET_COLUMNS[5]].split(";")])
        except (KeyError, ValueError):
            return Excluded(MISLABELLED, place, "its box or its landmarks are no numbers")
        if isinstance(image, Excluded):
            return image
        return Sample(image, label, split, place, face=AnnotatedFace((x, y, width, height), landmarks))


def _five(values: list[float]) -> tuple[Point, ...] | None:
    """Return `framing.LANDMARKS` of the 68 landmarks `x;y;...` of the iBUG scheme; None for another number of them."""
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
        for record in part.records:
            source = name_below(part.uri, record.uri, record.member)
            if record.error:
                yield Excluded(DAMAGED, source, record.error)
                continue
            folder, name = posixpath.split(record.uri)
            annotation = storage.join(posixpath.dirname(folder), "annotations", f"{posixpath.splitext(name)[0]}_exp.npy")
            try:
                number = int(np.load(io.BytesIO(storage.read_bytes(annotation)), allow_pickle=False).item())
            except (ValueError, *storage.STORAGE_ERRORS) as error:
                yield Excluded(MISLABELLED, source, f"its annotation cannot be read: {storage.reason(error)}")
                continue
            label = class_of(number, self.space, source, NUMBERINGS["affectnet8"])
            said = named_split(word for part in posixpath.dirname(source).split("/") for word in words_of(part))
            split = said or Excluded(MISLABELLED, source, f"no folder above it names a split: {', '.join(SPLIT_NAMES)}")
            yield sample_of(record, label, split, source)


TERMS = "AffectNet (Mollahosseini et al., 2017): for research that is not commercial, under its licence agreement."

AFFECTNET_CSV = LayoutSpec(
    name="affectnet-csv",
    help="the manually annotated CSVs beside their images",
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
