"""Ingest a labelled dataset: one Ray task reads, validates and writes each part of the source."""

import hashlib
import logging
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field

from fer_pipeline.base import storage
from fer_pipeline.base.config import NAME_OR_PLACE, PLACE, Config, require_same
from fer_pipeline.base.errors import UserError
from fer_pipeline.base.identity import Identity
from fer_pipeline.base.isolated import alarm
from fer_pipeline.base.memory import MEMORY_BYTES, limit_memory
from fer_pipeline.base.storage import parquet
from fer_pipeline.datasets import dataset, duplicates
from fer_pipeline.datasets.crops import Cropper
from fer_pipeline.datasets.dataset import (
    DATASET_FILE,
    ENTRIES_KEPT,
    FLAGGED_FILE,
    SAMPLES_FOLDER,
    DatasetInfo,
    FaceExtraction,
)
from fer_pipeline.datasets.layouts import LAYOUT_HELP, LAYOUTS, LayoutName, open_layout
from fer_pipeline.datasets.layouts.layout import DROPPED, MISLABELLED, FacesMode, Layout, LayoutOptions, Part
from fer_pipeline.datasets.samples import TIMEOUT_S, validate
from fer_pipeline.datasets.splits import hold_out
from fer_pipeline.engine.connect import ClusterConfig, connected
from fer_pipeline.engine.machines import Machines
from fer_pipeline.engine.progress import progress
from fer_pipeline.engine.tasks import Shared, fan_out, share
from fer_pipeline.faces.detectors import DETECTOR_HELP, DETECTORS, DetectorName, load_detector, resolve_detector
from fer_pipeline.faces.detectors.spec import ResolvedDetector
from fer_pipeline.jobs.lineage import traced
from fer_pipeline.models.framing import FRAMINGS, Framing, load_framing
from fer_pipeline.models.label_space import LABEL_SPACES, NUMBERINGS, LabelSpace, load_label_space, load_numbering

log = logging.getLogger(__name__)

DETECT_PX = 640


class IngestConfig(Config):
    """Convert a labelled dataset to `samples/*.parquet`, `flagged.parquet` and `dataset.json`."""

    source: Annotated[str, PLACE]
    """Folder, file or s3:// URL of the dataset."""
    out: Annotated[str, PLACE]
    """Folder of the dataset: new or empty."""
    layout: LayoutName = Field("image-folder", description=f"Layout of the dataset. {LAYOUT_HELP}.")
    label_space: Annotated[str, NAME_OR_PLACE] = Field(
        "fer7",
        description=f"Classes of the labels: {', '.join(LABEL_SPACES)}, or a .toml file with `name` and `classes`. "
        "Samples of other expressions are dropped and counted.",
    )
    numbering: Annotated[str | None, NAME_OR_PLACE] = Field(
        None,
        description="Meaning of numeric labels in folders, WebDatasets and Parquet files: "
        f"{', '.join(NUMBERINGS)}, or a .toml file of a label space. Without it, numbers that the dataset does not explain "
        "are an error.",
    )
    votes: Annotated[str | None, PLACE] = None
    """FER+'s `fer2013new.csv`; its votes are joined to the rows of layout `fer2013-csv`."""
    faces: FacesMode | None = None
    """`whole`: keep images as they are; `box`: cut out the face; `align`: cut it out by its landmarks. The default is `box` if
    the layout marks faces (AffectNet), `align` for corrections, else `whole`. Images without a face are dropped and counted."""
    framing: Annotated[str | None, NAME_OR_PLACE] = None
    """Position of the face in a sample: `fer2013`, the folder of an ingested dataset, to cut as its faces were cut, or a .toml
    file with `landmarks`, `box_scale` and, for whole images, `cut`. A model that learns from the dataset labels faces with this
    framing. The default is the layout's, which is FER-2013's."""
    detector: DetectorName = Field("auto", description=f"Detector for faces that the layout does not mark. {DETECTOR_HELP}.")
    detector_weights: Annotated[str | None, PLACE] = None
    """File of the detector's weights, if they are not in their usual place."""
    crop_px: int = Field(224, ge=16)
    """Side of the cut faces."""
    validation_share: float = Field(0.0, ge=0, lt=1)
    """Share of each class of the split `train` to hold out as `validation`; copies of an image stay in one split."""
    test_share: float = Field(0.0, ge=0, lt=1)
    """Share of each class to hold out as `test`, in the same way."""
    group_by: str | None = None
    """Regular expression on a sample's name. Samples with the same match (of its first group, if it has one) stay in one split,
    such as the pictures of one person."""
    seed: int = Field(0, ge=0)
    """Seed that chooses the held-out samples."""
    skip_mislabelled: bool = False
    """Quarantine records with a wrong label or box; without it they are an error."""


@dataclass(frozen=True)
class IngestContext:
    """What each task needs to read its parts."""

    layout: Layout
    space: LabelSpace
    out: str
    faces: FaceExtraction
    detector: ResolvedDetector | None
    """None if samples are whole images."""


@traced("ingest", ("source",), ("out",))
def run(config: IngestConfig, cluster: ClusterConfig = ClusterConfig()) -> DatasetInfo:
    """Ingest the dataset and return the content of its `dataset.json`. If it raises UserError, no `dataset.json` is written."""
    source, out = storage.normalize(config.source), storage.normalize(config.out)
    space = load_label_space(config.label_space)
    votes = storage.normalize(config.votes) if config.votes else None
    options = LayoutOptions(votes, load_numbering(config.numbering) if config.numbering else None)
    layout = open_layout(config.layout, source, space, options)
    _check(config)
    storage.require_access(source, out)
    faces, detector = _face_extraction(config)
    settings = _settings(config, source, space, faces)
    if done := _done_before(out, settings):
        log.info("This dataset is finished, there is nothing to do: %s", out)
        return done
    if not storage.exists(source):
        raise UserError(f"The source '{source}' does not exist.")
    samples = storage.join(out, SAMPLES_FOLDER)
    leftovers = storage.list_names(samples)  # of an interrupted ingest
    if set(storage.list_names(out)) - {SAMPLES_FOLDER, FLAGGED_FILE} or not all(
        re.fullmatch(r"\d{5}\.parquet", name) for name in leftovers
    ):
        raise UserError(f"'{out}' is not empty: choose a new folder for --out.")
    parts = layout.plan()
    with connected(cluster, source, out) as machines:
        for name in leftovers:
            storage.remove(storage.join(samples, name))
        excluded, class_names = _read(parts, share(IngestContext(layout, space, out, faces, detector)), machines)
        _stop_at_wrong_labels(config, excluded)
        _require_samples(source, out, excluded)
        if config.validation_share or config.test_share:
            _hold_out(config, out, machines)
    facts = {"settings": settings, "class_names": dict(sorted(class_names.items())[:ENTRIES_KEPT])}
    info = _info(config, source, out, space, faces, excluded).model_copy(update=facts)
    storage.write_bytes(storage.join(out, DATASET_FILE), info.model_dump_json(indent=2).encode())
    if renamed := [f"'{found}' is {name}" for found, name in info.class_names.items() if found != name]:
        log.info("Labels of the source: %s", ", ".join(renamed))
    log.info("%d samples, %d dropped, %d quarantined: %s", info.samples, sum(info.dropped.values()), info.quarantined, out)
    return info


def _settings(config: IngestConfig, source: str, space: LabelSpace, faces: FaceExtraction) -> dict[str, Any]:
    """Return the settings that decide a dataset's samples, as JSON. The source is compared by its path only."""
    choice = {"layout", "validation_share", "test_share", "group_by", "seed", "skip_mislabelled"}
    facts: dict[str, Any] = {
        "source": source,
        "label_space": space.model_dump(mode="json"),
        "faces": faces.model_dump(mode="json"),
    }
    facts |= {"numbering": str(load_numbering(config.numbering)) if config.numbering else None, "votes": None}
    if config.votes and storage.exists(votes := storage.normalize(config.votes)):  # the layout reports a missing file
        facts["votes"] = hashlib.sha256(storage.read_bytes(votes)).hexdigest()
    content_of = LAYOUTS[config.layout].content_of
    if content_of and (content := content_of(source)):
        facts["content"] = content
    return facts | config.model_dump(mode="json", include=choice)


def _done_before(out: str, settings: dict[str, Any]) -> DatasetInfo | None:
    """Return the dataset with these settings in `out`; None if there is none. Raise UserError if the settings differ."""
    if not storage.exists(storage.join(out, DATASET_FILE)):
        return None
    found = dataset.read_dataset(out)
    if found.settings is None:
        return None
    require_same(f"The dataset in '{out}'", settings, found.settings)
    return found


def _face_extraction(config: IngestConfig) -> tuple[FaceExtraction, ResolvedDetector | None]:
    """Return how faces are cut, and the detector; raise UserError if the framing or the detector is not available."""
    spec = LAYOUTS[config.layout]
    mode = config.faces or (spec.faces_of(storage.normalize(config.source)) if spec.faces_of else spec.faces)
    framing = _framing_of(config.framing) if config.framing else spec.framing
    mode = "box" if mode == "align" and not config.faces and framing.cut == "box" else mode
    if mode == "whole":
        return FaceExtraction(mode=mode, framing=framing), None
    framing = framing.model_copy(update={"cut": "box" if mode == "box" else "landmarks"})
    detector = resolve_detector(config.detector, config.detector_weights)
    if not DETECTORS[detector.name].finds_faces:
        raise UserError(f"The detector '{detector.name}' finds no faces: use --faces whole, or choose another --detector.")
    identity = Identity(name=detector.name, digest=detector.digest)
    return FaceExtraction(mode=mode, framing=framing, crop_px=config.crop_px, detector=identity), detector


def _framing_of(name: str) -> Framing:
    """Return the framing with a name, in a file, or of the faces of an ingested dataset."""
    is_dataset = name not in FRAMINGS and storage.exists(storage.join(storage.normalize(name), DATASET_FILE))
    return dataset.read_dataset(storage.normalize(name)).faces.framing if is_dataset else load_framing(name)


def _check(config: IngestConfig) -> None:
    if config.validation_share + config.test_share >= 1:
        raise UserError("--validation-share and --test-share leave nothing to train on: together they must be below 1.")
    if config.group_by:
        try:
            re.compile(config.group_by)
        except re.error as error:
            raise UserError(f"--group-by '{config.group_by}' is not a regular expression: {error}.") from error


Exclusion = dict[str, str]
"""`kind`, `source` and `reason` of a record that does not become a sample."""


def _read(parts: list[Part], context: Shared[IngestContext], machines: Machines) -> tuple[list[Exclusion], dict[str, str]]:
    """Write each part's samples; return the excluded records in the order of the source, and the names of classes."""
    excluded, class_names = list[Exclusion](), dict[str, str]()
    with progress("ingesting parts", len(parts)) as advance:
        for some, names in fan_out(_read_part, enumerate(parts), context, machines=machines, careful=_read_part_carefully):
            excluded += some
            class_names |= names
            advance(1)
    return excluded, class_names


def _read_part_carefully(shared: Shared[IngestContext], numbered: tuple[int, Part]) -> tuple[list[Exclusion], dict[str, str]]:
    """Read a part that killed its worker, and exclude the records that kill it."""
    return _read_part(shared, numbered, careful=True)


def _read_part(
    shared: Shared[IngestContext], numbered: tuple[int, Part], careful: bool = False
) -> tuple[list[Exclusion], dict[str, str]]:
    number, part = numbered
    context, cropper = shared.get(), shared.load(_cropper)
    part_read = validate(context.layout.read(part), context.space, cropper, alarm(TIMEOUT_S), careful)
    if len(part_read.samples):
        parquet.write_table(_samples_file(context.out, number), part_read.samples, row_group_size=1024)
    excluded = [{"kind": e.kind, "source": e.source, "reason": e.reason} for e in part_read.excluded]
    return excluded, part_read.class_names


def _cropper(context: IngestContext) -> Cropper | None:
    cropper = None
    if context.detector is not None and context.faces.crop_px is not None:
        detector = load_detector(context.detector, DETECT_PX, DETECTORS[context.detector.name].threshold)
        cropper = Cropper(context.faces.framing, context.faces.crop_px, detector)
    limit_memory(MEMORY_BYTES)
    return cropper


def _samples_file(out: str, number: int) -> str:
    return storage.join(out, SAMPLES_FOLDER, f"{number:05d}.parquet")


def _stop_at_wrong_labels(config: IngestConfig, excluded: list[Exclusion]) -> None:
    wrong = [record for record in excluded if record["kind"] == MISLABELLED]
    if wrong and not config.skip_mislabelled:
        raise UserError(
            f"{len(wrong)} records are mislabelled, the first at {wrong[0]['source']}: {wrong[0]['reason']}. Fix them, or "
            "quarantine them with --skip-mislabelled."
        )


def _require_samples(source: str, out: str, excluded: list[Exclusion]) -> None:
    if not storage.list_names(storage.join(out, SAMPLES_FOLDER)):
        reason = f"the first was excluded: {excluded[0]['reason']}" if excluded else "it holds no records"
        raise UserError(f"The source '{source}' gives no samples; {reason}.")


def _hold_out(config: IngestConfig, out: str, machines: Machines) -> None:
    """Move some samples of the split `train` to `test` and `validation`, and rewrite the files."""
    columns = dataset.read_samples(out, ["sample_id", "source", *duplicates.DUPLICATE_COLUMNS[1:]])
    splits = np.array(columns["split"].to_pylist(), object)
    for name, wanted in (("test", config.test_share), ("validation", config.validation_share)):
        if wanted and name in splits:
            raise UserError(f"The dataset has a split '{name}' already: leave out --{name}-share.")
    _, near, _ = duplicates.copy_keys(columns)
    names = [_group(config.group_by, source) for source in columns["source"].to_pylist()]
    groups = duplicates.join_keys(near, names)
    labels = columns["label"].to_numpy()
    for name, wanted in (("test", config.test_share), ("validation", config.validation_share / (1 - config.test_share))):
        train = np.flatnonzero(splits == "train")
        if wanted:
            splits[train[hold_out(labels[train], groups[train], wanted, config.seed)]] = name
    for _ in fan_out(_set_splits, _splits_by_file(out, splits), machines=machines):
        pass


def _splits_by_file(out: str, splits: NDArray[Any]) -> Iterator[tuple[str, list[str]]]:
    """Yield each samples file with the splits of its rows."""
    first = 0
    for uri in dataset.sample_files(out):
        with parquet.opened(uri) as file:
            rows = file.metadata.num_rows
        yield uri, list(splits[first : first + rows])
        first += rows


def _group(pattern: str | None, source: str) -> str | None:
    """Return the key of a sample's group; None if it has no group."""
    found = re.search(pattern, source) if pattern else None
    return (found[1] if found.re.groups else found[0]) if found else None


def _set_splits(file: tuple[str, list[str]]) -> None:
    uri, splits = file
    samples = parquet.read_table(uri)
    index = samples.schema.get_field_index("split")
    changed = samples.set_column(index, samples.schema.field(index), pa.array(splits))
    parquet.write_table(uri, changed, row_group_size=1024)


def _info(
    config: IngestConfig, source: str, out: str, space: LabelSpace, faces: FaceExtraction, excluded: list[Exclusion]
) -> DatasetInfo:
    spec = LAYOUTS[config.layout]
    samples = dataset.read_samples(out, duplicates.DUPLICATE_COLUMNS)
    found, flagged = duplicates.inspect(samples)
    parquet.write_table(storage.join(out, FLAGGED_FILE), flagged)
    quarantined = [{"source": e["source"], "reason": e["reason"]} for e in excluded if e["kind"] != DROPPED]
    return DatasetInfo(
        source=source,
        layout=config.layout,
        terms=spec.terms,
        faces=faces,
        label_space=space,
        samples=len(samples),
        counts=dataset.count(samples, space),
        vote_classes=spec.vote_classes if config.votes or "votes" not in spec.options else (),
        duplicates=found,
        flagged=dict(Counter(flagged["reason"].to_pylist())),
        dropped=dict(Counter(e["reason"] for e in excluded if e["kind"] == DROPPED)),
        quarantined=len(quarantined),
        quarantined_records=quarantined[:ENTRIES_KEPT],
        digest=_digest(out, space),
    )


def _digest(out: str, space: LabelSpace) -> str:
    """Return the sha256 over the samples' images, splits and class names, in order."""
    digest, names = hashlib.sha256(), ["sha256", "split", "label"]
    for uri in dataset.sample_files(out):
        with parquet.opened(uri) as file:
            samples = file.read(names)
        for image, split, label in zip(*(samples[name].to_pylist() for name in names), strict=True):
            digest.update(f"{image}|{split}|{space.classes[label]}".encode())
    return digest.hexdigest()
