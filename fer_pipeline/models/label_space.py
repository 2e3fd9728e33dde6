"""Label spaces: which apparent expressions a dataset or model distinguishes, their order, and their mapping by name."""

import re
import tomllib
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field, ValidationError, field_validator

from fer_pipeline.base.config import Config, explain
from fer_pipeline.base.errors import UserError

MAX_NAME_LENGTH = 100
"""Limit on the name of a class or label space, in characters."""


class LabelSpace(Config):
    """A named, ordered set of apparent expressions; a label is an index into `classes`."""

    name: str = Field(max_length=MAX_NAME_LENGTH)
    classes: tuple[str, ...] = Field(min_length=1, max_length=1000)

    @field_validator("classes")
    @classmethod
    def _require_valid_names(cls, classes: tuple[str, ...]) -> tuple[str, ...]:
        """Reject names that would break a page or a figure, and duplicate names."""
        for name in classes:
            if not 0 < len(name) <= MAX_NAME_LENGTH or not name.isprintable():
                raise ValueError(f"the class '{name[:20]!r}' must have 1 to {MAX_NAME_LENGTH} printable characters")
        if len(set(classes)) < len(classes):
            raise ValueError("two classes have the same name")
        return classes


FER7 = LabelSpace(name="fer7", classes=("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral"))
"""The seven classes of FER-2013 in the order of its `emotion` column (Goodfellow et al., 2013)."""

AFFECTNET8 = LabelSpace(
    name="affectnet8",
    classes=("neutral", "happy", "sad", "surprise", "fear", "disgust", "angry", "contempt"),
)
"""The eight classes of AffectNet in the order of its `expression` column (Mollahosseini et al., 2017)."""

FERPLUS8 = LabelSpace(
    name="ferplus8",
    classes=("neutral", "happy", "surprise", "sad", "angry", "disgust", "fear", "contempt"),
)
"""The eight classes of FER+ in the order of its vote columns (Barsoum et al., 2016)."""

LABEL_SPACES = {space.name: space for space in (FER7, AFFECTNET8, FERPLUS8)}


@dataclass(frozen=True)
class Numbering:
    """The classes that numeric labels stand for. The first class has the number `first`."""

    classes: tuple[str, ...]
    first: int = 0

    def __str__(self) -> str:
        return ", ".join(f"{number} {name}" for number, name in enumerate(self.classes, self.first))

    def name_of(self, number: int) -> str | None:
        """Return the class of a number; None if it is out of range."""
        place = number - self.first
        return self.classes[place] if 0 <= place < len(self.classes) else None


RAFDB = Numbering(("surprise", "fear", "disgust", "happy", "sad", "angry", "neutral"), first=1)
"""The numbers of RAF-DB's basic expressions (Li et al., 2017)."""

NUMBERINGS = {space.name: Numbering(space.classes) for space in LABEL_SPACES.values()} | {"rafdb": RAFDB}

SYNONYMS = {
    other: ours
    for ours, others in {
        "angry": ("anger", "angery"),
        "contempt": ("contemptuous", "comtempt", "contemp"),
        "disgust": ("disgusted", "disgusting", "digust", "disguist"),
        "fear": ("fearful", "afraid", "scared", "fearfull"),
        "happy": ("happiness", "joy", "hapiness", "happyness", "hapy"),
        "neutral": ("neutrality", "natural", "netural", "nuetral", "nutral"),
        "sad": ("sadness", "sadnes"),
        "surprise": ("surprised", "suprise", "suprised", "surprize"),
    }.items()
    for other in others
}
"""Other names of classes in datasets, with common misspellings, and our name for each. No name is guessed from similar ones."""

NUMBER_IN_FRONT = re.compile(r"^[0-9]{1,9}[-_. ]{1,3}")
"""The number by which some datasets order their class folders: `0_angry`, `01. happy`."""


def load_label_space(name: str) -> LabelSpace:
    """Return the label space called `name`, or the one in the TOML file at the path `name` (`name`, `classes`).

    Raise UserError if there is none, or if it has fewer than two different classes.
    """
    if name in LABEL_SPACES:
        return LABEL_SPACES[name]
    if not name.endswith(".toml"):
        raise UserError(f"There is no label space '{name}': choose one of {', '.join(LABEL_SPACES)}, or name a .toml file.")
    try:
        facts = tomllib.loads(Path(name).read_text())
        given = LabelSpace.model_validate({"name": Path(name).stem} | facts)
        space = LabelSpace(name=given.name, classes=tuple(map(canonical, given.classes)))
    except ValidationError as error:
        raise UserError(f"The label space '{name}' cannot be used: {explain(error)}.") from error
    except (OSError, ValueError) as error:
        raise UserError(f"The label space '{name}' cannot be read: {error}.") from error
    if len(space.classes) < 2:
        raise UserError(f"The label space '{name}' needs at least two classes.")
    return space


def load_numbering(name: str) -> Numbering:
    """Return the numbering called `name`, or the label space in a TOML file numbered from 0; raise UserError if there is none."""
    if name in NUMBERINGS:
        return NUMBERINGS[name]
    if not name.endswith(".toml"):
        raise UserError(f"There is no numbering '{name}': choose one of {', '.join(NUMBERINGS)}, or name a .toml file.")
    return Numbering(load_label_space(name).classes)


def canonical(name: str, classes: Collection[str] = ()) -> str:
    """Return our name for the class `name` of a dataset; if we have none, `name` in lower case.

    Case, blanks at both ends, and a number in front of a known name or of one of `classes` do not matter.
    """
    lower = name.strip().lower()
    whole, bare = (SYNONYMS.get(text, text) for text in (lower, NUMBER_IN_FRONT.sub("", lower)))
    return bare if whole not in classes and (bare in classes or is_expression(bare)) else whole


def is_expression(name: str) -> bool:
    """Return whether any label space has the class `name`."""
    return any(name in space.classes for space in LABEL_SPACES.values())


def mapping(source: tuple[str, ...], target: LabelSpace) -> tuple[int | None, ...]:
    """Return the index in `target` of each class of `source`, matched by name; None for a class without a counterpart.

    For example, contempt has no counterpart in FER-7, because its annotators distinguish it from neutral and disgust.
    """
    known = tuple(map(canonical, target.classes))
    return tuple(known.index(name) if name in known else None for name in (canonical(name, known) for name in source))
