"""The pinned Arrow schemas of everything that is written: samples, manifest, images, faces.

Strings of few values are dictionary-encoded: categories in pandas, enumerations that DuckDB filters by code.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import pyarrow as pa

SAMPLES = pa.schema(
    [
        pa.field("sample_id", pa.string(), nullable=False),  # unique in its dataset
        pa.field("image", pa.binary(), nullable=False),  # encoded, as PNG or as it came
        pa.field("label", pa.int8(), nullable=False),  # index into the label space of dataset.json
        pa.field("split", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),  # the file, member or row it came from
        pa.field("votes", pa.list_(pa.float32())),  # of annotators, over dataset.json's vote_classes
        pa.field("sha256", pa.string(), nullable=False),  # of the decoded pixels and their shape
        pa.field("phash", pa.binary(32), nullable=False),  # perceptual hash: few bits differ between near copies
        pa.field("contrast", pa.float32(), nullable=False),  # standard deviation of the grey levels, 0 to 127.5
        pa.field("width", pa.int32(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
    ]
)

MANIFEST = pa.schema(
    [
        pa.field("record_id", pa.int64(), nullable=False),  # unique in its run
        pa.field("shard", pa.int32(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),  # the file or container
        pa.field("member", pa.string()),  # the name inside a container
        pa.field("offset", pa.int64()),  # where it stands in its container
        pa.field("stored_bytes", pa.int64()),  # what it takes there, where it is compressed
        pa.field("time_ms", pa.int64()),  # the moment in a video
        pa.field("size_bytes", pa.int64()),
        pa.field("etag", pa.string()),  # of the file; its mtime in nanoseconds on a local disk
        pa.field("error", pa.string()),  # why the listing already knows that it cannot be read
        pa.field("attempt", pa.int32(), nullable=False),  # which night's try this is, of a record that failed before
    ]
)


@dataclass(frozen=True)
class FaceAttribute:
    """What a detector may know of a face besides box and score: a column, null from a detector that does not know it."""

    type: pa.DataType
    in_pixels: bool = False
    """Whether the values are pixels of the image, which are scaled with it."""


FACE_ATTRIBUTES = {
    "landmarks": FaceAttribute(pa.list_(pa.float32(), 10), in_pixels=True),  # x, y of each of `framing.LANDMARKS`
}
"""By name: the one place to add an attribute. A detector puts it into `Detections.attributes`."""

FACE = pa.struct(
    [
        pa.field("face_id", pa.int32(), nullable=False),  # place among the record's faces, best detection first
        pa.field("x", pa.float32(), nullable=False),  # pixels of the upright, full-size image
        pa.field("y", pa.float32(), nullable=False),
        pa.field("w", pa.float32(), nullable=False),
        pa.field("h", pa.float32(), nullable=False),
        pa.field("detection_score", pa.float32(), nullable=False),
        *(pa.field(name, attribute.type) for name, attribute in FACE_ATTRIBUTES.items()),
        pa.field("expression", pa.string(), nullable=False),
        pa.field("confidence", pa.float32(), nullable=False),  # calibrated probability of `expression`
        pa.field("probabilities", pa.list_(pa.float32()), nullable=False),  # in the order of the model's classes
        pa.field("uncertain", pa.bool_(), nullable=False),
    ]
)

CATEGORY = pa.dictionary(pa.int32(), pa.string())

LINEAGE = [
    pa.field("run_id", CATEGORY, nullable=False),
    pa.field("labelled_at", pa.timestamp("us", "UTC"), nullable=False),  # when that run began
    pa.field("model", CATEGORY, nullable=False),
    pa.field("model_version", CATEGORY),  # of a registry, and the alias that was asked for
    pa.field("model_alias", CATEGORY),
    pa.field("model_digest", CATEGORY, nullable=False),
    pa.field("detector", CATEGORY, nullable=False),
    pa.field("detector_digest", CATEGORY, nullable=False),
    pa.field("settings_digest", CATEGORY, nullable=False),  # of what else changes a label
]
"""What made a row; with `etag`, from what. A row that was carried over from the published table keeps its own."""

LABELLED = pa.schema(
    [
        pa.field("record_id", pa.int64(), nullable=False),
        pa.field("shard", pa.int32(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("member", pa.string()),
        pa.field("time_ms", pa.int64()),
        pa.field("size_bytes", pa.int64()),
        pa.field("etag", pa.string()),
        pa.field("content_sha256", pa.string()),  # of the encoded image's bytes; null for frames and for what was not read
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("status", CATEGORY, nullable=False),
        pa.field("error", pa.string()),
        pa.field("attempt", pa.int32(), nullable=False),
        pa.field("faces", pa.list_(FACE), nullable=False),
    ]
)
"""One row per record as a labeller returns it."""

IMAGES = pa.schema([*LABELLED, *LINEAGE])

FACES = pa.schema(
    [pa.field("record_id", pa.int64(), nullable=False)]
    + [field.with_type(CATEGORY) if field.name == "expression" else field for field in FACE]
    + [
        pa.field("uri", pa.string(), nullable=False),
        pa.field("member", pa.string()),
        pa.field("time_ms", pa.int64()),
        pa.field("etag", pa.string()),
        *LINEAGE,
    ]
)

FINE = ("ok", "no_face")
"""Statuses of a record that was looked at."""
RetriedStatus = Literal["unreadable", "undecodable", "too_large", "unsupported", "timed_out", "crashed"]
"""Statuses of a record that could not be, and may be tried again."""
FAILED: tuple[str, ...] = (*get_args(RetriedStatus), "changed")
"""Statuses of a record that could not be looked at; `error` says why. What has changed needs a new listing."""
