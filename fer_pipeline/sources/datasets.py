"""Labelled datasets: one reader per layout. A reader splits a source into parts, and reads one part's samples."""

import posixpath
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import cv2
import numpy as np

from fer_pipeline.core import storage
from fer_pipeline.core.errors import RecordError, UserError
from fer_pipeline.core.labels import LabelSpace
from fer_pipeline.core.manifest import Record, cut
from fer_pipeline.sources.listing import Listing
from fer_pipeline.sources.reader import Reader

FER2013_SIDE = 48
FER2013_SPLITS = {"Training": "train", "PublicTest": "validation", "PrivateTest": "test"}
FER2013_COLUMNS = ("emotion", "pixels", "Usage")
SPLITS = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
}
"""What a folder's name says of the split, whatever its case."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One labelled image as it came: `image` is encoded, `label` an index into the label space."""

    sample_id: str
    image: bytes
    label: int
    split: str
    source: str


@dataclass(frozen=True, slots=True)
class Quarantined:
    """A record of a dataset that is no sample, and why."""

    source: str
    reason: str


@dataclass(frozen=True)
class Part:
    """A stretch of a source that one task reads: bytes of a CSV, or some files."""

    uri: str
    start: int = 0
    end: int = 0
    records: tuple[Record, ...] = ()


Reading = Iterator[Sample | Quarantined]


def plan_fer2013_csv(source: str, part_bytes: int = 16 * 1024**2) -> list[Part]:
    """Return the stretches of Kaggle's CSV (`emotion,pixels,Usage`); raise UserError where it lacks a column."""
    fs, path = storage.open_filesystem(source)
    if not fs.isfile(path):
        raise UserError(f"The source '{source}' is not a CSV file.")
    size = int(fs.size(path))
    header = fs.cat_file(path, start=0, end=min(size, 4096)).split(b"\n")[0]
    columns = _fields(header)
    missing = [name for name in FER2013_COLUMNS if name not in columns]
    if missing:
        raise UserError(
            f"'{source}' has no column {' and '.join(missing)}: layout fer2013-csv needs {','.join(FER2013_COLUMNS)}."
        )
    if size <= len(header) + 1:
        raise UserError(f"'{source}' holds no rows.")
    starts = range(len(header) + 1, size, part_bytes)
    return [Part(source, start, min(start + part_bytes, size)) for start in starts]


def _fields(line: bytes) -> list[str]:
    return [field.strip() for field in line.decode("utf-8-sig", "replace").split(",")]


def read_fer2013_csv(part: Part, space: LabelSpace) -> Reading:
    """Yield the rows that begin in a stretch of the CSV, their pixels as PNG."""
    fs, path = storage.open_filesystem(part.uri)
    with fs.open(path, "rb") as file:
        columns = _fields(file.readline())
        begin = file.tell()
        file.seek(max(begin, part.start - 1))
        if part.start > begin:
            file.readline()  # the row that began in the stretch before; only its end, if it ended just there
        while file.tell() < part.end:
            start = file.tell()
            line = file.readline()
            if line.strip():
                row = dict(zip(columns, _fields(line), strict=False))
                yield _fer2013_sample(row, f"{posixpath.basename(part.uri)}@{start}", space)


def _fer2013_sample(row: dict[str, str], source: str, space: LabelSpace) -> Sample | Quarantined:
    label, split = _number(row.get("emotion", "")), FER2013_SPLITS.get(row.get("Usage", ""))
    if label is None or label >= len(space.classes):
        return Quarantined(source, f"the label '{row.get('emotion', '')[:20]}' is not one of 0 to {len(space.classes) - 1}")
    if split is None:
        return Quarantined(source, f"the usage '{row.get('Usage', '')[:20]}' is none of {', '.join(FER2013_SPLITS)}")
    values = [_number(value) for value in row.get("pixels", "").split()]
    if len(values) != FER2013_SIDE**2:
        return Quarantined(source, f"{len(values)} pixels instead of {FER2013_SIDE**2}")
    if any(value is None or value > 255 for value in values):
        return Quarantined(source, "a pixel is not a number from 0 to 255")
    pixels = np.array(values, np.uint8).reshape(FER2013_SIDE, FER2013_SIDE)
    return Sample(source, cv2.imencode(".png", pixels)[1].tobytes(), label, split, source)


def _number(text: str) -> int | None:
    """Return a number of at most three plain digits, None for anything else."""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 3 else None


def plan_image_folder(source: str, part_records: int = 2000, part_bytes: int = 64 * 1024**2) -> list[Part]:
    """Return stretches of the images below a folder or in a tar or zip."""
    parts = [Part(source, records=tuple(records)) for records in cut(Listing(source), part_records, part_bytes)]
    if not parts:
        raise UserError(f"The source '{source}' holds no images.")
    return parts


def read_image_folder(part: Part, space: LabelSpace) -> Reading:
    """Yield images named `[split/]class/name`; those outside a split's folder are of the split `train`."""
    reader = Reader()
    for record in part.records:
        name = record.uri.removeprefix(part.uri).lstrip("/") or posixpath.basename(record.uri)
        source = posixpath.join(name, record.member) if record.member else name
        folders = [folder.lower() for folder in posixpath.dirname(record.member or source).split("/")]
        if not folders[-1] or folders[-1] not in space.classes:
            yield Quarantined(source, f"its folder '{folders[-1]}' is no class of {space.name}: {', '.join(space.classes)}")
            continue
        split = next((SPLITS[folder] for folder in folders[:-1] if folder in SPLITS), "train")
        try:
            yield Sample(source, reader.read(record), space.classes.index(folders[-1]), split, source)
        except RecordError as error:
            yield Quarantined(source, error.reason)
    reader.close()


LAYOUTS: dict[str, tuple[Callable[[str], list[Part]], Callable[[Part, LabelSpace], Reading]]] = {
    "fer2013-csv": (plan_fer2013_csv, read_fer2013_csv),
    "image-folder": (plan_image_folder, read_image_folder),
}
"""A layout's name to how its source is split and how a part is read."""
