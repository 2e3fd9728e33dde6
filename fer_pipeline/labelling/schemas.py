"""The fixed Arrow schemas of a labelling run: manifest, images, faces.

Strings with few distinct values are dictionary-encoded, so pandas reads categories, and DuckDB filters them by code.
"""

from typing import Literal, get_args

import pyarrow as pa

from fer_pipeline.faces.attributes import FACE_ATTRIBUTES

MANIFEST = pa.schema(
    [
        pa.field("record_id", pa.int64(), nullable=False),  # unique in its run
        pa.field("shard", pa.int32(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),  # the file or container
        pa.field("member", pa.string()),  # the name inside a container
        pa.field("offset", pa.int64()),  # the position in its container
        pa.field("stored_bytes", pa.int64()),  # its size there, if it is compressed
        pa.field("time_ms", pa.int64()),  # the time of a video frame
        pa.field("size_bytes", pa.int64()),
        pa.field("etag", pa.string()),  # of the file; its mtime in nanoseconds on a local disk
        pa.field("error", pa.string()),  # why it cannot be read, if the listing already found that
        pa.field("attempt", pa.int32(), nullable=False),  # the number of nights that have tried it
    ]
)


FACE = pa.struct(
    [
        pa.field("face_id", pa.int32(), nullable=False),  # index among the record's faces, best detection first
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
    pa.field("labelled_at", pa.timestamp("us", "UTC"), nullable=False),  # when the run started
    pa.field("model", CATEGORY, nullable=False),
    pa.field("model_version", CATEGORY),  # the version in a registry; below, the requested alias
    pa.field("model_alias", CATEGORY),
    pa.field("model_digest", CATEGORY, nullable=False),
    pa.field("detector", CATEGORY, nullable=False),
    pa.field("detector_digest", CATEGORY, nullable=False),
    pa.field("settings_digest", CATEGORY, nullable=False),  # of all other settings that change a label
    pa.field("decoding", pa.int32()),  # version of decoding (`faces/decoding_version.py`); null: 1
]
"""How a row was computed; `etag` says from which file. A row that is carried over from the table keeps its own values."""

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
        pa.field("note", pa.string()),  # what is wrong with a file that was labelled all the same
        pa.field("attempt", pa.int32(), nullable=False),
        pa.field("faces", pa.list_(FACE), nullable=False),
    ]
)
"""One row per record, as a labeller returns it."""

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

ADDED = ("note", "decoding")
"""Columns that files of earlier versions lack; they are read as null."""

SUCCEEDED = ("ok", "no_face")
"""Statuses of a record that was labelled."""
RetriedStatus = Literal["unreadable", "undecodable", "too_large", "unsupported", "timed_out", "crashed"]
"""Statuses of a record that failed and may be retried."""
FAILED: tuple[str, ...] = (*get_args(RetriedStatus), "changed")
"""Statuses of a record that failed; `error` says why. A changed file needs a new listing first."""
CARRIED = "carried"
"""Temporary status of a record whose bytes the published table knows, until its old row replaces this one."""
