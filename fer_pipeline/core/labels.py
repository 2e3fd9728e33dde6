"""Label spaces: which apparent expressions a dataset or a model distinguishes, in which order, and how they map."""

import tomllib
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field, ValidationError, field_validator

from fer_pipeline.core.config import Config, explain
from fer_pipeline.core.errors import UserError

MOST_CHARACTERS = 100
"""In the name of a class or label space."""


class LabelSpace(Config):
    """A named, ordered set of apparent expressions; a label is an index into `classes`."""

    name: str = Field(max_length=MOST_CHARACTERS)
    classes: tuple[str, ...] = Field(min_length=1, max_length=1000)

    @field_validator("classes")
    @classmethod
    def _names(cls, classes: tuple[str, ...]) -> tuple[str, ...]:
        """Refuse names that would break a page or a figure, and two of the same."""
        for name in classes:
            if not 0 < len(name) <= MOST_CHARACTERS or not name.isprintable():
                raise ValueError(f"the class '{name[:20]!r}' must have 1 to {MOST_CHARACTERS} printable characters")
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
    """The classes that numeric labels stand for, from `first` on."""

    classes: tuple[str, ...]
    first: int = 0

    def __str__(self) -> str:
        return ", ".join(f"{number} {name}" for number, name in enumerate(self.classes, self.first))

    def name_of(self, number: int) -> str | None:
        """Return the class of a number; None for one that is out of range."""
        place = number - self.first
        return self.classes[place] if 0 <= place < len(self.classes) else None


RAFDB = Numbering(("surprise", "fear", "disgust", "happy", "sad", "angry", "neutral"), first=1)
"""The numbers of RAF-DB's basic expressions (Li et al., 2017)."""

NUMBERINGS = {space.name: Numbering(space.classes) for space in LABEL_SPACES.values()} | {"rafdb": RAFDB}

SYNONYMS = {
    "anger": "angry",
    "disgusted": "disgust",
    "fearful": "fear",
    "afraid": "fear",
    "happiness": "happy",
    "sadness": "sad",
    "surprised": "surprise",
}
"""What datasets call a class otherwise."""


def load_label_space(name: str) -> LabelSpace:
    """Return the label space called `name`, or the one in the TOML file at the path `name` (`name`, `classes`).

    Raise UserError where there is none, or where it does not name two different classes.
    """
    if name in LABEL_SPACES:
        return LABEL_SPACES[name]
    if not name.endswith(".toml"):
        raise UserError(f"There is no label space '{name}'; choose one of {', '.join(LABEL_SPACES)}, or name a .toml file.")
    try:
        facts = tomllib.loads(Path(name).read_text())
        given = LabelSpace.model_validate({"name": Path(name).stem} | facts)
        space = LabelSpace(name=given.name, classes=tuple(map(canonical, given.classes)))
    except ValidationError as error:
        raise UserError(f"The label space '{name}' cannot be used: {explain(error)}.") from error
    except (OSError, ValueError) as error:
        raise UserError(f"The label space '{name}' cannot be read: {error}.") from error
    if len(space.classes) < 2:
        raise UserError(f"The label space '{name}' needs two classes or more.")
    return space


def load_numbering(name: str) -> Numbering:
    """Return the numbering called `name`, or that of the label space in a TOML file, from 0; raise UserError for none."""
    if name in NUMBERINGS:
        return NUMBERINGS[name]
    if not name.endswith(".toml"):
        raise UserError(f"There is no numbering '{name}'; choose one of {', '.join(NUMBERINGS)}, or name a .toml file.")
    return Numbering(load_label_space(name).classes)


def canonical(name: str) -> str:
    """Return our name of a class that a dataset calls `name`, whatever its case; the name itself where it is none of ours."""
    lower = name.strip().lower()
    return SYNONYMS.get(lower, lower)


def is_expression(name: str) -> bool:
    """Tell whether any label space has the class `name`."""
    return any(name in space.classes for space in LABEL_SPACES.values())


def mapping(source: tuple[str, ...], target: LabelSpace) -> tuple[int | None, ...]:
    """Return, for each class of `source`, its index in `target`, by name; None for one that has no counterpart there.

    So contempt has none in FER-7: it is neither neutral nor disgust to those who annotated it.
    """
    known = tuple(map(canonical, target.classes))
    return tuple(known.index(name) if name in known else None for name in map(canonical, source))
