"""Framing: the position of a face in its crop. Ingest decides it; training, bundle and labelling use the same one."""

import tomllib
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError, field_validator

from fer_pipeline.base.config import Config, explain
from fer_pipeline.base.errors import UserError

LANDMARKS = ("right eye", "left eye", "nose", "right mouth corner", "left mouth corner")
"""The order of landmarks in this project. Right and left are the person's: in an upright face the right eye is on the left of
the image."""
LANDMARK_COLUMNS = [f"{name.replace(' ', '_')}_{axis}" for name in LANDMARKS for axis in "xy"]
"""Their names as columns of exports."""


class Framing(Config):
    """The position of a face in its crop, in units of the crop's side. The defaults are `FER2013_FRAMING`."""

    cut: Literal["landmarks", "box"] = "landmarks"
    """`landmarks`: a similarity transform maps the face's landmarks to `landmarks`; a face without them is cut by its box.
    `box`: a square around the centre of the face's box, even if landmarks are known."""
    landmarks: tuple[tuple[float, float], ...] = ((0.31, 0.38), (0.68, 0.38), (0.49, 0.60), (0.35, 0.75), (0.64, 0.75))
    """x, y of each of `LANDMARKS` in the crop."""
    box_scale: float = Field(1.12, gt=0, le=10)
    """Side of the crop over sqrt(width * height) of the face's box."""

    @field_validator("landmarks")
    @classmethod
    def _require_valid_landmarks(cls, points: tuple[tuple[float, float], ...]) -> tuple[tuple[float, float], ...]:
        if len(points) != len(LANDMARKS):
            raise ValueError(f"it needs {len(LANDMARKS)} points: {', '.join(LANDMARKS)}")
        if len(set(points)) < 2 or max(abs(value) for point in points for value in point) > 10:
            raise ValueError("its points must differ, with coordinates from -10 to 10")
        return points


FER2013_FRAMING = Framing()
"""The framing of FER-2013: mean landmarks of the faces that YuNet found in 1,416 of 1,500 Training images."""

FRAMINGS = {"fer2013": FER2013_FRAMING}
"""Framings by name, for `ingest --framing`."""


def load_framing(name: str) -> Framing:
    """Return the framing called `name`, or the one in the TOML file at the path `name`; raise UserError if it is invalid."""
    if name in FRAMINGS:
        return FRAMINGS[name]
    try:
        return Framing.model_validate(tomllib.loads(Path(name).read_text()))
    except ValidationError as error:
        raise UserError(f"The framing '{name}' cannot be used: {explain(error)}.") from error
    except (OSError, ValueError) as error:
        raise UserError(
            f"There is no framing '{name}': use {', '.join(FRAMINGS)}, a .toml file or an ingested dataset."
        ) from error
