"""The fixed Arrow schemas of a labelling run: manifest, images, faces.

`MEANINGS` says what each column is. Strings with few distinct values are dictionary-encoded, so pandas reads categories, and
DuckDB filters them by code.
"""

from typing import Literal, get_args

import pyarrow as pa

from fer_pipeline.faces.attributes import FACE_ATTRIBUTES
from fer_pipeline.faces.quality import QUALITY

MEANINGS = {
    "record_id": "number of the record in its run",
    "shard": "number of the shard that the record was labelled with",
    "uri": "the file, or the container that holds the image",
    "member": "name in the container, such as `a/b.jpg` or `row 7`; null outside of containers",
    "path": "`uri` below the source, with the member behind it",
    "folder": "folder of `path`; empty for the source itself",
    "offset": "position in the container; what it counts depends on the format",
    "stored_bytes": "size in the container, of a compressed member or a video; else null",
    "time_ms": "time of a frame from the start of its video, in ms; null for images",
    "size_bytes": "size of the encoded image; null for frames and where the listing does not say it",
    "etag": "version of the file: the store's etag; on a disk, the time of its last change in ns",
    "error": "why the record failed; of a kept label, why labelling it again failed; else null",
    "attempt": "number of nights that have tried the record, this one included",
    "content_sha256": "SHA-256 of the encoded image; null for frames and for what was not read",
    "width": "width of the upright image, in pixels; null if it was not decoded",
    "height": "height of the upright image, in pixels; null if it was not decoded",
    "taken_at": "local time at which it was taken, ISO 8601, with an offset only where the file says one; else null",
    "camera": "maker and model of the camera, as the file says; else null",
    "phash": "perceptual hash, 256 bits in hex: near copies differ in a few bits; null if it was not decoded",
    "colours": "histogram of 64 colours of a frame, in hex, which tells cuts from moves; null for images",
    "status": "`ok`, `no_face`, `blocked` (it was erased by `table forget`), or how the record failed",
    "note": "what is wrong with a file that was labelled all the same; else null",
    "faces": "the faces of the image, best detection first; empty if there is none",
    "face_id": "index among the faces of the image, best detection first",
    "x": "left edge of the box, in pixels of the upright image",
    "y": "upper edge of the box, in pixels of the upright image",
    "w": "width of the box, in pixels",
    "h": "height of the box, in pixels",
    "detection_score": "the detector's score of the face, 0 to 1",
    "landmarks": "x and y, in pixels, of the person's right eye, left eye, nose, right and left corner of the mouth; null if the "
    "detector finds none",
    "expression": "the class with the highest probability: the *apparent* expression",
    "confidence": "calibrated probability of `expression`, 0 to 1",
    "probabilities": "calibrated probability of each class, in the order of `classes`",
    "uncertain": "whether `confidence` is below the model's threshold, or `quality` below `--min-quality`",
    "qualities": "the picture of each of `faces`, in their order; null in rows of earlier versions",
    "outputs": "what the model says of each of `faces`, in `faces/` of the face, besides the classes, named by `output_names`; "
    "null if it says nothing else",
    "side_px": "root of the area of the face's box, in pixels of the upright image",
    "sharpness": "share of the grey levels' standard deviation that a blur of two pixels removes in an aligned crop of 48 px",
    "brightness": "mean grey level of that crop, 0 to 1",
    "contrast": "standard deviation of its grey levels, over half of their range, 0 to 1",
    "roll_deg": "angle of the line between the eyes, in degrees, clockwise in the image; null where landmarks do not fit a head",
    "yaw_deg": "turn of the face to the right of the image, in degrees; null as `roll_deg`",
    "pitch_deg": "upward turn of the face, in degrees; null as `roll_deg`",
    "occluded_by_frame": "share of the face's box outside of the image, 0 to 1",
    "quality": "share that the picture leaves of the accuracy on good pictures, 0 to 1, from sharpness, brightness and contrast",
    "quality_reasons": "what is poor: some of `SMALL_BOUNDING_BOX`, `LOW_SHARPNESS`, `LOW_BRIGHTNESS`, `HIGH_BRIGHTNESS`, "
    "`LOW_CONTRAST`, `EXTREME_POSE`, `LOW_FACE_QUALITY`, with commas between; null if nothing is",
    "track_id": "number of the face in its video, in the order in which faces appear",
    "start_ms": "time of the first frame with the face, in ms",
    "end_ms": "time of the last frame with the face, in ms",
    "frames": "number of frames with the face",
    "best_time_ms": "time of the frame whose picture of the face has the highest `quality`, then `detection_score`",
    "best_face_id": "`face_id` of the face in that frame",
    "times_ms": "times of its frames, in ms",
    "face_ids": "`face_id` of the face in each of these frames",
    "expressions": "`expression` of the face in each of these frames",
    "run_id": "the run that computed the row",
    "labelled_at": "when that run started",
    "model": "name of the model",
    "model_version": "its version in a registry; else null",
    "model_alias": "the alias that was asked for, such as `champion`; else null",
    "model_digest": "digest of its weights and card",
    "detector": "name of the detector",
    "detector_digest": "digest of its weights",
    "settings_digest": "digest of all other settings that change a label",
    "decoding": "version of decoding; null is 1",
    "classes": "the model's classes in the order of `probabilities`, separated by commas; null in rows of earlier versions",
    "output_names": "names of the values in `outputs`, separated by commas; null if there are none",
    "source": "the source that was listed",
    "published_by": "the run that published the row",
}
"""What each column of every table holds, its unit, and when it is null."""

CATEGORY = pa.dictionary(pa.int32(), pa.string())
_PLACE = [
    pa.field("uri", pa.string(), nullable=False),
    pa.field("member", pa.string()),
]
_PATH = [pa.field("path", pa.string()), pa.field("folder", pa.string())]
_CAPTURE = [pa.field("taken_at", pa.string()), pa.field("camera", CATEGORY)]

MANIFEST = pa.schema(
    [
        pa.field("record_id", pa.int64(), nullable=False),
        pa.field("shard", pa.int32(), nullable=False),
        *_PLACE,
        pa.field("offset", pa.int64()),
        pa.field("stored_bytes", pa.int64()),
        pa.field("time_ms", pa.int64()),
        pa.field("size_bytes", pa.int64()),
        pa.field("etag", pa.string()),
        pa.field("error", pa.string()),
        pa.field("attempt", pa.int32(), nullable=False),
    ]
)
FACE_PLACES = pa.schema([("faces_file", pa.string()), ("faces_row", pa.int64())])
"""Columns of a manifest if faces of a table or a run are reused: the file and the row that hold the faces of a record."""

FACE = pa.struct(
    [
        pa.field("face_id", pa.int32(), nullable=False),
        pa.field("x", pa.float32(), nullable=False),
        pa.field("y", pa.float32(), nullable=False),
        pa.field("w", pa.float32(), nullable=False),
        pa.field("h", pa.float32(), nullable=False),
        pa.field("detection_score", pa.float32(), nullable=False),
        *(pa.field(name, attribute.type) for name, attribute in FACE_ATTRIBUTES.items()),
        pa.field("expression", pa.string(), nullable=False),
        pa.field("confidence", pa.float32(), nullable=False),
        pa.field("probabilities", pa.list_(pa.float32()), nullable=False),
        pa.field("uncertain", pa.bool_(), nullable=False),
    ]
)

LINEAGE = [
    pa.field("run_id", CATEGORY, nullable=False),
    pa.field("labelled_at", pa.timestamp("us", "UTC"), nullable=False),
    pa.field("model", CATEGORY, nullable=False),
    pa.field("model_version", CATEGORY),
    pa.field("model_alias", CATEGORY),
    pa.field("model_digest", CATEGORY, nullable=False),
    pa.field("detector", CATEGORY, nullable=False),
    pa.field("detector_digest", CATEGORY, nullable=False),
    pa.field("settings_digest", CATEGORY, nullable=False),
    pa.field("decoding", pa.int32()),
    pa.field("classes", CATEGORY),
    pa.field("output_names", CATEGORY),
]
"""How a row was computed; `etag` says from which file. A row that is carried over from the table keeps its own values."""

LABELLED = pa.schema(
    [
        pa.field("record_id", pa.int64(), nullable=False),
        pa.field("shard", pa.int32(), nullable=False),
        *_PLACE,
        pa.field("time_ms", pa.int64()),
        pa.field("size_bytes", pa.int64()),
        pa.field("etag", pa.string()),
        pa.field("content_sha256", pa.string()),
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        *_CAPTURE,
        pa.field("phash", pa.string()),
        pa.field("colours", pa.string()),
        pa.field("status", CATEGORY, nullable=False),
        pa.field("error", pa.string()),
        pa.field("note", pa.string()),
        pa.field("attempt", pa.int32(), nullable=False),
        pa.field("faces", pa.list_(FACE), nullable=False),
        pa.field("qualities", pa.list_(QUALITY)),
        pa.field("outputs", pa.list_(pa.list_(pa.float32()))),
    ]
)
"""One row per record, as a labeller returns it."""

IMAGES = pa.schema([*LABELLED, *_PATH, *LINEAGE])

FACES = pa.schema(
    [pa.field("record_id", pa.int64(), nullable=False)]
    + [field.with_type(CATEGORY) if field.name == "expression" else field for field in FACE]
    + [
        *QUALITY,
        pa.field("outputs", pa.list_(pa.float32())),
        *_PLACE,
        pa.field("time_ms", pa.int64()),
        pa.field("etag", pa.string()),
        *_CAPTURE,
        *_PATH,
        *LINEAGE,
    ]
)

ADDED = (
    *("note", "decoding", "taken_at", "camera", "phash", "path", "folder", "classes", "colours", "qualities"),
    *("outputs", "output_names"),
    *(field.name for field in QUALITY),
)
"""Columns that files of earlier versions lack; they are read as null."""

OF_FACES = ("qualities", "outputs")
"""List columns of an image with a value for each of `faces`."""
OF_CONTENT = ("width", "height", "taken_at", "camera", "phash", "error", "note", "qualities", "outputs")
"""Columns of an image, besides status and faces, that its bytes and the model decide."""

SUCCEEDED = ("ok", "no_face")
"""Statuses of a record that was labelled."""
RetriedStatus = Literal["unreadable", "undecodable", "too_large", "unsupported", "timed_out", "crashed"]
"""Statuses of a record that failed and may be retried."""
FAILED: tuple[str, ...] = (*get_args(RetriedStatus), "changed")
"""Statuses of a record that failed; `error` says why. A changed file needs a new listing first."""
BLOCKED = "blocked"
"""Status of a record whose bytes were erased from the table by `table forget`, so that they are not labelled again."""
CARRIED = "carried"
"""Temporary status of a record whose bytes the published table knows, until its old row replaces this one."""
