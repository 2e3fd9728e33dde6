"""An ingested dataset: `samples/*.parquet`, `flagged.parquet`, and `dataset.json`, which is written last and makes it one."""

import json
from typing import Any, Literal

import pyarrow as pa
from pydantic import Field, ValidationError

import fer_pipeline
from fer_pipeline.core import storage
from fer_pipeline.core.config import Config, explain
from fer_pipeline.core.duplicates import Duplicates
from fer_pipeline.core.errors import UserError
from fer_pipeline.core.framing import Framing
from fer_pipeline.core.labels import LabelSpace
from fer_pipeline.core.run import Identity
from fer_pipeline.core.schema_version import require_schema_version

DATASET_FILE, SAMPLES_FOLDER, FLAGGED_FILE = "dataset.json", "samples", "flagged.parquet"
QUARANTINED_KEPT = 1000
SCHEMA_VERSION = 2
"""Of `dataset.json` and the samples: 2 since it says how faces were taken."""


class FaceExtraction(Config):
    """How the faces of a dataset's samples were taken: what training and labelling must know of it."""

    mode: Literal["whole", "box", "align"]
    """`whole`: the images are face crops; `box` and `align`: faces were cut from them, by box or landmarks."""
    framing: Framing
    """Where a face stands in every sample."""
    crop_px: int | None = None
    """Side of the samples that were cut; None for whole images."""
    detector: Identity | None = None
    """What found the faces that the layout does not mark; None for whole images."""


class DatasetInfo(Config):
    """`dataset.json`."""

    schema_version: int = SCHEMA_VERSION
    version: str = fer_pipeline.__version__
    """Of the software that wrote it."""
    source: str
    layout: str
    terms: str
    """Under which terms the data may be used, as far as the layout says."""
    faces: FaceExtraction
    label_space: LabelSpace
    samples: int
    counts: dict[str, dict[str, int]]
    """Samples by split and class."""
    vote_classes: tuple[str, ...] = ()
    """What the samples' `votes` are of."""
    duplicates: Duplicates
    flagged: dict[str, int] = Field(default_factory=dict)
    """Samples in `flagged.parquet` by reason: what `train --drop-leaks` leaves out."""
    dropped: dict[str, int] = Field(default_factory=dict)
    """Records left out by a rule of the dataset, by reason: classes that are no expression, images without a face."""
    quarantined: int
    quarantined_records: list[dict[str, str]] = Field(default_factory=list)
    """The first of the records that are no samples: `source` and `reason`."""
    settings: dict[str, Any] | None = None
    """What decided its samples: an ingest of the same is done when it is asked for again."""
    digest: str
    """sha256 over the samples' digests, splits and class names, in order."""


def read_dataset(url: str) -> DatasetInfo:
    """Return what is known of the dataset at `url`; raise UserError where there is none, or one of another schema version."""
    try:
        text = storage.read_small(storage.join(url, DATASET_FILE))
    except storage.STORAGE_ERRORS as error:
        raise UserError(
            f"'{url}' is not an ingested dataset: run fer-pipeline ingest first, which writes {DATASET_FILE}."
        ) from error
    remedy = f"ingest it again into a new folder{_ingest_command(text)}."
    require_schema_version(text, range(SCHEMA_VERSION, SCHEMA_VERSION + 1), f"The dataset '{url}'", remedy)
    try:
        return DatasetInfo.model_validate_json(text)
    except ValidationError as error:
        raise UserError(f"The {DATASET_FILE} of '{url}' cannot be used: {explain(error)}.") from error


def _ingest_command(text: bytes) -> str:
    """Return the command that makes a dataset anew, as far as its `dataset.json` says."""
    try:
        facts = json.loads(text)
        source, layout, space = facts["source"], facts["layout"], facts["label_space"]["name"]
    except (ValueError, KeyError, TypeError):
        return ""
    return f": fer-pipeline ingest {source} --layout {layout} --label-space {space} --out NEW"


def sample_files(url: str) -> list[str]:
    """Return the Parquet files with the samples of the dataset at `url`, in order."""
    folder = storage.join(url, SAMPLES_FOLDER)
    return [storage.join(folder, name) for name in storage.list_names(folder)]


def read_samples(url: str, columns: list[str]) -> pa.Table:
    """Return some columns of the samples of the dataset at `url`, in order; only those are read."""
    tables = []
    for uri in sample_files(url):
        with storage.opened_parquet(uri) as parquet:
            tables.append(parquet.read(columns))
    return pa.concat_tables(tables)


def read_flagged(url: str) -> pa.Table:
    """Return the flagged samples of the dataset at `url` (`duplicates.FLAGGED`)."""
    return storage.read_table(storage.join(url, FLAGGED_FILE))


def count(samples: pa.Table, space: LabelSpace) -> dict[str, dict[str, int]]:
    """Return the number of samples by split and class."""
    rows = samples.group_by(["split", "label"]).aggregate([([], "count_all")]).to_pylist()
    pairs = {(row["split"], row["label"]): row["count_all"] for row in rows}
    splits = sorted({split for split, _ in pairs})
    return {split: {name: pairs.get((split, index), 0) for index, name in enumerate(space.classes)} for split in splits}
