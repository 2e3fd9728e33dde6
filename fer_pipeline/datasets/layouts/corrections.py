"""A run whose labels people corrected: the faces that have an answer, cut from their images as labelling cuts them."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from fer_pipeline.archive.record import Record
from fer_pipeline.base import storage
from fer_pipeline.base.errors import UserError
from fer_pipeline.base.storage import parquet
from fer_pipeline.datasets.layouts.layout import (
    DROPPED,
    AnnotatedFace,
    Excluded,
    LayoutSpec,
    Part,
    Reading,
    Sample,
    class_of,
)
from fer_pipeline.labelling.corrections import CANNOT_TELL, NOT_A_FACE, Reviews, majority, read_corrections
from fer_pipeline.labelling.manifest import find_records
from fer_pipeline.labelling.run import CORRECTIONS_FOLDER, RUN, RunFolder, RunRecord
from fer_pipeline.labelling.schemas import ADDED, IMAGES
from fer_pipeline.models.label_space import LabelSpace

SHARDS_A_PART = 32
VOTE_CLASSES = ("angry", "contempt", "disgust", "fear", "happy", "neutral", "sad", "surprise")
_OF_IMAGE = ("record_id", "uri", "member", "time_ms", "path", "content_sha256")


@dataclass(frozen=True)
class Corrections:
    """The class is the answer of most people, and the votes are all answers. The split is `train`."""

    source: str
    space: LabelSpace

    def plan(self) -> list[Part]:
        self._run()
        if not len(read_corrections(self._folder.path(CORRECTIONS_FOLDER))):
            raise UserError(f"The run in '{self.source}' holds no corrections: add some by `fer-pipeline correct` first.")
        count = len(self._folder.committed())
        return [Part(self.source, start, min(count, start + SHARDS_A_PART)) for start in range(0, count, SHARDS_A_PART)]

    def read(self, part: Part) -> Reading:
        run, shards = self._run(), sorted(self._folder.committed())[part.start : part.end]
        reviews = Reviews(read_corrections(self._folder.path(CORRECTIONS_FOLDER)))
        columns = [*_OF_IMAGE, "faces"]
        parts = [parquet.read_own(self._folder.images_path(shard), IMAGES, columns, added=ADDED) for shard in shards]
        faces = _flat(pa.concat_tables(parts).unify_dictionaries())
        given = reviews.given(faces)
        chosen = faces.take(pa.array(sorted(given), pa.int64())).to_pylist()
        storage.require_below({row["uri"] for row in chosen}, run.roots, f"The run in '{self.source}'")
        records = find_records(self._folder.manifest_prefix(run.run_id), sorted({row["record_id"] for row in chosen}))
        for row, place in zip(chosen, sorted(given), strict=True):
            yield self._sample(row, given[place], records[row["record_id"]])

    @property
    def _folder(self) -> RunFolder:
        return RunFolder(self.source)

    def _run(self) -> RunRecord:
        record = self._folder.load() if storage.exists(self._folder.path(RUN)) else None
        if record is None:
            raise UserError(f"The source '{self.source}' holds no labelling run: layout corrections needs one.")
        return record

    def _sample(self, row: dict[str, Any], given: Mapping[str, str], record: Record) -> Sample | Excluded:
        moment = "" if row["time_ms"] is None else f" at {row['time_ms']} ms"
        source = f"{row['path']}{moment}#{row['face_id']}"
        counts = Counter(given.values())
        answer = majority(counts)
        if answer is None:
            return Excluded(DROPPED, source, "as many people say one thing as another")
        if answer in (NOT_A_FACE, CANNOT_TELL):
            return Excluded(DROPPED, source, f"people say: {answer.replace('_', ' ')}")
        label = class_of(answer, self.space, source)
        if isinstance(label, Excluded):
            return label
        points = row["landmarks"]
        landmarks = tuple(zip(points[::2], points[1::2], strict=True)) if points else None
        face = AnnotatedFace((row["x"], row["y"], row["w"], row["h"]), landmarks)
        return Sample(record, label, "train", source, tuple(float(counts[name]) for name in VOTE_CLASSES), face)


def _flat(images: pa.Table) -> pa.Table:
    """Return one row for each face, with its image's columns."""
    nested = images["faces"].combine_chunks()
    parents = images.select(list(_OF_IMAGE)).take(pc.list_parent_indices(nested))
    faces = pa.Table.from_struct_array(pc.list_flatten(nested)).select(["face_id", *"xywh", "landmarks"])
    return parquet.joined(parents, faces)


CORRECTIONS_LAYOUT = LayoutSpec(
    name="corrections",
    help="a run folder, the faces that people answered about (`fer-pipeline correct`)",
    open=lambda source, space, options: Corrections(source, space),
    faces="align",
    vote_classes=VOTE_CLASSES,
    terms="Those of the archive whose faces people answered about.",
)
