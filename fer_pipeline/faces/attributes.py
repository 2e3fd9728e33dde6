"""Attributes of a face that a detector may report besides box and score."""

from dataclasses import dataclass

import pyarrow as pa


@dataclass(frozen=True)
class FaceAttribute:
    """One attribute. It becomes a column, which is null for detectors that do not report it."""

    type: pa.DataType
    in_pixels: bool = False
    """Whether the values are pixel coordinates, which scale with the image."""


FACE_ATTRIBUTES = {
    "landmarks": FaceAttribute(pa.list_(pa.float32(), 10), in_pixels=True),  # x, y of each of `framing.LANDMARKS`
}
"""All attributes by name. A detector returns their values in `Detections.attributes`."""
