"""Ingest a labelled dataset: each part of the source is read, validated and written by one Ray Data task."""

import hashlib
import logging
import re
from functools import partial
from typing import Any

import pyarrow as pa
import ray
import ray.data

from fer_pipeline.core import dataset, storage
from fer_pipeline.core.config import Config
from fer_pipeline.core.dataset import CARD, QUARANTINED_KEPT, SAMPLES_FOLDER, DatasetCard
from fer_pipeline.core.errors import UserError
from fer_pipeline.core.labels import LabelSpace, label_space
from fer_pipeline.jobs.cluster import ClusterConfig, connected
from fer_pipeline.jobs.progress import progress
from fer_pipeline.sources.datasets import LAYOUTS, Part
from fer_pipeline.stages.samples import validate

log = logging.getLogger(__name__)


class IngestConfig(Config):
    """Bring a labelled dataset into `samples/*.parquet` and `dataset.json`."""

    source: str
    """CSV file, folder, tar or s3:// URL of the dataset."""
    out: str
    """Folder of the dataset: new or empty."""
    layout: str = "image-folder"
    """`fer2013-csv` (Kaggle's emotion,pixels,Usage) or `image-folder` ([split/]class/name, also in a tar or zip)."""
    label_space: str = "fer7"
    """Which classes the labels are of."""


def run(config: IngestConfig, cluster: ClusterConfig = ClusterConfig()) -> DatasetCard:
    """Ingest the dataset and return its card. Raise UserError for what the user must mend, with nothing written."""
    source, out = storage.normalize(config.source), storage.normalize(config.out)
    if config.layout not in LAYOUTS:
        raise UserError(f"There is no layout '{config.layout}'; choose one of {', '.join(LAYOUTS)}.")
    space = label_space(config.label_space)
    storage.require_access(source, out)
    if not storage.exists(source):
        raise UserError(f"The source '{source}' does not exist.")
    samples = storage.join(out, SAMPLES_FOLDER)
    leftovers = storage.list_names(samples)  # of an ingest that did not end
    if set(storage.list_names(out)) - {SAMPLES_FOLDER} or not all(re.fullmatch(r"\d{5}\.parquet", name) for name in leftovers):
        raise UserError(f"'{out}' is not empty: choose a new folder for --out.")
    parts = LAYOUTS[config.layout][0](source)
    with connected(cluster, source, out):
        for name in leftovers:
            storage.remove(storage.join(samples, name))
        quarantined = _read(parts, config.layout, space, out)
    card = _card(config, source, out, space, quarantined)
    storage.write_bytes(storage.join(out, CARD), card.model_dump_json(indent=2).encode())
    log.info("%d samples, %d quarantined: %s", card.samples, card.quarantined, out)
    return card


def _read(parts: list[Part], layout: str, space: LabelSpace, out: str) -> list[dict[str, str]]:
    """Write each part's samples; return the quarantined records in the order of the source."""
    ray.data.DataContext.get_current().enable_progress_bars = False
    items = ray.data.from_items([{"number": number} for number in range(len(parts))], override_num_blocks=len(parts))
    references = [ray.put(part) for part in parts]
    found: dict[int, list[dict[str, str]]] = {}
    with progress("ingesting parts", len(parts)) as advance:
        for row in items.map(partial(_read_part, references, layout, space, out), num_cpus=1).iter_rows():
            found[row["number"]] = [{"source": s, "reason": r} for s, r in zip(row["sources"], row["reasons"], strict=True)]
            advance(1)
    return [record for number in sorted(found) for record in found[number]]


def _read_part(
    references: list[ray.ObjectRef[Part]], layout: str, space: LabelSpace, out: str, row: dict[str, Any]
) -> dict[str, Any]:
    number = int(row["number"])
    samples, quarantined = validate(LAYOUTS[layout][1](ray.get(references[number]), space))
    if len(samples):
        storage.write_table(storage.join(out, SAMPLES_FOLDER, f"{number:05d}.parquet"), samples, row_group_size=4096)
    return {
        "number": number,
        "sources": [record.source for record in quarantined],
        "reasons": [record.reason for record in quarantined],
    }


def _card(config: IngestConfig, source: str, out: str, space: LabelSpace, quarantined: list[dict[str, str]]) -> DatasetCard:
    if not storage.list_names(storage.join(out, SAMPLES_FOLDER)):
        reason = quarantined[0]["reason"] if quarantined else "it holds no records"
        raise UserError(f"No record of '{source}' is a sample; the first was refused because {reason}.")
    samples = dataset.read_samples(out, ["sha256", "split", "label"])
    return DatasetCard(
        source=source,
        layout=config.layout,
        label_space=space,
        samples=len(samples),
        counts=dataset.count(samples, space),
        duplicates=dataset.find_duplicates(samples),
        quarantined=len(quarantined),
        quarantined_records=quarantined[:QUARANTINED_KEPT],
        digest=_digest(samples),
    )


def _digest(samples: pa.Table) -> str:
    digest = hashlib.sha256()
    for values in zip(*(samples[name].to_pylist() for name in ("sha256", "split", "label")), strict=True):
        digest.update("|".join(map(str, values)).encode())
    return digest.hexdigest()
