"""The page of a labelling run: counts, expressions, places, pictures of labelled faces, what failed. It runs no script."""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from fer_pipeline.core import storage
from fer_pipeline.core.run import RunFolder, RunRecord
from fer_pipeline.core.schemas import FACES, FAILED, FINE
from fer_pipeline.report.gallery import Choice, Group
from fer_pipeline.report.page import render
from fer_pipeline.report.places import Places
from fer_pipeline.report.timelines import timelines
from fer_pipeline.table.prior import PriorShift, mostly_uncertain

COLUMNS = ["record_id", "face_id", "x", "y", "w", "h", "detection_score", "expression", "confidence", "uncertain"]
COLUMNS += ["uri", "member", "time_ms"]


def label_report(
    folder: RunFolder, record: RunRecord, source: str | None, before: RunRecord | None = None, shifts: Sequence[PriorShift] = ()
) -> str:
    """Return the page of a run that is worked off, self-contained. Pictures are cut from files below `source` alone; None: none.

    `before`: a finished run that it is compared with. `shifts`: its labels under the archive's own class prior. Faces pass by
    file by file, and the page's size is bounded.
    """
    places, choice = Places(record.source), Choice(random.Random(record.run_id))
    for name in storage.list_names(folder.path("faces")):
        faces = storage.read_ours(folder.path("faces", name), FACES, COLUMNS)
        places.add(faces)
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
        groups=groups,
        missing=dict(sorted(missing.items())),
        numbers=_numbers(groups, places),
        places=places,
        folders=places.by_folder(),
        dates=places.by_date(),
        statuses=FINE + FAILED,
        failed=FAILED,
        timelines=timelines(folder, record),
    )


def _numbers(groups: list[Group], places: Places) -> dict[str, dict[str, int]]:
    """Return a number for each expression and each folder of the shown faces: what the page's filters go by."""
    shown = [face for group in groups for face in group.faces]
    found = {
        "expression": sorted({face["expression"] for face in shown}),
        "folder": sorted({places.of(face) for face in shown}),
    }
    return {what: {name: number for number, name in enumerate(names)} for what, names in found.items()}


@dataclass(frozen=True)
class Change:
    """A figure of two runs."""

    name: str
    before: float | None
    now: float | None
    share: bool


def _changes(now: RunRecord, before: RunRecord) -> list[Change]:
    """Return what the page compares."""
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
