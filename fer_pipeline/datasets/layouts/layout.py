"""The interface of layouts: parts, labelled samples and excluded records. No image is decoded here."""

import posixpath
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from fer_pipeline.archive.record import Record
from fer_pipeline.base import storage
from fer_pipeline.models.framing import FER2013_FRAMING, Framing
from fer_pipeline.models.label_space import NUMBERINGS, LabelSpace, Numbering, canonical, is_expression

PART_RECORDS = 2000
"""Most records in a part of a dataset."""
AUDIT = "audit"
"""The split of what people said of faces that were chosen at random. It measures models; none learns it, or a copy of it."""

SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "validate": "validation",
    "dev": "validation",
    "eval": "validation",
    "publictest": "validation",
    "test": "test",
    "testing": "test",
    "privatetest": "test",
}
"""Names of splits in datasets, in lower case, and our names for them."""

Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class AnnotatedFace:
    """A face that annotators marked, in pixels of the image."""

    box_xywh: tuple[float, float, float, float]
    landmarks: tuple[Point, ...] | None = None
    """In the order of `framing.LANDMARKS`."""


@dataclass(frozen=True, slots=True)
class Label:
    """A class of the label space, and what the dataset calls it: a name or a number."""

    name: str
    found: str


@dataclass(frozen=True, slots=True)
class Sample:
    """One labelled image."""

    image: Record | bytes
    """The encoded image, or the record that locates it."""
    label: Label
    split: str
    source: str
    """Readable place of the image in the dataset, unique there."""
    votes: tuple[float, ...] | None = None
    """Number of annotators for each of the layout's `vote_classes`."""
    face: AnnotatedFace | None = None


@dataclass(frozen=True, slots=True)
class Excluded:
    """A record that is not a sample, and why: `dropped` by a rule of the dataset, `damaged`, or `mislabelled`."""

    kind: str
    source: str
    reason: str


DROPPED, DAMAGED, MISLABELLED = "dropped", "damaged", "mislabelled"  # the kinds of `Excluded`

Reading = Iterator[Sample | Excluded]


@dataclass(frozen=True)
class Part:
    """A part of a dataset that one task reads: bytes of a CSV, row groups of a Parquet file, or some images."""

    uri: str
    start: int = 0
    """First byte of a CSV, row group of a Parquet file, or line of a list."""
    end: int = 0
    """One past the last byte, row group or line."""
    records: tuple[Record, ...] = ()
    first_row: int = 0
    """Number of the part's first row in the whole file."""


@dataclass(frozen=True)
class LayoutOptions:
    """Options of layouts. `LayoutSpec.options` names those that a layout takes."""

    votes: str | None = None
    """Table of annotators' votes to join to the samples."""
    numbering: Numbering | None = None
    """Meaning of numeric labels, if the dataset does not define it."""


FacesMode = Literal["whole", "box", "align"]
"""`whole`: the images are face crops and are kept unchanged. `box`: ingest cuts a square around the face. `align`: ingest aligns
the landmarks of the face with those of the framing."""


class Layout(Protocol):
    """A dataset on disk or in a store. `plan` raises UserError for what the user must fix; `read` runs in the workers."""

    def plan(self) -> list[Part]: ...

    def read(self, part: Part) -> Reading: ...


@dataclass(frozen=True)
class LayoutSpec:
    """The declaration of a dataset layout."""

    name: str
    help: str
    """One line for the help of commands."""
    open: Callable[[str, LabelSpace, LayoutOptions], Layout]
    """Returns the dataset at a source, with labels of a label space."""
    faces: FacesMode = "whole"
    """How faces are cut by default."""
    faces_of: Callable[[str], FacesMode] | None = None
    """How the faces of a source are cut by default, if that depends on it."""
    content_of: Callable[[str], str | None] | None = None
    """A digest of what a source holds, where it grows by its nature: with another one an ingest is another."""
    framing: Framing = FER2013_FRAMING
    """Framing of the images if they are face crops; otherwise the default framing of the faces that ingest cuts."""
    options: tuple[str, ...] = ()
    """Names of the `LayoutOptions` that the layout takes."""
    vote_classes: tuple[str, ...] = ()
    """Classes of the samples' votes, if votes are given."""
    terms: str = "Those of the dataset that was ingested."
    """Terms of use of the data, as a sentence for model cards."""


def find_split(names: Iterable[str]) -> str | None:
    """Return the split of the first name that is the name of a split, or None."""
    return next((SPLIT_NAMES[name.lower()] for name in names if name.lower() in SPLIT_NAMES), None)


def split_or_train(names: Iterable[str]) -> str:
    """Return the split of the first name that is, or contains as a word, the name of a split; otherwise `train`."""
    return find_split(word for name in names for word in (name, *words_of(name))) or "train"


def words_of(name: str) -> list[str]:
    """Return the words in the name of a file or folder. Any character that is not a letter separates words."""
    return [word for word in re.split(r"[^A-Za-z]+", name) if word]


def split_of_path(name: str) -> str:
    """Return the split in the name of a file or of the nearest folder above it, otherwise `train`."""
    folder, base = posixpath.split(name)
    return split_or_train([base, *reversed(folder.split("/"))])


def parse_split(value: Any, source: str) -> str | Excluded:
    """Return the split that a record names, or an `Excluded` if the name is unknown."""
    named = str(value).strip().lower()
    split = AUDIT if named == AUDIT else SPLIT_NAMES.get(named)
    return split or Excluded(MISLABELLED, source, f"the split '{str(value)[:20]}' is not one of {', '.join(SPLIT_NAMES)}")


def image_below(folder: str, path: str, source: str) -> Record | Excluded:
    """Return the record of the image at a path that a dataset names, or an `Excluded` if the path leads out of `folder`."""
    uri = storage.join(folder, path)
    if not storage.is_below(uri, folder):
        return Excluded(MISLABELLED, source, f"its image is not below the dataset: '{path[:100]}'")
    return Record(uri)


def sample_of(image: Record | Excluded | bytes, label: Label | Excluded, split: str | Excluded, source: str) -> Sample | Excluded:
    """Return a sample, or the first `Excluded` among its image, label and split."""
    if isinstance(image, Excluded):
        return image
    if isinstance(label, Excluded):
        return label
    return split if isinstance(split, Excluded) else Sample(image, label, split, source)


def class_of(value: Any, space: LabelSpace, source: str, numbering: Numbering | None = None) -> Label | Excluded:
    """Return the label for a name or a number in a dataset, or an `Excluded` for the record at `source`.

    A number needs a numbering, because datasets number the same expressions in different orders.
    """
    found = text = str(value).strip()
    if text.isascii() and text.isdigit():
        if numbering is None:
            known = ", ".join(f"{name} ({order})" for name, order in NUMBERINGS.items())
            hint = f"set --numbering to one of {known}, or to a .toml file"
            return Excluded(MISLABELLED, source, f"the label '{text[:20]}' is a number of unknown meaning: {hint}")
        named = numbering.name_of(int(text)) if len(text) <= 3 else None
        if named is None:
            return Excluded(MISLABELLED, source, f"the label '{text[:20]}' is not one of {numbering}")
        text = named
    name = canonical(text, space.classes)
    if name in space.classes:
        return Label(name, found)
    if is_expression(name):
        return Excluded(DROPPED, source, f"{name} is no class of {space.name}")
    hint = f"rename it to one of {', '.join(space.classes)}, or choose another --label-space"
    return Excluded(MISLABELLED, source, f"the label '{text[:20]}' is not a known name of a class of {space.name}: {hint}")
