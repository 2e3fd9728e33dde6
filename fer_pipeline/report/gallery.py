"""The faces that a run's page shows: those that people look for first, and some of each expression."""

import random
from collections import Counter, defaultdict
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from fer_pipeline.core import storage
from fer_pipeline.core.errors import OutageError, RecordError
from fer_pipeline.core.manifest import find_records
from fer_pipeline.core.run import RunFolder, RunRecord
from fer_pipeline.report.pictures import PictureLimits, PictureProcess, Wanted

PER_GROUP = 12
SMALLEST_PX = 40
"""Faces smaller than this show nothing in a picture: of them only the smallest are shown."""

FaceRow = dict[str, Any]


@dataclass
class Group:
    """Faces that are shown together, each in the first group that wants it."""

    title: str
    faces: list[FaceRow]
    """Rows of `faces/` with `picture` (a data URL) and `link`, where the file can be opened from the page."""
    expression: str | None = None
    """The one that all of them have."""


@dataclass(frozen=True)
class Rank:
    """The first faces in an order."""

    title: str
    column: str
    large_only: bool = False


RANKS = (
    Rank("The most doubtful detections", "detection_score"),
    Rank("The smallest faces", "side"),
    Rank("The least certain labels", "confidence", large_only=True),
)


@dataclass
class Choice:
    """Chooses the faces of a page from one pass over a run's; so many are kept, however many pass by."""

    rng: random.Random
    ranked: dict[str, list[FaceRow]] = field(default_factory=dict)
    drawn: dict[str, list[tuple[float, FaceRow]]] = field(default_factory=lambda: defaultdict(list))

    def add(self, faces: pa.Table) -> None:
        """Consider the rows of one file of `faces/`."""
        faces = faces.append_column("side", pc.min_element_wise(faces["w"], faces["h"]))
        large = faces.filter(pc.greater_equal(faces["side"], SMALLEST_PX))
        for rank in RANKS:
            some = large if rank.large_only else faces
            first = some.take(pc.select_k_unstable(some, PER_GROUP * len(RANKS), [(rank.column, "ascending")])).to_pylist()
            both = self.ranked.get(rank.title, []) + first
            self.ranked[rank.title] = sorted(both, key=lambda face: (face[rank.column], *_key(face)))[: PER_GROUP * len(RANKS)]
        for expression in pc.unique(large["expression"]).to_pylist():
            rows = large.filter(pc.equal(large["expression"], expression))
            places = self.rng.sample(range(len(rows)), min(2 * PER_GROUP, len(rows)))
            some = [(self.rng.random(), face) for face in rows.take(places).to_pylist()]
            self.drawn[expression] = sorted(self.drawn[expression] + some, key=lambda pair: pair[0])[: 2 * PER_GROUP]

    def groups(self, folder: RunFolder, record: RunRecord, source: str) -> tuple[list[Group], Counter[str]]:
        """Return the groups with the faces' pictures, and the number of faces without one, by what their images came to.

        Nothing but files below `source` is read.
        """
        groups = [Group(title, faces) for title, faces in self.ranked.items()]
        groups += [Group(name, [face for _, face in self.drawn[name]], name) for name in sorted(self.drawn)]
        shown: set[tuple[int, int]] = set()
        for group in groups:
            group.faces = [face for face in group.faces if _key(face) not in shown][:PER_GROUP]
            shown |= set(map(_key, group.faces))
        pictures, missing = _pictures(folder, record, source, [face for group in groups for face in group.faces])
        for group in groups:
            faces = [face for face in group.faces if _key(face) in pictures]
            group.faces = [face | {"picture": pictures[_key(face)], "link": _link(face["uri"])} for face in faces]
        return [group for group in groups if group.faces], missing


def _key(face: FaceRow) -> tuple[int, int]:
    return face["record_id"], face["face_id"]


def _link(uri: str) -> str | None:
    """Return a URL under which a browser on this machine finds the file."""
    return Path(uri).as_uri() if storage.is_local(uri) and Path(uri).is_absolute() else None


def _pictures(
    folder: RunFolder, record: RunRecord, source: str, faces: Iterable[FaceRow]
) -> tuple[dict[tuple[int, int], str], Counter[str]]:
    """Return a data URL of each face's picture, by record and face id, and the number of faces without one, by status."""
    by_record: dict[int, dict[int, FaceRow]] = defaultdict(dict)
    for face in faces:
        by_record[face["record_id"]][face["face_id"]] = face
    records = find_records(folder.manifest_prefix(record.run_id), list(by_record)) if by_record else {}
    ids, pictures, missing = sorted(records), dict[tuple[int, int], str](), Counter[str]()
    for record_id in [one for one in ids if not storage.is_below(records[one].uri, source)]:
        ids.remove(record_id)
        missing["outside of the source"] += len(by_record[record_id])
    wanted = [Wanted(records[i], tuple((f["x"], f["y"], f["w"], f["h"]) for f in by_record[i].values())) for i in ids]
    with closing(PictureProcess(PictureLimits.of(record))) as process:
        try:
            found = process.cut(wanted) if wanted else []
        except OutageError:
            return {}, Counter({"unreachable": sum(map(len, by_record.values()))})
    for record_id, urls in zip(ids, found, strict=True):
        if isinstance(urls, RecordError):
            missing[urls.status] += len(by_record[record_id])
        else:
            pictures |= dict(zip(map(_key, by_record[record_id].values()), urls, strict=True))
    return pictures, missing
