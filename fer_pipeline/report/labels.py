"""The page of a labelling run: counts, expressions, throughput, and pictures of labelled faces."""

import random
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fer_pipeline.core import storage
from fer_pipeline.core.errors import RecordError
from fer_pipeline.core.manifest import find_records
from fer_pipeline.core.run import RunFolder, RunRecord
from fer_pipeline.core.schemas import FAILED, FINE
from fer_pipeline.report.page import data_url, render
from fer_pipeline.report.timelines import timelines
from fer_pipeline.stages.align import square, warp_crop
from fer_pipeline.stages.decode import decode
from fer_pipeline.stages.fetch import fetch

PER_EXPRESSION = 6
LEAST_CERTAIN = 12
SMALLEST_PX = 40
"""Faces smaller than this show nothing in a picture."""
PICTURE_PX = 96
SURROUNDINGS = 1.5
"""Side of the pictured square over that of the face's box."""
ENOUGH_PX = 1024

FaceRow = dict[str, Any]


def label_report(folder: RunFolder, record: RunRecord, thumbnails: bool) -> str:
    """Return the page of a run that is worked off, self-contained; without `thumbnails` no face is on it."""
    chosen = _choose(folder, random.Random(record.run_id)) if thumbnails else {}
    pictures = dict(_pictures(folder, record, [face for faces in chosen.values() for face in faces]))
    galleries = {
        title: [face | {"picture": pictures[_key(face)]} for face in faces if _key(face) in pictures]
        for title, faces in chosen.items()
    }
    return render(
        "labels.html",
        run=record,
        result=record.result,
        galleries=galleries,
        statuses=FINE + FAILED,
        failed=FAILED,
        timelines=timelines(folder, record),
    )


def _key(face: FaceRow) -> tuple[int, int]:
    return face["record_id"], face["face_id"]


def _choose(folder: RunFolder, rng: random.Random) -> dict[str, list[FaceRow]]:
    """Return the least certain faces and a few of each expression, drawn at random; file by file, so memory is bounded."""
    uncertain: list[FaceRow] = []
    drawn: dict[str, list[tuple[float, FaceRow]]] = defaultdict(list)
    columns = ["record_id", "face_id", "x", "y", "w", "h", "expression", "confidence"]
    for name in storage.list_names(folder.path("faces")):
        faces = storage.read_table(folder.path("faces", name), columns)
        large = pc.greater_equal(pc.min_element_wise(faces["w"], faces["h"]), SMALLEST_PX)
        faces = faces.filter(large)
        order = pc.select_k_unstable(faces, LEAST_CERTAIN, [("confidence", "ascending")])
        uncertain = sorted(uncertain + faces.take(order).to_pylist(), key=lambda face: face["confidence"])[:LEAST_CERTAIN]
        for expression in pc.unique(faces["expression"]).to_pylist():
            some = _draw(faces.filter(pc.equal(faces["expression"], expression)), rng)
            drawn[expression] = sorted(drawn[expression] + some, key=lambda pair: pair[0])[:PER_EXPRESSION]
    by_expression = {expression: [face for _, face in drawn[expression]] for expression in sorted(drawn)}
    return {"least certain": uncertain} | by_expression if uncertain else {}


def _draw(faces: pa.Table, rng: random.Random) -> list[tuple[float, FaceRow]]:
    """Return a few rows with the random number by which they win."""
    rows = rng.sample(range(len(faces)), min(PER_EXPRESSION, len(faces)))
    return [(rng.random(), face) for face in faces.take(rows).to_pylist()]


def _pictures(folder: RunFolder, record: RunRecord, faces: Iterable[FaceRow]) -> Iterator[tuple[tuple[int, int], str]]:
    """Yield a data URL of each face's picture, by record and face id; a file that is gone by now yields none."""
    by_record: dict[int, dict[int, FaceRow]] = defaultdict(dict)
    for face in faces:
        by_record[face["record_id"]][face["face_id"]] = face
    if not by_record:
        return
    records = find_records(folder.manifest_prefix(record.run_id), list(by_record))
    ids = sorted(records)
    limits = record.settings["max_pixels"], record.settings["max_bytes"]
    with fetch([records[i] for i in ids], limits[1], record.settings.get("image_column")) as fetched:
        for record_id, data in zip(ids, fetched, strict=True):
            try:
                photo = decode(data, limits[0], ENOUGH_PX)
            except RecordError:
                continue
            for face in by_record[record_id].values():
                box = np.array([face["x"], face["y"], face["w"], face["h"]]) / photo.reduction
                picture = warp_crop(photo.pixels, square(box, SURROUNDINGS, PICTURE_PX), PICTURE_PX)
                encoded = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, 80])[1].tobytes()
                yield _key(face), data_url(encoded, "jpeg")
