"""An ingested dataset: `samples/*.parquet` and `dataset.json`, which is written last and makes it one."""

from collections import Counter, defaultdict
from itertools import combinations
from typing import Any

import pyarrow as pa
from pydantic import Field, ValidationError

from fer_pipeline.core import storage
from fer_pipeline.core.config import Config, explain
from fer_pipeline.core.errors import UserError
from fer_pipeline.core.labels import LabelSpace

CARD, SAMPLES_FOLDER = "dataset.json", "samples"
QUARANTINED_KEPT = 1000


class Duplicates(Config):
    """Images with equal pixels, whatever their encoding."""

    groups: int
    """Groups of two or more equal images."""
    images: int
    """Images in those groups."""
    conflicting_groups: int
    """Groups that carry different labels."""
    within: dict[str, int]
    """By split: images that equal an earlier one of the split."""
    across: dict[str, int]
    """By `a -> b`: images of split b that stand in split a too."""


class DatasetCard(Config):
    """`dataset.json`."""

    source: str
    layout: str
    label_space: LabelSpace
    samples: int
    counts: dict[str, dict[str, int]]
    """Samples by split and class."""
    duplicates: Duplicates
    quarantined: int
    quarantined_records: list[dict[str, str]] = Field(default_factory=list)
    """The first of the records that are no samples: `source` and `reason`."""
    digest: str
    """sha256 over the samples' digests, labels and splits, in order."""


def read_card(url: str) -> DatasetCard:
    """Return the card of the dataset at `url`; raise UserError where there is none."""
    try:
        return DatasetCard.model_validate_json(storage.read_bytes(storage.join(url, CARD)))
    except storage.STORAGE_ERRORS as error:
        raise UserError(f"'{url}' is not an ingested dataset: it has no {CARD}; run fer-pipeline ingest first.") from error
    except ValidationError as error:
        raise UserError(f"The {CARD} of '{url}' cannot be used: {explain(error)}.") from error


def read_samples(url: str, columns: list[str] | None = None) -> pa.Table:
    """Return the samples of the dataset at `url`, in order."""
    folder = storage.join(url, SAMPLES_FOLDER)
    return pa.concat_tables(storage.read_table(storage.join(folder, name), columns) for name in storage.list_names(folder))


def count(samples: pa.Table, space: LabelSpace) -> dict[str, dict[str, int]]:
    """Return the number of samples by split and class."""
    pairs = Counter(zip(samples["split"].to_pylist(), samples["label"].to_pylist(), strict=True))
    splits = sorted({split for split, _ in pairs})
    return {split: {name: pairs[split, index] for index, name in enumerate(space.classes)} for split in splits}


def find_duplicates(samples: pa.Table) -> Duplicates:
    """Return how many images stand more than once."""
    groups: dict[str, list[tuple[str, int]]] = defaultdict(list)
    columns: list[list[Any]] = [samples[name].to_pylist() for name in ("sha256", "split", "label")]
    for digest, split, label in zip(*columns, strict=True):
        groups[digest].append((split, label))
    repeated = [group for group in groups.values() if len(group) > 1]
    within: Counter[str] = Counter()
    across: Counter[str] = Counter()
    for group in repeated:
        per_split = Counter(split for split, _ in group)
        within.update({split: number - 1 for split, number in per_split.items()})
        for one, other in combinations(sorted(per_split), 2):
            across.update({f"{one} -> {other}": per_split[other], f"{other} -> {one}": per_split[one]})
    return Duplicates(
        groups=len(repeated),
        images=sum(map(len, repeated)),
        conflicting_groups=sum(len({label for _, label in group}) > 1 for group in repeated),
        within=dict(within),
        across=dict(across),
    )
