"""A run or a table whose labels people corrected: the faces that have an answer, cut from their images as labelling cuts them."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from fer_pipeline.archive.record import Record
from fer_pipeline.base import storage
from fer_pipeline.base.errors import UserError
from fer_pipeline.base.storage import parquet
from fer_pipeline.datasets.layouts.layout import (
    AUDIT,
    DAMAGED,
    DROPPED,
    AnnotatedFace,
    Excluded,
    FacesMode,
    LayoutSpec,
    Part,
    Reading,
    Sample,
    class_of,
)
from fer_pipeline.faces.detectors import DETECTORS
from fer_pipeline.labelling.corrections import CANNOT_TELL, NOT_A_FACE, Reviews, counted, majority, measures, read_corrections
from fer_pipeline.labelling.manifest import find_records
from fer_pipeline.labelling.run import CORRECTIONS_FOLDER, RUN, RunFolder, RunRecord
from fer_pipeline.labelling.schemas import ADDED, IMAGES
from fer_pipeline.models.label_space import FER7, LabelSpace
from fer_pipeline.table.delta import TABLE_CORRECTIONS, LabelTable
from fer_pipeline.table.places import find_images
from fer_pipeline.table.rows import ROWS

SHARDS_A_PART = 32
VOTE_CLASSES = ("angry", "contempt", "disgust", "fear", "happy", "neutral", "sad", "surprise")
_OF_IMAGE = ["uri", "member", "time_ms", "path", "content_sha256"]
_OF_ROW = pa.schema([ROWS.field(name) for name in (*_OF_IMAGE, "etag", "size_bytes", "source", "faces")])
BATCH_ROWS = 16_384


class Corrections(ABC):
    """The class is the answer of most people, and the votes are all answers.

    The split is `train`, or `audit` for faces that were chosen at random: what measures a model is never learned.
    """

    def __init__(self, source: str, space: LabelSpace) -> None:
        self.source, self.space = source, space

    @property
    @abstractmethod
    def folder(self) -> str:
        """Where the corrections are."""

    @abstractmethod
    def parts(self) -> list[Part]: ...

    @abstractmethod
    def images(self, part: Part) -> Iterator[pa.Table]:
        """Yield rows of images with their faces."""

    @abstractmethod
    def records(self, faces: pa.Table) -> list[Record | None]:
        """Return where the image of each face is; None where that is not known any more."""

    @abstractmethod
    def name_of(self, face: dict[str, Any]) -> str:
        """Return a name of the face's image that no other image has."""

    def plan(self) -> list[Part]:
        parts = self.parts()
        if not len(read_corrections(self.folder)):
            raise UserError(f"'{self.source}' holds no corrections: add some by `fer-pipeline correct` first.")
        return parts

    def read(self, part: Part) -> Reading:
        reviews = Reviews(read_corrections(self.folder))
        for images in self.images(part):
            faces = _flat(images)
            given = reviews.of(faces)
            chosen = faces.take(pa.array(sorted(given), pa.int64()))
            for row, place, record in zip(chosen.to_pylist(), sorted(given), self.records(chosen), strict=True):
                yield self._sample(row, given[place], record)

    def _sample(self, row: dict[str, Any], given: list[dict[str, Any]], record: Record | None) -> Sample | Excluded:
        moment = "" if row["time_ms"] is None else f" at {row['time_ms']} ms"
        source = f"{self.name_of(row)}{moment}#{row['face_id']}"
        measuring = [one for one in given if measures(one)]  # blind answers are not mixed with others
        counts = counted(measuring or given)
        answer = majority(counts)
        if answer is None:
            return Excluded(DROPPED, source, "as many people say one thing as another")
        if answer in (NOT_A_FACE, CANNOT_TELL):
            return Excluded(DROPPED, source, f"people say: {answer.replace('_', ' ')}")
        label = class_of(answer, self.space, source)
        if isinstance(label, Excluded):
            return label
        if record is None:
            return Excluded(DAMAGED, source, "its container is gone, or holds it no more")
        points = row["landmarks"]
        landmarks = tuple(zip(points[::2], points[1::2], strict=True)) if points else None
        face = AnnotatedFace((row["x"], row["y"], row["w"], row["h"]), landmarks)
        split = AUDIT if measuring else "train"
        return Sample(record, label, split, source, tuple(float(counts[name]) for name in VOTE_CLASSES), face)


class RunCorrections(Corrections):
    """Those of a run."""

    @property
    def folder(self) -> str:
        return RunFolder(self.source).path(CORRECTIONS_FOLDER)

    def parts(self) -> list[Part]:
        _record_of(self.source)
        shards = sorted(RunFolder(self.source).committed())
        parts = (shards[start : start + SHARDS_A_PART] for start in range(0, len(shards), SHARDS_A_PART))
        return [Part(self.source, part[0], part[-1] + 1) for part in parts]

    def images(self, part: Part) -> Iterator[pa.Table]:
        run, columns = RunFolder(self.source), [*_OF_IMAGE, "record_id", "faces"]
        shards = [shard for shard in sorted(run.committed()) if part.start <= shard < part.end]
        parts = [parquet.read_own(run.images_path(shard), IMAGES, columns, added=ADDED) for shard in shards]
        yield pa.concat_tables(parts).unify_dictionaries()

    def records(self, faces: pa.Table) -> list[Record | None]:
        run, ids = _record_of(self.source), faces["record_id"].to_pylist()
        storage.require_below(set(faces["uri"].to_pylist()), run.roots, f"The run in '{self.source}'")
        found = find_records(RunFolder(self.source).manifest_prefix(run.run_id), sorted(set(ids)))
        return [found.get(one) for one in ids]

    def name_of(self, face: dict[str, Any]) -> str:
        return str(face["path"])


class TableCorrections(Corrections):
    """Those of a table. Its images are where the rows say, in the sources that were published."""

    @property
    def folder(self) -> str:
        return storage.join(self.source, TABLE_CORRECTIONS)

    def parts(self) -> list[Part]:
        return [Part(uri) for uri in _table_of(self.source)]

    def images(self, part: Part) -> Iterator[pa.Table]:
        with parquet.opened(part.uri) as file:
            for batch in file.iter_batches(BATCH_ROWS, columns=_OF_ROW.names):
                yield parquet.with_columns(pa.Table.from_batches([batch]), _OF_ROW).cast(_OF_ROW)

    def records(self, faces: pa.Table) -> list[Record | None]:
        for uri, source in zip(faces["uri"].to_pylist(), faces["source"].to_pylist(), strict=True):
            storage.require_below({uri}, (source,), f"The table in '{self.source}'")
        return find_images(faces, lambda uri: True)

    def name_of(self, face: dict[str, Any]) -> str:
        return str(face["uri"]) if face["member"] is None else f"{face['uri']}/{face['member']}"


def _table_of(source: str) -> list[str]:
    """Return the data files of a table; none if there is no table."""
    if not _is_table(source):
        return []
    table = LabelTable(source)
    return [table.path(file.path) for file in table.files]


def _is_table(source: str) -> bool:
    return "_delta_log" in storage.list_names(source)


def _content_of(source: str) -> str | None:
    """Return a digest of all corrections, and of which labels they are."""
    layout = _open(source, FER7)
    rows = sorted(map(str, read_corrections(layout.folder).to_pylist()))
    labels = LabelTable(source).version if _is_table(source) else None
    return hashlib.sha256("\n".join([str(labels), *rows]).encode()).hexdigest() if rows else None


def _record_of(source: str) -> RunRecord:
    record = RunFolder(source).load() if storage.exists(storage.join(source, RUN)) else None
    if record is None:
        raise UserError(f"The source '{source}' holds no labelling run and no published table: layout corrections needs one.")
    return record


def _open(source: str, space: LabelSpace) -> Corrections:
    return (TableCorrections if _is_table(source) else RunCorrections)(source, space)


def _faces_of(source: str) -> FacesMode:
    """Return how labelling cuts faces: crops that were labelled whole stay whole."""
    if storage.exists(storage.join(source, RUN)):
        detectors = {_record_of(source).detector.name}
    else:
        files = _table_of(source)
        parts = [parquet.read_columns(file, ["detector"])["detector"] for file in files]
        detectors = {name for part in parts for name in pc.unique(part).to_pylist()}
    whole = {name for name in detectors if name in DETECTORS and not DETECTORS[name].finds_faces}
    if whole and detectors - whole:
        raise UserError(f"'{source}' holds labels of whole images and of detected faces: name --faces to cut all in one way.")
    return "whole" if whole else "align"


def _flat(images: pa.Table) -> pa.Table:
    """Return one row for each face, with its image's columns."""
    nested = images["faces"].combine_chunks()
    parents = images.drop_columns(["faces"]).take(pc.list_parent_indices(nested))
    faces = pa.Table.from_struct_array(pc.list_flatten(nested)).select(["face_id", *"xywh", "landmarks"])
    return parquet.joined(parents, faces)


CORRECTIONS_LAYOUT = LayoutSpec(
    name="corrections",
    help="a run folder or a table, the faces that people answered about (`fer-pipeline correct`)",
    open=lambda source, space, options: _open(source, space),
    faces="align",
    faces_of=_faces_of,
    content_of=_content_of,
    vote_classes=VOTE_CLASSES,
    terms="Those of the archive whose faces people answered about.",
)
