"""An ingested dataset: `samples/*.parquet`, `suspects.parquet`, and `dataset.json`, which is written last and makes it one."""

import pyarrow as pa
from pydantic import Field, ValidationError

from fer_pipeline.core import storage
from fer_pipeline.core.config import Config, explain
from fer_pipeline.core.duplicates import Duplicates
from fer_pipeline.core.errors import UserError
from fer_pipeline.core.labels import LabelSpace

CARD, SAMPLES_FOLDER, SUSPECTS_FILE = "dataset.json", "samples", "suspects.parquet"
QUARANTINED_KEPT = 1000


class DatasetCard(Config):
    """`dataset.json`."""

    source: str
    layout: str
    label_space: LabelSpace
    samples: int
    counts: dict[str, dict[str, int]]
    """Samples by split and class."""
    vote_classes: tuple[str, ...] = ()
    """What the samples' `votes` are of."""
    duplicates: Duplicates
    suspects: dict[str, int] = Field(default_factory=dict)
    """Samples in `suspects.parquet` by reason: what `train --drop-leaks` leaves out."""
    dropped: dict[str, int] = Field(default_factory=dict)
    """Records left out by a rule of the dataset, by reason: classes that are no expression, images without a face."""
    quarantined: int
    quarantined_records: list[dict[str, str]] = Field(default_factory=list)
    """The first of the records that are no samples: `source` and `reason`."""
    digest: str
    """sha256 over the samples' digests, labels and splits, in order."""


def read_card(url: str) -> DatasetCard:
    """Return the card of the dataset at `url`; raise UserError where there is none."""
    try:
        card = DatasetCard.model_validate_json(storage.read_bytes(storage.join(url, CARD)))
    except storage.STORAGE_ERRORS as error:
        raise UserError(f"'{url}' is not an ingested dataset: it has no {CARD}; run fer-pipeline ingest first.") from error
    except ValidationError as error:
        raise UserError(f"The {CARD} of '{url}' cannot be used: {explain(error)}.") from error
    if not storage.exists(storage.join(url, SUSPECTS_FILE)):
        raise UserError(f"'{url}' was ingested by an earlier version, without {SUSPECTS_FILE}: ingest it again.")
    return card


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


def read_suspects(url: str) -> pa.Table:
    """Return the suspects of the dataset at `url` (`duplicates.SUSPECTS`)."""
    return storage.read_table(storage.join(url, SUSPECTS_FILE))


def count(samples: pa.Table, space: LabelSpace) -> dict[str, dict[str, int]]:
    """Return the number of samples by split and class."""
    rows = samples.group_by(["split", "label"]).aggregate([([], "count_all")]).to_pylist()
    pairs = {(row["split"], row["label"]): row["count_all"] for row in rows}
    splits = sorted({split for split, _ in pairs})
    return {split: {name: pairs.get((split, index), 0) for index, name in enumerate(space.classes)} for split in splits}
