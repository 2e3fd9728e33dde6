"""What a layout's reader yields: where a labelled image is and what its annotators said of it; no image is decoded here."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from fer_pipeline.core.labels import LabelSpace, canonical, is_expression
from fer_pipeline.core.manifest import Record

PART_RECORDS, PART_BYTES = 2000, 64 * 1024**2
"""How much of a dataset one task reads."""

SPLITS = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "publictest": "validation",
    "test": "test",
    "testing": "test",
    "privatetest": "test",
}
"""What a dataset says of the split, in lower case."""

Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Face:
    """A face that annotators marked, in pixels of the image: its box, and eyes, nose and mouth corners, image's left first."""

    box_xywh: tuple[float, float, float, float]
    landmarks: tuple[Point, ...] | None = None


@dataclass(frozen=True, slots=True)
class Sample:
    """One labelled image: encoded bytes or where they are, the class by our name, and what else its layout knows."""

    image: Record | bytes
    label: str
    split: str
    source: str
    votes: tuple[float, ...] | None = None
    face: Face | None = None


@dataclass(frozen=True, slots=True)
class Excluded:
    """A record that is no sample, and why: `dropped` by a rule of the dataset, `damaged`, or `mislabelled`."""

    kind: str
    source: str
    reason: str


DROPPED, DAMAGED, MISLABELLED = "dropped", "damaged", "mislabelled"

Reading = Iterator[Sample | Excluded]


@dataclass(frozen=True)
class Part:
    """A stretch of a dataset that one task reads: bytes of a CSV, row groups of a Parquet file, or some images."""

    uri: str
    start: int = 0
    end: int = 0
    records: tuple[Record, ...] = ()
    first_row: int = 0


class Layout(Protocol):
    """A dataset as someone has it. `plan` raises UserError for what only the user can mend; `read` runs in the workers."""

    def plan(self) -> list[Part]: ...

    def read(self, part: Part) -> Reading: ...


def split_of(names: list[str], default: str = "train") -> str:
    """Return the split that one of some names speaks for."""
    return next((SPLITS[name.lower()] for name in names if name.lower() in SPLITS), default)


def class_of(value: Any, space: LabelSpace, source: str) -> str | Excluded:
    """Return the class that an index into the label space, or a name, stands for; or why the record at `source` has none."""
    text = str(value).strip()
    if text.isascii() and text.isdigit():
        if len(text) <= 3 and int(text) < len(space.classes):
            return space.classes[int(text)]
        return Excluded(MISLABELLED, source, f"the label '{text[:20]}' is not one of 0 to {len(space.classes) - 1}")
    name = canonical(text)
    if name in space.classes:
        return name
    if is_expression(name):
        return Excluded(DROPPED, source, f"{name} is no class of {space.name}")
    return Excluded(MISLABELLED, source, f"'{text[:20]}' is no class of {space.name}: {', '.join(space.classes)}")
