"""The faces that a detector finds in one image."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fer_pipeline.faces.attributes import FACE_ATTRIBUTES
from fer_pipeline.faces.pixels import Pixels

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Detections:
    """The n faces of one image, highest score first."""

    boxes_xywh: Floats
    """(n, 4), in pixels of the given image."""
    scores: Floats
    """(n,)"""
    attributes: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    """Other attributes of the faces, (n, ...) each, by their names in `FACE_ATTRIBUTES`."""

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(self, chosen: slice | Sequence[int]) -> "Detections":
        attributes = {name: values[chosen] for name, values in self.attributes.items()}
        return Detections(self.boxes_xywh[chosen], self.scores[chosen], attributes)

    @property
    def landmarks(self) -> Floats | None:
        """(n, 5, 2): x, y of each of `framing.LANDMARKS`; None from a detector that finds only boxes."""
        return self.attributes.get("landmarks")

    def scaled(self, factor: float) -> "Detections":
        """Return the same faces in an image `factor` times as large."""
        by = np.float32(factor)
        attributes = {
            name: values * by if FACE_ATTRIBUTES[name].in_pixels else values for name, values in self.attributes.items()
        }
        return Detections(self.boxes_xywh * by, self.scores, attributes)

    def moved(self, x: int, y: int) -> "Detections":
        """Return the same faces in an image in which this one begins at `x`, `y`; attributes in pixels are points (n, k, 2)."""
        by = np.array([x, y], np.float32)
        attributes = {
            name: values + by if FACE_ATTRIBUTES[name].in_pixels else values for name, values in self.attributes.items()
        }
        return Detections(np.concatenate([self.boxes_xywh[:, :2] + by, self.boxes_xywh[:, 2:]], 1), self.scores, attributes)


def joined(parts: Sequence[Detections]) -> Detections:
    """Return the faces of several detections together, with the attributes that all of them have. There is at least one part."""
    names = set.intersection(*(set(part.attributes) for part in parts))
    return Detections(
        np.concatenate([part.boxes_xywh for part in parts]),
        np.concatenate([part.scores for part in parts]),
        {name: np.concatenate([part.attributes[name] for part in parts]) for name in sorted(names)},
    )


def no_faces() -> Detections:
    """Return the detections in an image without a face."""
    return Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.float32))


class Detector(Protocol):
    """Finds faces in a BGR uint8 image (h, w, 3)."""

    def __call__(self, pixels: Pixels) -> Detections: ...


class BatchDetector(Protocol):
    """Finds faces in BGR uint8 images (h, w, 3) of any sizes, all at once."""

    def __call__(self, images: Sequence[Pixels]) -> list[Detections]: ...
