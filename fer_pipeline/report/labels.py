"""The page of a labelling run: counts, expressions, folders, pictures of labelled faces, failures. It runs no script."""

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pyarrow.compute as pc

from fer_pipeline.base import storage
from fer_pipeline.base.storage import parquet
from fer_pipeline.labelling.audits import last_score
from fer_pipeline.labelling.run import AUDITS_FOLDER, RunFolder, RunRecord
from fer_pipeline.labelling.schemas import BLOCKED, FACES, FAILED, SUCCEEDED
from fer_pipeline.report.gallery import Choice, Group
from fer_pipeline.report.page import render
from fer_pipeline.report.places import Places
from fer_pipeline.report.timelines import timelines
from fer_pipeline.table.prior import PriorShift, mostly_uncertain


def label_report(
    folder: RunFolder, record: RunRecord, source: str | None, before: RunRecord | None = None, shifts: Sequence[PriorShift] = ()
) -> str:
    """Return the self-contained page of a finished run, with pictures cut from files below `source`; without them if it is None.

    `before` is a finished run to compare with, `shifts` are the labels under the archive's own class prior. The faces are read
    file by file, and the page's size is bounded.
    """
    columns = ["record_id", "face_id", "x", "y", "w", "h", "detection_score", "expression", "confidence", "uncertain"]
    columns += ["uri", "member", "time_ms"]
    places, choice, certain = Places(record.source), Choice(random.Random(record.run_id)), Counter[str]()
    for name in storage.list_names(folder.path("faces")):
        faces = parquet.read_own(folder.path("faces", name), FACES, columns)
        places.add(faces)
        certain.update(faces.filter(pc.invert(faces["uncertain"]))["expression"].to_pylist())
        if source:
            choice.add(faces)
    groups, missing = choice.groups(folder, record, source) if source else ([], Counter[str]())
    return render(
        "labels.html",
        run=record,
        result=record.result,
        changes=_changes(record, before) if before else [],
        before=before,
        shifts=shifts,
        mostly_uncertain=bool(shifts) and record.result is not None and mostly_uncertain(record.result),
        expressions=_expressions(record.result.expressions if record.result else {}, certain),
        groups=groups,
        missing=dict(sorted(missing.items())),
        numbers=_numbers(groups, places),
        places=places,
        folders=places.by_folder(),
        dates=places.by_date(),
        statuses=(*SUCCEEDED, *FAILED, BLOCKED),
        failed=FAILED,
        timelines=timelines(folder, record),
        score=last_score(folder.path(AUDITS_FOLDER)),
    )


@dataclass(frozen=True)
class Expression:
    """The labels of one expression."""

    name: str
    certain: int
    uncertain: int
    share: float | None
    """Its share of all certain labels; None if there are none."""
    most: int
    """The labels of the expression that has most."""


def _expressions(counts: Mapping[str, int], certain: Mapping[str, int]) -> list[Expression]:
    """Return the expressions of a run, the one with the most certain labels first."""
    sure, most = sum(certain.values()), max(counts.values(), default=1)
    names = sorted(counts, key=lambda name: (-certain.get(name, 0), -counts[name], name))
    rows = ((name, certain.get(name, 0)) for name in names)
    return [Expression(name, count, counts[name] - count, _share(count, sure), most) for name, count in rows]


def _numbers(groups: list[Group], places: Places) -> dict[str, dict[str, int]]:
    """Return a number for each expression and each folder of the shown faces, for the page's filters."""
    shown = [face for group in groups for face in group.faces]
    found = {
        "expression": sorted({face["expression"] for face in shown}),
        "folder": sorted({places.of(face) for face in shown}),
    }
    return {what: {name: number for number, name in enumerate(names)} for what, names in found.items()}


@dataclass(frozen=True)
class Change:
    """A figure of two runs to compare."""

    name: str
    before: float | None
    now: float | None
    share: bool


def _changes(now: RunRecord, before: RunRecord) -> list[Change]:
    """Return the figures that the page compares."""
    old, new = before.result, now.result
    assert old and new
    counts = [
        Change("images and frames", before.records, now.records, False),
        Change("faces", old.faces, new.faces, False),
        Change("failed", old.failed, new.failed, False),
        Change("faces per image", old.faces / max(1, before.records), new.faces / max(1, now.records), False),
        Change("images/s", old.images_per_s, new.images_per_s, False),
    ]
    shares = [Change("uncertain", _share(old.uncertain, old.faces), _share(new.uncertain, new.faces), True)]
    for name in sorted(old.expressions.keys() | new.expressions.keys()):
        first, second = old.expressions.get(name, 0), new.expressions.get(name, 0)
        shares.append(Change(name, _share(first, old.faces), _share(second, new.faces), True))
    return counts + shares


def _share(count: int, of: int) -> float | None:
    return count / of if of else None
