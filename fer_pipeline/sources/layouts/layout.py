"""What a layout's reader yields: where a labelled image is and what its annotators said of it; no image is decoded here."""

import posixpath
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from fer_pipeline.core import storage
from fer_pipeline.core.framing import FER2013_FRAMING, Framing
from fer_pipeline.core.labels import LABEL_SPACES, LabelSpace, Numbering, canonical, is_expression
from fer_pipeline.core.manifest import Record

PART_RECORDS, PART_BYTES = 2000, 64 * 1024**2
"""How much of a dataset one task reads."""

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
"""What a dataset says of the split, in lower case."""

Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class AnnotatedFace:
    """A face that annotators marked, in pixels of the image."""

    box_xywh: tuple[float, float, float, float]
    landmarks: tuple[Point, ...] | None = None
    """In the order of `framing.LANDMARKS`."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One labelled image."""

    image: Record | bytes
    """The encoded image, or where it is."""
    label: str
    """A class of the label space."""
    split: str
    source: str
    """Where it stands in the dataset, for people: unique there."""
    votes: tuple[float, ...] | None = None
    """Of annotators, over the layout's `vote_classes`."""
    face: AnnotatedFace | None = None


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
    """First byte of a CSV, row group of a Parquet file or line of a list."""
    end: int = 0
    """The one behind the last."""
    records: tuple[Record, ...] = ()
    first_row: int = 0
    """Number of its first row in the whole file."""


@dataclass(frozen=True)
class LayoutOptions:
    """What some layouts can be told besides the source; a layout names those it takes in `LayoutSpec.options`."""

    votes: str | None = None
    """A table of annotators' votes that is joined to the samples."""
    numbering: Numbering | None = None
    """What numeric labels stand for, of a layout that does not say it itself."""


FacesMode = Literal["whole", "box", "align"]
"""`whole`: the images are face crops, and samples as they are; `box`: a square about the face is cut out; `align`: its landmarks
are brought onto the framing's."""


class Layout(Protocol):
    """A dataset as someone has it. `plan` raises UserError for what only the user can mend; `read` runs in the workers."""

    def plan(self) -> list[Part]: ...

    def read(self, part: Part) -> Reading: ...


@dataclass(frozen=True)
class LayoutSpec:
    """The declaration of a dataset layout."""

    name: str
    help: str
    """One line for the help of commands."""
    open: Callable[[str, LabelSpace, LayoutOptions], Layout]
    """Returns the dataset at a source, whose labels become those of a label space."""
    faces: FacesMode = "whole"
    """How faces are taken where the user does not say."""
    framing: Framing = FER2013_FRAMING
    """Of its images, where they are face crops, or onto which faces are cut, where the user does not say."""
    options: tuple[str, ...] = ()
    """Which of `LayoutOptions` it takes."""
    vote_classes: tuple[str, ...] = ()
    """What the votes of its samples are of, where votes are given."""
    terms: str = "Those of the dataset that was ingested."
    """Under which terms the data may be used; a sentence for model cards."""


def named_split(names: Iterable[str]) -> str | None:
    """Return the split that the first of some names speaks for; None where none does."""
    return next((SPLIT_NAMES[name.lower()] for name in names if name.lower() in SPLIT_NAMES), None)


def split_of(names: Iterable[str]) -> str:
    """Return the split that the first of some names, or of their words, speaks for; `train` where none does."""
    return named_split(word for name in names for word in (name, *words_of(name))) or "train"


def words_of(name: str) -> list[str]:
    """Return the words of a file's or folder's name: what other characters than letters divide."""
    return [word for word in re.split(r"[^A-Za-z]+", name) if word]


def split_of_file(name: str) -> str:
    """Return the split that a file's name, or the next folder above it, speaks for; `name` is its path below the dataset."""
    folder, base = posixpath.split(name)
    return split_of([base, *reversed(folder.split("/"))])


def said_split(value: Any, source: str) -> str | Excluded:
    """Return the split that a record itself names; or why that is none."""
    split = SPLIT_NAMES.get(str(value).strip().lower())
    return split or Excluded(MISLABELLED, source, f"the split '{str(value)[:20]}' is none of {', '.join(SPLIT_NAMES)}")


def image_below(folder: str, path: str, source: str) -> Record | Excluded:
    """Return the image at a path that a dataset names below its folder of images; or why there is none: it leads elsewhere."""
    uri = storage.join(folder, path)
    if not storage.is_below(uri, folder):
        return Excluded(MISLABELLED, source, f"its image is not below the dataset: '{path[:100]}'")
    return Record(uri)


def sample_of(image: Record | Excluded | bytes, label: str | Excluded, split: str | Excluded, source: str) -> Sample | Excluded:
    """Return a sample; or why it is none, where its label or its split says so."""
    if isinstance(image, Excluded):
        return image
    if isinstance(label, Excluded):
        return label
    return split if isinstance(split, Excluded) else Sample(image, label, split, source)


def class_of(value: Any, space: LabelSpace, source: str, numbering: Numbering | None = None) -> str | Excluded:
    """Return the class of the label space that a name, or a number, stands for; or why the record at `source` has none.

    Numbers mean what a numbering says, and nothing without one: datasets count the same expressions in different orders.
    """
    text = str(value).strip()
    if text.isascii() and text.isdigit():
        if numbering is None:
            known = space.name if LABEL_SPACES.get(space.name) == space else "SPACE.toml"
            guess = f"say --numbering {known} if it counts {Numbering(space.classes)}"
            return Excluded(MISLABELLED, source, f"the label '{text[:20]}' is a number, and nothing says what it counts: {guess}")
        named = numbering.name_of(int(text)) if len(text) <= 3 else None
        if named is None:
            return Excluded(MISLABELLED, source, f"the label '{text[:20]}' is none of {numbering}")
        text = named
    name = canonical(text)
    if name in space.classes:
        return name
    if is_expression(name):
        return Excluded(DROPPED, source, f"{name} is no class of {space.name}")
    return Excluded(MISLABELLED, source, f"'{text[:20]}' is no class of {space.name}: {', '.join(space.classes)}")
