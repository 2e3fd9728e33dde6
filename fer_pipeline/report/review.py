"""The review: a folder with a page on which people look at faces and answer, sheets of their pictures, and no server."""

import base64
import hashlib
import json
import math
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from fer_pipeline.archive.record import Record
from fer_pipeline.base import storage
from fer_pipeline.base.errors import RecordError
from fer_pipeline.labelling.corrections import CANNOT_TELL, NOT_A_FACE
from fer_pipeline.report.page import render, template_text
from fer_pipeline.report.pictures import PictureLimits, cut_faces
from fer_pipeline.report.timelines import COLORS

PAGE, SHEETS = "index.html", "sheets"
TILE_PX, TILES_A_SIDE = 96, 8
TILES = TILES_A_SIDE**2
"""Faces on a sheet; a screen in another order loads as many sheets as it has faces, so sheets are small."""
KEYS = "123456789abdefghijklmnopqrtvwyz"
"""Keys of the classes, in their order."""
CUT_AT_ONCE = 512
"""Faces whose images are read in one call."""
COLUMNS = ("content_sha256", "uri", "member", "time_ms", *"xywh", "expression", "confidence", "quality", "uncertain", "folder")


def write_review(
    out: str,
    title: str,
    faces: pa.Table,
    records: Sequence[Record | None],
    source: str,
    limits: PictureLimits,
    classes: Sequence[str],
) -> int:
    """Write the folder `out` for faces, rows of `flat_faces` in the order of the page; return how many have no picture.

    Pictures are cut from images below `source` only. The page comes last.
    """
    missing = 0
    with tempfile.TemporaryFile() as cache:
        places = _cut(cache, records, faces, source, limits)
        for start in range(0, len(faces), TILES):
            tiles = [_read(cache, place) for place in places[start : start + TILES]]
            missing += tiles.count(None)
            storage.write_bytes(storage.join(out, SHEETS, f"{start // TILES:05d}.jpg"), _sheet(tiles))
    storage.write_bytes(storage.join(out, PAGE), review_page(title, faces, classes).encode())
    return missing


def _cut(
    cache: Any, records: Sequence[Record | None], faces: pa.Table, source: str, limits: PictureLimits
) -> list[tuple[int, int] | None]:
    """Write the pictures of faces into a file, image by image, and return where each is; None for one without a picture."""
    boxes = list(zip(*(faces[name].to_pylist() for name in "xywh"), strict=True))
    places: list[tuple[int, int] | None] = [None] * len(boxes)
    known = [index for index, record in enumerate(records) if record]
    by_image = sorted(known, key=lambda index: _order(records[index]))
    for start in range(0, len(by_image), CUT_AT_ONCE):
        chosen = by_image[start : start + CUT_AT_ONCE]
        found = cut_faces([(record, boxes[index]) for index in chosen if (record := records[index])], source, limits)
        for index, picture in zip(chosen, found, strict=True):
            if not isinstance(picture, RecordError):
                data = base64.b64decode(picture.partition(",")[2])
                places[index] = cache.tell(), len(data)
                cache.write(data)
    return places


def _order(record: Record | None) -> tuple[str, int, int]:
    assert record is not None
    return record.uri, record.offset or 0, record.time_ms or 0


def _read(cache: Any, place: tuple[int, int] | None) -> bytes | None:
    if place is None:
        return None
    cache.seek(place[0])
    return bytes(cache.read(place[1]))


def _sheet(tiles: Sequence[bytes | None]) -> bytes:
    """Return the tiles on one JPEG, row by row; grey where there is no picture."""
    rows = -(-len(tiles) // TILES_A_SIDE)
    sheet: NDArray[np.uint8] = np.full((rows * TILE_PX, TILES_A_SIDE * TILE_PX, 3), 128, np.uint8)
    for number, tile in enumerate(tiles):
        if tile is not None:
            pixels: Any = cv2.imdecode(np.frombuffer(tile, np.uint8), cv2.IMREAD_COLOR)
            y, x = (TILE_PX * place for place in divmod(number, TILES_A_SIDE))
            sheet[y : y + TILE_PX, x : x + TILE_PX] = cv2.resize(pixels, (TILE_PX, TILE_PX), interpolation=cv2.INTER_AREA)
    return cv2.imencode(".jpg", sheet, [cv2.IMWRITE_JPEG_QUALITY, 85])[1].tobytes()


def review_page(title: str, faces: pa.Table, classes: Sequence[str]) -> str:
    """Return the page. Its script is the only one in it that a browser runs, and it loads nothing but the sheets."""
    names = [*classes, NOT_A_FACE, CANNOT_TELL]
    keys = [*KEYS[: len(classes)], *[""] * (len(classes) - len(KEYS)), "x", "c"]
    answers = [{"name": name, "key": key, "color": COLORS.get(name, "#5c677d")} for name, key in zip(names, keys, strict=True)]
    columns = dict(_columns(faces))
    index = {"answers": answers, "side": TILES_A_SIDE, "px": TILE_PX, "columns": columns}
    text = json.dumps(index, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    index["id"] = hashlib.sha256(text.encode()).hexdigest()[:16]
    text = json.dumps(index, ensure_ascii=False, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    script = template_text("review.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return render("review.html", title=title, index=text, script=script, digest=digest, answers=answers, count=len(faces))


def _columns(faces: pa.Table) -> Iterator[tuple[str, Any]]:
    """Yield the columns of the index; texts that repeat are numbers in a list of their own."""
    for name in (*COLUMNS, "model_digest", "chosen"):
        values = faces[name].to_pylist() if name in faces.column_names else [None] * len(faces)
        if name in ("confidence", "quality", *"xywh"):
            yield name, [None if value is None or not math.isfinite(value) else value for value in values]
        elif name in ("uri", "member", "expression", "folder", "model_digest", "chosen"):
            texts = {text: number for number, text in enumerate(dict.fromkeys(values))}
            yield name, {"texts": list(texts), "of": [texts[value] for value in values]}
        else:
            yield name, values
