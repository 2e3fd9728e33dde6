"""Pages on which people answer about faces of a run or a table, and what the answers to an audit say of all labels."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fer_pipeline.api.labels import Labels, reduced
from fer_pipeline.base import storage
from fer_pipeline.base.errors import UserError
from fer_pipeline.labelling import audits
from fer_pipeline.labelling.audits import Audit, Draw, Score
from fer_pipeline.labelling.picks import candidates, picked, with_margin
from fer_pipeline.report.review import AUDIT_FACES, AUDIT_IMAGES, REVIEW, Kind, write_review
from fer_pipeline.table.flat import flat_images

OF_EMPTY = ("uri", "member", "time_ms", "content_sha256", "width", "height", "record_id", "etag", "size_bytes")
"""Columns of an image without a face that find its picture."""


@dataclass(frozen=True)
class Written:
    """What is on a page, and how much of it has no picture."""

    faces: int
    images: int
    without_picture: int
    audit_id: str | None = None


def review(
    labels: Labels, out: str, source: str, *, where: str | None = None, certain: bool = False, top: int = 10_000
) -> Written:
    """Write a page on which people answer about faces, the least confident first, into the folder `out`.

    Pictures are cut from images below `source` only. Raise UserError if there is no such face.
    """
    return _written(labels, out, source, labels.first_faces(where, certain, False, top, "ascending"), REVIEW)


def review_picks(labels: Labels, out: str, source: str, pick: int, *, where: str | None = None, certain: bool = False) -> Written:
    """The same of faces without an answer: one in ten at random, the others by `picks.picked`."""
    return _written(labels, out, source, picks_of(labels, pick, where=where, certain=certain), REVIEW)


def picks_of(labels: Labels, pick: int, *, where: str | None = None, certain: bool = False) -> pa.Table | None:
    """Return the rows of the faces that are most worth an answer; None if there is none."""
    rng, parts = np.random.default_rng(), labels.faces_to_find(certain, where, False)
    unanswered = (rows.filter(pc.equal(rows["reviewers"], 0)) if "reviewers" in rows.column_names else rows for rows in parts)
    kept = reduced((with_margin(rows, labels.classes, rng) for rows in unanswered), lambda rows: candidates(rows, pick))
    return kept and picked(kept, pick)


def audit(labels: Labels, out: str, source: str, count: int, *, where: str | None = None) -> Written:
    """Draw `count` faces, and some images without one, at random from all; write the blind pages on which people answer.

    What was drawn is kept beside the labels. Raise UserError if there are fewer faces than intervals need.
    """
    draw = Draw(labels.classes, count, np.random.default_rng())
    with labels.our_rows():
        for faces in labels.faces_to_find(False, where, False):
            draw.add_faces(faces)
        for images in [] if where else _without_face(labels):
            draw.add_images(images)
        drawn, of_faces, of_images = draw.audit(where)
    if of_faces is None or len(of_faces) < audits.LEAST_ANSWERS:
        found = 0 if of_faces is None else len(of_faces)
        raise UserError(f"'{labels.url}' has {found} such faces: an audit needs at least {audits.LEAST_ANSWERS}.")
    audits.keep(labels.audits_folder, drawn)  # before any page: no answer is lost
    if (rest := drawn.without(labels.erased())) is not drawn:
        audits.keep(labels.audits_folder, rest)  # what was erased meanwhile
    chosen = f"{audits.CHOSEN}{drawn.audit_id}"
    shown = 0 if of_images is None else len(of_images)
    missing = 0
    if of_images is not None and shown:
        missing = _written(labels, out, source, _named(of_images, chosen), AUDIT_IMAGES).without_picture
    kind = replace(AUDIT_FACES, then=AUDIT_IMAGES.page if shown else None)
    written = _written(labels, out, source, _named(of_faces, chosen), kind)
    return Written(written.faces, shown, missing + written.without_picture, drawn.audit_id)


def score(labels: Labels, audit_id: str | None = None) -> Score:
    """Return what the answers to an audit, by default the latest one, say of all labels, and keep it for pages.

    Raise UserError if they are too few.
    """
    drawn = audits.kept(labels.audits_folder, audit_id).without(labels.erased())
    found = audits.scored(drawn, labels.corrections())
    relabelled, faces = _now(labels, drawn)
    found = found.model_copy(update={"relabelled": relabelled, "faces_now": faces})
    audits.keep_score(labels.audits_folder, found)
    return found


def score_of_model(labels: Labels, model_digest: str) -> Score:
    """Return what the latest audit of labels of this model says. Raise UserError if there is none with a score."""
    found = audits.scores(labels.audits_folder)
    for score in found:
        drawn = audits.kept(labels.audits_folder, score.audit_id)
        if {item.model_digest for item in drawn.items if item.stratum is not None} == {model_digest}:
            return score
    why = "its audits are of labels of other models" if found else "answer one, then run `fer-pipeline score`"
    raise UserError(f"'{labels.url}' has no audit with a score of labels of this model: {why}.")


def _named(rows: pa.Table, chosen: str) -> pa.Table:
    if "x" not in rows.column_names:
        zeros = pa.array(np.zeros(len(rows), np.float32))
        for name, column in zip("xywh", (zeros, zeros, rows["width"], rows["height"]), strict=True):
            rows = rows.append_column(name, column)
    return rows.append_column("chosen", pa.array([chosen] * len(rows)))


def _without_face(labels: Labels) -> Iterator[pa.Table]:
    """Yield the images in which no face was detected."""
    for images in labels.image_batches():
        rows = flat_images(images, "")
        is_empty = pc.and_(pc.equal(rows["status"].cast(pa.string()), "no_face"), pc.is_valid(rows["width"]))
        rows = rows.filter(pc.fill_null(is_empty, False))
        yield rows.select([name for name in OF_EMPTY if name in rows.column_names])


def _written(labels: Labels, out: str, source: str, faces: pa.Table | None, kind: Kind) -> Written:
    if faces is None or not len(faces):
        raise UserError(f"There is no such face in '{labels.url}': there is nothing to review.")
    place = storage.normalize(source)
    records = labels.records_of(faces, place)
    missing = write_review(storage.normalize(out), labels.url, faces, records, place, labels.limits(), labels.classes, kind)
    return Written(len(faces), 0, missing)


def _now(labels: Labels, drawn: Audit) -> tuple[int, int]:
    """Return how many drawn faces have another label now, or are gone, and how many faces there are now."""
    wanted = {audits.place_of(item): drawn.strata[item.stratum].expression for item in drawn.items if item.stratum is not None}
    digests = pa.array([item.content_sha256 for item in drawn.items if item.content_sha256], pa.string())
    uris = pa.array([item.uri for item in drawn.items if not item.content_sha256], pa.string())
    same, count = set(), 0
    for faces in labels.face_batches(where=drawn.where):
        count += len(faces)
        may_be = pc.fill_null(pc.or_(pc.is_in(faces["content_sha256"], digests), pc.is_in(faces["uri"], uris)), False)
        for row in faces.filter(may_be).to_pylist():
            place = audits.place_of_row(row)
            if wanted.get(place) == row["expression"]:
                same.add(place)
    return len(wanted) - len(same), count
