"""What a detector finds in one image."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fer_pipeline.core.schemas import FACE_ATTRIBUTES
from fer_pipeline.stages.decode import Pixels

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Detections:
    """Faces of one image, the best first: n of them."""

    boxes_xywh: Floats
    """(n, 4), pixels of the image given."""
    scores: Floats
    """(n,)"""
    attributes: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    """What else is known of each face, by its name in `schemas.FACE_ATTRIBUTES`: (n, ...)."""

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(self, chosen: slice) -> "Detections":
        attributes = {name: values[chosen] for name, values in self.attributes.items()}
        return Detections(self.boxes_xywh[chosen], self.scores[chosen], attributes)

    @property
    def landmarks(self) -> Floats | None:
        """(n, 5, 2): x, y of each of `framing.LANDMARKS`; None from a detector that finds boxes only."""
        return self.attributes.get("landmarks")

    def scaled(self, factor: float) -> "Detections":
        """Return the same faces in an image `factor` times as large."""
        by = np.float32(factor)
        attributes = {
            name: values * by if FACE_ATTRIBUTES[name].in_pixels else values for name, values in self.attributes.items()
        }
        return Detections(self.boxes_xywh * by, self.scores, attributes)


def no_faces() -> Detections:
    """Return the detections in an image without a face."""
    return Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.float32))


class Detector(Protocol):
    """Finds faces in a BGR uint8 image (h, w, 3)."""

    def __call__(self, pixels: Pixels) -> Detections: ...


class BatchDetector(Protocol):
    """Finds faces in BGR uint8 images (h, w, 3) of any sizes, all at once."""

    def __call__(self, images: Sequence[Pixels]) -> list[Detections]: ...
