"""The faces that a run's page shows: the most doubtful ones, and a sample of each expression."""

import random
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from fer_pipeline.base import storage
from fer_pipeline.base.errors import OutageError, RecordError
from fer_pipeline.labelling.manifest import find_records
from fer_pipeline.labelling.run import RunFolder, RunRecord
from fer_pipeline.report.pictures import PictureLimits, cut_faces

PER_GROUP = 12
MIN_SIDE_PX = 40
"""Smaller faces are hard to see in a picture: the groups by confidence and by expression leave them out."""

FaceRow = dict[str, Any]


@dataclass
class Group:
    """Faces that are shown together. A face is only in the first group that selects it."""

    title: str
    faces: list[FaceRow]
    """Rows of `faces/` with `picture` (a data URL) and `link` (a URL of the file, or None)."""
    expression: str | None = None
    """The expression of all faces, if they share it."""


RANKINGS = (
    ("The least confident detections", "detection_score", False),
    ("The smallest faces", "side", False),
    ("The least confident labels", "confidence", True),
)
"""Title of a group, column that ranks its faces in ascending order, and whether smaller faces than `MIN_SIDE_PX` are left out."""


@dataclass
class Choice:
    """Chooses the faces of a page in one pass over a run. The number of rows in memory is bounded, whatever the run's size."""

    rng: random.Random
    ranked: dict[str, list[FaceRow]] = field(default_factory=dict)
    sampled: dict[str, list[tuple[float, FaceRow]]] = field(default_factory=lambda: defaultdict(list))

    def add(self, faces: pa.Table) -> None:
        """Add the rows of one file of `faces/` as candidates."""
        faces = faces.append_column("side", pc.min_element_wise(faces["w"], faces["h"]))
        large = faces.filter(pc.greater_equal(faces["side"], MIN_SIDE_PX))
        kept = PER_GROUP * len(RANKINGS)  # enough even if the other rankings take the same faces
        for title, column, large_only in RANKINGS:
            some = large if large_only else faces
            first = some.take(pc.select_k_unstable(some, kept, [(column, "ascending")])).to_pylist()
            both = self.ranked.get(title, []) + first
            self.ranked[title] = sorted(both, key=lambda face: (face[column], *_key(face)))[:kept]
        for expression in pc.unique(large["expression"]).to_pylist():
            rows = large.filter(pc.equal(large["expression"], expression))
            places = self.rng.sample(range(len(rows)), min(2 * PER_GROUP, len(rows)))
            some = [(self.rng.random(), face) for face in rows.take(places).to_pylist()]
            self.sampled[expression] = sorted(self.sampled[expression] + some, key=lambda pair: pair[0])[: 2 * PER_GROUP]

    def groups(self, folder: RunFolder, record: RunRecord, source: str) -> tuple[list[Group], Counter[str]]:
        """Return the groups with the faces' pictures, and the number of faces without a picture, by reason.

        Only files below `source` are read.
        """
        groups = [Group(title, faces) for title, faces in self.ranked.items()]
        groups += [Group(name, [face for _, face in self.sampled[name]], name) for name in sorted(self.sampled)]
        shown: set[tuple[int, int]] = set()
        for group in groups:
            group.faces = [face for face in group.faces if _key(face) not in shown][:PER_GROUP]
            shown |= set(map(_key, group.faces))
        pictures, missing = _cut_pictures(folder, record, source, [face for group in groups for face in group.faces])
        for group in groups:
            faces = [face for face in group.faces if _key(face) in pictures]
            group.faces = [face | {"picture": pictures[_key(face)], "link": link_of(face["uri"])} for face in faces]
        return [group for group in groups if group.faces], missing


def _key(face: FaceRow) -> tuple[int, int]:
    return face["record_id"], face["face_id"]


def link_of(uri: str) -> str | None:
    """Return a URL that opens the file in a browser on this machine, or None for a file elsewhere."""
    return Path(uri).as_uri() if storage.is_local(uri) and Path(uri).is_absolute() else None


def _cut_pictures(
    folder: RunFolder, record: RunRecord, source: str, faces: Iterable[FaceRow]
) -> tuple[dict[tuple[int, int], str], Counter[str]]:
    """Return the faces' pictures as data URLs by record and face id, and the number of faces without a picture, by reason."""
    shown = sorted(faces, key=_key)
    ids = sorted({face["record_id"] for face in shown})
    records = find_records(folder.manifest_prefix(record.run_id), ids) if ids else {}
    known = [face for face in shown if face["record_id"] in records]
    boxes = [(records[one["record_id"]], (one["x"], one["y"], one["w"], one["h"])) for one in known]
    try:
        found = cut_faces(boxes, source, PictureLimits.of(record))
    except OutageError:
        return {}, Counter({"unreachable": len(shown)})
    pictures = {_key(face): one for face, one in zip(known, found, strict=True) if isinstance(one, str)}
    return pictures, Counter(one.status for one in found if isinstance(one, RecordError))
