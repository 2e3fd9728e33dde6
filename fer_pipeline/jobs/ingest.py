"""Ingest a labelled dataset: each part of the source is read, validated and written by one Ray Data task."""

import hashlib
import logging
import re
from collections import Counter
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import ray
import ray.data
from pydantic import Field

from fer_pipeline.core import dataset, duplicates, storage
from fer_pipeline.core.config import Config
from fer_pipeline.core.dataset import CARD, QUARANTINED_KEPT, SAMPLES_FOLDER, SUSPECTS_FILE, DatasetCard
from fer_pipeline.core.errors import UserError
from fer_pipeline.core.labels import LabelSpace, label_space
from fer_pipeline.core.splits import hold_out
from fer_pipeline.jobs.cluster import ClusterConfig, connected
from fer_pipeline.jobs.progress import progress
from fer_pipeline.sources.layouts import open_layout
from fer_pipeline.sources.layouts.fer2013 import VOTE_CLASSES
from fer_pipeline.sources.layouts.samples import DROPPED, MISLABELLED, Layout, Part
from fer_pipeline.stages.crops import Cropper, Faces
from fer_pipeline.stages.detect import load_detector
from fer_pipeline.stages.samples import validate
from fer_pipeline.stages.weights import THRESHOLDS, DetectorWeights, resolve_detector

log = logging.getLogger(__name__)

DETECT_PX = 640


class IngestConfig(Config):
    """Bring a labelled dataset into `samples/*.parquet`, `suspects.parquet` and `dataset.json`."""

    source: str
    """Folder, file or s3:// URL of the dataset."""
    out: str
    """Folder of the dataset: new or empty."""
    layout: str = "image-folder"
    """`image-folder` ([split/]class/name, also in tars and zips), `fer2013-csv`, `webdataset`, `parquet`, `affectnet-csv`,
    `affectnet-npy` or `rafdb`."""
    label_space: str = "fer7"
    """Which classes the labels are of: `fer7`, `affectnet8` or `ferplus8`. Other expressions are dropped and counted."""
    votes: str | None = None
    """FER+'s `fer2013new.csv`, whose votes are joined to the rows of layout `fer2013-csv`."""
    faces: Faces | None = None
    """`whole`: images are samples as they are; `box`: the face is cut out; `align`: by its landmarks. By default `box` where the
    layout marks faces (AffectNet), else `whole`. Images without a face are dropped and counted."""
    detector: Literal["auto", "yunet", "mtcnn"] = "auto"
    """Finds the faces that the layout does not mark."""
    detector_weights: str | None = None
    """File of the detector's weights, where they are not to be looked for."""
    crop_px: int = Field(224, ge=16)
    """Side of the faces cut out."""
    validation_share: float = Field(0.0, ge=0, lt=1)
    """Share of every class of the split `train` to hold out as `validation`; copies stay on one side."""
    test_share: float = Field(0.0, ge=0, lt=1)
    """Share to hold out as `test` likewise."""
    group_by: str | None = None
    """Regular expression on a sample's name: samples in which it finds the same (its first group, or all of it) stay on one
    side, such as the pictures of one person."""
    seed: int = 0
    """Decides which samples are held out."""
    skip_mislabelled: bool = False
    """Quarantine records whose label or box is wrong; without it they stop the ingest."""


@dataclass(frozen=True)
class Reader:
    """What every task needs to read its parts."""

    layout: Layout
    space: LabelSpace
    out: str
    faces: Faces
    crop_px: int
    detector: DetectorWeights


def run(config: IngestConfig, cluster: ClusterConfig = ClusterConfig()) -> DatasetCard:
    """Ingest the dataset and return its card. Raise UserError for what the user must mend, with nothing written."""
    source, out = storage.normalize(config.source), storage.normalize(config.out)
    space = label_space(config.label_space)
    votes = storage.normalize(config.votes) if config.votes else None
    layout = open_layout(config.layout, source, space, votes)
    _check(config)
    storage.require_access(source, out)
    if not storage.exists(source):
        raise UserError(f"The source '{source}' does not exist.")
    samples = storage.join(out, SAMPLES_FOLDER)
    leftovers = storage.list_names(samples)  # of an ingest that did not end
    if set(storage.list_names(out)) - {SAMPLES_FOLDER, SUSPECTS_FILE} or not all(
        re.fullmatch(r"\d{5}\.parquet", name) for name in leftovers
    ):
        raise UserError(f"'{out}' is not empty: choose a new folder for --out.")
    faces = config.faces or ("box" if config.layout == "affectnet-csv" else "whole")
    detector = resolve_detector("none" if faces == "whole" else config.detector, config.detector_weights)
    parts = layout.plan()
    with connected(cluster, source, out):
        for name in leftovers:
            storage.remove(storage.join(samples, name))
        reader = ray.put(Reader(layout, space, out, faces, config.crop_px, detector))
        excluded = _read(parts, reader)
        _stop_at_wrong_labels(config, excluded)
        _require_samples(source, out, excluded)
        if config.validation_share or config.test_share:
            _hold_out(config, out, space)
    card = _card(config, source, out, space, excluded)
    storage.write_bytes(storage.join(out, CARD), card.model_dump_json(indent=2).encode())
    log.info("%d samples, %d dropped, %d quarantined: %s", card.samples, sum(card.dropped.values()), card.quarantined, out)
    return card


def _check(config: IngestConfig) -> None:
    if config.validation_share + config.test_share >= 1:
        raise UserError("--validation-share and --test-share leave nothing to train on: together they must be below 1.")
    if config.group_by:
        try:
            re.compile(config.group_by)
        except re.error as error:
            raise UserError(f"--group-by '{config.group_by}' is not a regular expression: {error}.") from error


Exclusion = dict[str, str]
"""`kind`, `source` and `reason` of a record that is no sample."""


def _read(parts: list[Part], reader: ray.ObjectRef[Reader]) -> list[Exclusion]:
    """Write each part's samples; return the records that are none, in the order of the source."""
    ray.data.DataContext.get_current().enable_progress_bars = False
    items = ray.data.from_items([{"number": number} for number in range(len(parts))], override_num_blocks=len(parts))
    references = [ray.put(part) for part in parts]
    found: dict[int, list[Exclusion]] = {}
    with progress("ingesting parts", len(parts)) as advance:
        for row in items.map(partial(_read_part, references, reader), num_cpus=1).iter_rows():
            found[row["number"]] = list(row["excluded"])
            advance(1)
    return [record for number in sorted(found) for record in found[number]]


def _read_part(references: list[ray.ObjectRef[Part]], shared: ray.ObjectRef[Reader], row: dict[str, Any]) -> dict[str, Any]:
    number, reader = int(row["number"]), ray.get(shared)
    cropper = None
    if reader.faces != "whole":
        detector = load_detector(reader.detector, DETECT_PX, THRESHOLDS[reader.detector.name])
        cropper = Cropper(reader.faces, reader.crop_px, detector)
    samples, excluded = validate(reader.layout.read(ray.get(references[number])), reader.space, cropper)
    if len(samples):
        storage.write_table(_samples_file(reader.out, number), samples, row_group_size=1024)
    return {"number": number, "excluded": [{"kind": e.kind, "source": e.source, "reason": e.reason} for e in excluded]}


def _samples_file(out: str, number: int) -> str:
    return storage.join(out, SAMPLES_FOLDER, f"{number:05d}.parquet")


def _stop_at_wrong_labels(config: IngestConfig, excluded: list[Exclusion]) -> None:
    wrong = [record for record in excluded if record["kind"] == MISLABELLED]
    if wrong and not config.skip_mislabelled:
        raise UserError(
            f"{len(wrong)} records are mislabelled, the first at {wrong[0]['source']}: {wrong[0]['reason']}. Mend them, choose "
            "another --label-space, or quarantine them with --skip-mislabelled."
        )


def _require_samples(source: str, out: str, excluded: list[Exclusion]) -> None:
    if not storage.list_names(storage.join(out, SAMPLES_FOLDER)):
        reason = excluded[0]["reason"] if excluded else "it holds no records"
        raise UserError(f"No record of '{source}' is a sample; the first was refused because {reason}.")


def _hold_out(config: IngestConfig, out: str, space: LabelSpace) -> None:
    """Give some samples of the split `train` another one, and write the files that hold them again."""
    columns = dataset.read_samples(out, ["sample_id", "source", *duplicates.COLUMNS[1:]])
    splits = np.array(columns["split"].to_pylist(), object)
    for name, share in (("test", config.test_share), ("validation", config.validation_share)):
        if share and name in splits:
            raise UserError(f"The dataset has a split '{name}' already: leave out --{name}-share.")
    _, near, _ = duplicates.copy_keys(columns)
    names = [_group(config.group_by, source) for source in columns["source"].to_pylist()]
    groups = duplicates.join_keys(near, names)
    labels = columns["label"].to_numpy()
    for name, share in (("test", config.test_share), ("validation", config.validation_share / (1 - config.test_share))):
        train = np.flatnonzero(splits == "train")
        if share:
            splits[train[hold_out(labels[train], groups[train], share, config.seed)]] = name
    first = 0
    tasks = []
    for uri in dataset.sample_files(out):
        with storage.opened_parquet(uri) as parquet:
            rows = parquet.metadata.num_rows
        tasks.append(_set_split.remote(uri, list(splits[first : first + rows])))
        first += rows
    ray.get(tasks)


def _group(pattern: str | None, source: str) -> str | None:
    """Return what a sample shares with others of its group; None for one that is alone."""
    found = re.search(pattern, source) if pattern else None
    return (found[1] if found.re.groups else found[0]) if found else None


@ray.remote(num_cpus=1)
def _set_split(uri: str, splits: list[str]) -> None:
    samples = storage.read_table(uri)
    index = samples.schema.get_field_index("split")
    changed = samples.set_column(index, samples.schema.field(index), pa.array(splits))
    storage.write_table(uri, changed, row_group_size=1024)


def _card(config: IngestConfig, source: str, out: str, space: LabelSpace, excluded: list[Exclusion]) -> DatasetCard:
    samples = dataset.read_samples(out, duplicates.COLUMNS)
    found, suspects = duplicates.inspect(samples)
    storage.write_table(storage.join(out, SUSPECTS_FILE), suspects)
    quarantined = [{"source": e["source"], "reason": e["reason"]} for e in excluded if e["kind"] != DROPPED]
    return DatasetCard(
        source=source,
        layout=config.layout,
        label_space=space,
        samples=len(samples),
        counts=dataset.count(samples, space),
        vote_classes=VOTE_CLASSES if config.votes else (),
        duplicates=found,
        suspects=dict(Counter(suspects["reason"].to_pylist())),
        dropped=dict(Counter(e["reason"] for e in excluded if e["kind"] == DROPPED)),
        quarantined=len(quarantined),
        quarantined_records=quarantined[:QUARANTINED_KEPT],
        digest=_digest(out),
    )


def _digest(out: str) -> str:
    digest, names = hashlib.sha256(), ["sha256", "split", "label"]
    for uri in dataset.sample_files(out):
        with storage.opened_parquet(uri) as parquet:
            samples = parquet.read(names)
        for values in zip(*(samples[name].to_pylist() for name in names), strict=True):
            digest.update("|".join(map(str, values)).encode())
    return digest.hexdigest()
