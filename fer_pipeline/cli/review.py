"""`review` writes a page on which people answer about faces, and `correct` takes their answers from files."""

import logging
from typing import Any

import pyarrow.compute as pc
from pydantic import Field

from fer_pipeline.api import reviews
from fer_pipeline.api.labels import Labels, open_labels
from fer_pipeline.api.tools import answers_of
from fer_pipeline.base import storage
from fer_pipeline.base.config import Config
from fer_pipeline.base.errors import UserError
from fer_pipeline.base.identity import now
from fer_pipeline.labelling.audits import Score
from fer_pipeline.labelling.corrections import (
    IMAGE_ANSWERS,
    Correction,
    Refused,
    Reviews,
    add_corrections,
    is_erased,
    new_among,
    parsed,
    table_of,
    validated,
    whole,
)
from fer_pipeline.labelling.retention import mark, new_folder
from fer_pipeline.report.review import PAGE

log = logging.getLogger(__name__)
NAMED = 20
"""Lines that are named."""


class ReviewConfig(Config):
    """Write a folder with a page on which people look at faces and answer, the least confident first. It needs no server."""

    labels: str
    """A run folder or a published table."""
    out: str
    """Folder to write into: new or empty."""
    source: str
    """The folder or URL of the images. Faces are cut only from files below it."""
    where: str | None = None
    """Only faces for which this condition of SQL is true, such as "expression = 'fear' and quality > 0.8"."""
    certain: bool = False
    """Only labels that are not uncertain."""
    top: int = Field(10_000, ge=1)
    """Number of faces."""
    pick: int | None = Field(None, ge=10)
    """Instead, the faces that are most worth an answer, this many: those between two labels, of different images, and a tenth at
    random. Faces with an answer are left out."""
    audit: int | None = Field(None, ge=30)
    """Instead, this many faces at random from all, and some images without a detected face, on pages that do not show the labels.
    `score` says from the answers how right all labels are; 400 tell the accuracy to some 4 points."""


class Review(Config):
    """The page, and the faces on it."""

    page: str
    faces: int
    without_picture: int
    images: int = 0
    """Images without a face on a second page of an audit."""
    audit: str | None = None
    """Id of the audit."""


class CorrectConfig(Config):
    """Add answers of people about faces to a run or a table. They stand beside the labels, which do not change."""

    labels: str
    """A run folder or a published table."""
    file: tuple[str, ...]
    """Files of corrections: lines of JSON (docs/review.md), an export of Label Studio, or COCO. Those of several people, and
    those added before, may be given."""
    by: str | None = Field(None, pattern=r"^[\w.-]{1,40}$")
    """Pseudonym of who answered in a COCO file, which does not say."""


class ScoreConfig(Config):
    """Say how right the labels of a run or a table are, from the answers to an audit (`review --audit`), with intervals."""

    labels: str
    """A run folder or a published table."""
    audit: str | None = None
    """Id of the audit; by default the latest one."""


class Corrected(Config):
    """What became of the corrections, and what people say now."""

    added: int
    known: int
    """Corrections that were there already."""
    without_face: int
    """Added corrections of faces that these labels do not hold now; they count once the face is there."""
    refused: int
    """Lines that are no corrections; the first are named."""
    reviewed: int
    """Faces with an answer."""
    changed: int
    """Of these, faces whose answer is another class than their label, or none."""
    in_conflict: int
    """Of these, faces on which as many people say one thing as another: they have no reviewed expression."""


def review(config: ReviewConfig) -> Review:
    """Write the page. Raise UserError if the folder is not empty, or there is no such face."""
    out = new_folder(config.out)
    labels = open_labels(config.labels)
    where, certain, place = config.where, config.certain, config.source
    if config.audit:
        if config.pick or certain:
            raise UserError("An audit draws from all faces: leave out --pick and --certain.")
        found = reviews.audit(labels, out, place, config.audit, where=where)
    elif config.pick:
        found = reviews.review_picks(labels, out, place, config.pick, where=where, certain=certain)
    else:
        found = reviews.review(labels, out, place, where=where, certain=certain, top=config.top)
    if found.without_picture:
        log.warning("%d have no picture: their images are gone, unreadable or not below '%s'", found.without_picture, place)
    mark(out, "review")
    page = storage.join(out, PAGE)
    log.info("Page: %s", page)
    counts = {"faces": found.faces, "images": found.images, "without_picture": found.without_picture}
    return Review(page=page, audit=found.audit_id, **counts)


def score(config: ScoreConfig) -> Score:
    """Say how right labels are. Raise UserError if there is no audit, or if it has too few answers."""
    found = reviews.score(open_labels(config.labels), config.audit)
    if found.relabelled:
        log.warning("%d of the %d drawn faces have another label now, or are gone: the figures are of the labels of then",
                    found.relabelled, found.drawn)  # fmt: skip
    if found.faces_now != found.faces:
        log.warning("There are %d faces now, %d when the audit was drawn: the figures are of those", found.faces_now, found.faces)
    return found


def correct(config: CorrectConfig) -> Corrected:
    """Add the corrections. Raise UserError if there are no labels, or a file cannot be read or holds no correction at all."""
    labels = open_labels(config.labels)
    known, erased = labels.corrections(), labels.erased()
    found, refused = [], 0
    for name in config.file:
        given, faults = _read(name, labels, config.by)
        for line, one in given:
            if is_erased(one.model_dump(), erased):
                faults.append(Refused(line, "the image, or the video, was erased from this table"))
            else:
                found.append((name, line, one))
        _name(name, faults)
        refused += len(faults)
    if refused and not found:
        raise UserError(f"'{config.file[0]}' holds no correction of these labels: every line is refused. Nothing was added.")
    is_new = new_among([one for *_, one in found], known)
    added = [one for one, fresh in zip(found, is_new, strict=True) if fresh]
    rows = table_of([one for *_, one in added])
    joined, faces = Reviews(rows), set[tuple[object, ...]]()
    if len(rows):
        for part in labels.face_batches():
            faces |= joined.matched(part)
    is_lost = [row["answer"] not in IMAGE_ANSWERS and whole(row) not in faces for row in rows.to_pylist()]
    without = [one for one, lost in zip(added, is_lost, strict=True) if lost]
    for name, line, one in without[:NAMED]:
        log.warning("%s, line %d: these labels hold no such face now: %s", name, line, one.uri)
    add_corrections(labels.corrections_folder, rows)
    facts = _facts(labels)
    return Corrected(added=len(rows), known=len(found) - len(rows), without_face=len(without), refused=refused, **facts)


def _read(name: str, labels: Labels, by: str | None) -> tuple[list[tuple[int, Correction]], list[Refused]]:
    """Return the corrections in a file, of lines or of another tool, with their numbers, and what is none."""
    text = _text(name)
    answers = answers_of(text, labels, by, now())
    if answers is None:
        return parsed(text, labels.classes)
    good, faults = list[tuple[int, dict[str, Any]]](), list[Refused]()
    for number, one in enumerate(answers, 1):
        if isinstance(one, str):
            faults.append(Refused(number, one))
        else:
            good.append((number, one))
    found, refused = validated(good, labels.classes)
    return found, sorted([*refused, *faults], key=lambda one: one.line)


def _text(name: str) -> str:
    try:
        return storage.read_bytes(storage.normalize(name)).decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"'{name}' cannot be read as a file of corrections: {storage.reason(error)}.") from error


def _name(name: str, faults: list[Refused]) -> None:
    for one in faults[:NAMED]:
        log.warning("%s, line %d is left out: %s", name, one.line, one.reason)
    if len(faults) > NAMED:
        log.warning("%s: %d more lines are left out", name, len(faults) - NAMED)


def _facts(labels: Labels) -> dict[str, int]:
    facts = dict.fromkeys(("reviewed", "changed", "in_conflict"), 0)
    for faces in labels.face_batches() if len(labels.corrections()) else ():
        for row in faces.filter(pc.greater(faces["reviewers"], 0)).to_pylist():
            facts["reviewed"] += 1
            facts["in_conflict"] += row["expression_reviewed"] is None
            facts["changed"] += row["expression_reviewed"] not in (None, row["expression"])
    return facts
