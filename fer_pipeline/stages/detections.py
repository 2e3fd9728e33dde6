"""What a detector finds in one image."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fer_pipeline.stages.decode import Pixels

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Detections:
    """Faces of one image, best first, in pixels of the image given: boxes_xywh (n, 4), scores (n,).

    landmarks (n, 5, 2) are eyes, nose and mouth corners, the image's left first; None from a detector without them.
    """

    boxes_xywh: Floats
    scores: Floats
    landmarks: Floats | None = None

    def __len__(self) -> int:
        return len(self.scores)

    def scaled(self, factor: float) -> "Detections":
        """Return the same faces in an image `factor` times as large."""
        landmarks = None if self.landmarks is None else self.landmarks * np.float32(factor)
        return Detections(self.boxes_xywh * np.float32(factor), self.scores, landmarks)


class Detector(Protocol):
    """Finds faces in a BGR uint8 image (h, w, 3)."""

    def __call__(self, pixels: Pixels) -> Detections: ...
