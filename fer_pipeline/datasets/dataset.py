"""An ingested dataset: `samples/*.parquet`, `flagged.parquet`, and `dataset.json`, which is written last."""

import json
from typing import Any, Literal

import pyarrow as pa
from pydantic import Field, ValidationError

import fer_pipeline
from fer_pipeline.base import storage
from fer_pipeline.base.config import Config, explain
from fer_pipeline.base.errors import UserError
from fer_pipeline.base.identity import Identity
from fer_pipeline.base.schema_version import require_schema_version
from fer_pipeline.base.storage import parquet
from fer_pipeline.datasets.duplicates import Duplicates
from fer_pipeline.models.framing import Framing
from fer_pipeline.models.label_space import LabelSpace

DATASET_FILE, SAMPLES_FOLDER, FLAGGED_FILE = "dataset.json", "samples", "flagged.parquet"
ENTRIES_KEPT = 1000
"""Most quarantined records and names of classes that `dataset.json` lists."""
SCHEMA_VERSION = 2
"""Version of `dataset.json` and of the samples; version 2 added how faces were cut."""

SAMPLES = pa.schema(
    [
        pa.field("sample_id", pa.string(), nullable=False),  # unique in the dataset
        pa.field("image", pa.binary(), nullable=False),  # encoded, as PNG or as in the source
        pa.field("label", pa.int8(), nullable=False),  # index into the label space of dataset.json
        pa.field("split", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),  # the file, member or row of the source
        pa.field("votes", pa.list_(pa.float32())),  # of annotators, for each of dataset.json's vote_classes
        pa.field("sha256", pa.string(), nullable=False),  # of the decoded pixels and their shape
        pa.field("phash", pa.binary(32), nullable=False),  # perceptual hash; few bits differ between near copies
        pa.field("contrast", pa.float32(), nullable=False),  # standard deviation of the grey levels, 0 to 127.5
        pa.field("width", pa.int32(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
    ]
)


class FaceExtraction(Config):
    """How the faces of a dataset's samples were cut. Training and labelling need it."""

    mode: Literal["whole", "box", "align"]
    """`whole`: the images are face crops. `box`, `align`: faces were cut from the images, by box or by landmarks."""
    framing: Framing
    """Position of the face in every sample."""
    crop_px: int | None = None
    """Side of the crops; None for whole images."""
    detector: Identity | None = None
    """Detector of the faces that the layout does not mark; None for whole images."""


class DatasetInfo(Config):
    """`dataset.json`."""

    schema_version: int = SCHEMA_VERSION
    version: str = fer_pipeline.__version__
    """Version of the software that wrote the file."""
    source: str
    layout: str
    terms: str
    """Terms of use of the data, as far as the layout knows them."""
    faces: FaceExtraction
    label_space: LabelSpace
    samples: int
    class_names: dict[str, str] = Field(default_factory=dict)
    """The class of each name or number that the source uses for it. Empty in files of older versions."""
    counts: dict[str, dict[str, int]]
    """Number of samples by split and class."""
    vote_classes: tuple[str, ...] = ()
    """Classes of the samples' `votes`, in order."""
    duplicates: Duplicates
    flagged: dict[str, int] = Field(default_factory=dict)
    """Number of samples in `flagged.parquet` by reason; `train --drop-leaks` leaves these samples out."""
    dropped: dict[str, int] = Field(default_factory=dict)
    """Number of records that a rule of the dataset excludes, by reason, such as a class that is not an expression."""
    quarantined: int
    quarantined_records: list[dict[str, str]] = Field(default_factory=list)
    """`source` and `reason` of the first quarantined records."""
    settings: dict[str, Any] | None = None
    """Everything that decides the samples; an ingest with equal settings is not repeated."""
    digest: str
    """sha256 of the samples' digests, splits and class names, in order."""


def read_dataset(url: str) -> DatasetInfo:
    """Return the `dataset.json` at `url`. Raise UserError if there is none, or if it has another schema version."""
    try:
        text = storage.read_small(storage.join(url, DATASET_FILE))
    except storage.STORAGE_ERRORS as error:
        raise UserError(
            f"'{url}' is not an ingested dataset: it has no readable {DATASET_FILE}. Run fer-pipeline ingest first."
        ) from error
    remedy = f"ingest it again into a new folder{_ingest_command(text)}."
    require_schema_version(text, range(SCHEMA_VERSION, SCHEMA_VERSION + 1), f"The dataset '{url}'", remedy)
    try:
        return DatasetInfo.model_validate_json(text)
    except ValidationError as error:
        raise UserError(f"The {DATASET_FILE} of '{url}' cannot be used: {explain(error)}.") from error


def _ingest_command(text: bytes) -> str:
    """Return the command that ingests the dataset again, or an empty string if its `dataset.json` does not say."""
    try:
        facts = json.loads(text)
        source, layout, space = facts["source"], facts["layout"], facts["label_space"]["name"]
    except (ValueError, KeyError, TypeError):
        return ""
    return f": fer-pipeline ingest {source} --layout {layout} --label-space {space} --out NEW"


def sample_files(url: str) -> list[str]:
    """Return the Parquet files that hold the samples of the dataset at `url`, in order."""
    folder = storage.join(url, SAMPLES_FOLDER)
    return [storage.join(folder, name) for name in storage.list_names(folder)]


def read_samples(url: str, columns: list[str]) -> pa.Table:
    """Return some columns of the samples of the dataset at `url`, in order. No other column is read."""
    tables = []
    for uri in sample_files(url):
        with parquet.opened(uri) as file:
            tables.append(file.read(columns))
    return pa.concat_tables(tables)


def read_flagged(url: str) -> pa.Table:
    """Return the flagged samples of the dataset at `url` (`duplicates.FLAGGED`)."""
    return parquet.read_table(storage.join(url, FLAGGED_FILE))


def count(samples: pa.Table, space: LabelSpace) -> dict[str, dict[str, int]]:
    """Return the number of samples by split and class."""
    rows = samples.group_by(["split", "label"]).aggregate([([], "count_all")]).to_pylist()
    pairs = {(row["split"], row["label"]): row["count_all"] for row in rows}
    splits = sorted({split for split, _ in pairs})
    return {split: {name: pairs.get((split, index), 0) for index, name in enumerate(space.classes)} for split in splits}
