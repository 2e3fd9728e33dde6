"""The review: a folder with a page on which people look at faces and answer, sheets of their pictures, and no server."""

import base64
import hashlib
import json
import math
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from fer_pipeline.archive.record import Record
from fer_pipeline.base import storage
from fer_pipeline.base.errors import RecordError
from fer_pipeline.labelling.corrections import CANNOT_TELL, IMAGE_ANSWERS, MISSED_FACE, NO_FACE, NOT_A_FACE
from fer_pipeline.labelling.retention import mark
from fer_pipeline.report.page import render, template_text
from fer_pipeline.report.pictures import PictureLimits, cut_faces
from fer_pipeline.report.timelines import COLORS

PAGE = "index.html"
KEYS = "123456789abdefghijklmnopqrtvwyz"
"""Keys of the classes, in their order."""
OTHER_KEYS = {NOT_A_FACE: "x", CANNOT_TELL: "c", NO_FACE: "n", MISSED_FACE: "m"}
CUT_AT_ONCE = 512
"""Faces whose images are read in one call."""
COLUMNS = ("content_sha256", "uri", "member", "time_ms", *"xywh")
SAID = ("expression", "confidence", "quality", "uncertain", "model_digest", "folder")
"""What a blind page does not hold: what was said of a face, and what its folder may tell."""


@dataclass(frozen=True)
class Kind:
    """A kind of page."""

    page: str = PAGE
    sheets: str = "sheets"
    """Folder of the sheets."""
    px: int = 96
    """Side of a tile."""
    tiles_a_side: int = 8
    """Of a sheet; a screen in another order loads as many sheets as it has faces, so sheets are small."""
    is_blind: bool = False
    """Neither labels nor what a model said are on the page."""
    of_images: bool = False
    """Of whole images."""
    then: str | None = None
    """The page that follows."""

    @property
    def tiles(self) -> int:
        return self.tiles_a_side**2


REVIEW = Kind()
AUDIT_FACES = Kind(px=128, tiles_a_side=5, is_blind=True)
AUDIT_IMAGES = Kind("images.html", "images", px=320, tiles_a_side=3, is_blind=True, of_images=True)


def write_review(
    out: str,
    title: str,
    faces: pa.Table,
    records: Sequence[Record | None],
    source: str,
    limits: PictureLimits,
    classes: Sequence[str],
    kind: Kind = REVIEW,
) -> int:
    """Write the folder `out` for faces, rows of `flat_faces` in the order of the page; return how many have no picture.

    Pictures are cut from images below `source` only. The page comes last.
    """
    missing = 0
    mark(out, "review", finished=False)
    with tempfile.TemporaryFile() as cache:
        places = _cut(cache, records, faces, source, limits, kind)
        for start in range(0, len(faces), kind.tiles):
            tiles = [_read(cache, place) for place in places[start : start + kind.tiles]]
            missing += tiles.count(None)
            storage.write_bytes(storage.join(out, kind.sheets, f"{start // kind.tiles:05d}.jpg"), _sheet(tiles, kind))
    storage.write_bytes(storage.join(out, kind.page), review_page(title, faces, classes, kind).encode())
    return missing


def _cut(
    cache: Any, records: Sequence[Record | None], rows: pa.Table, source: str, limits: PictureLimits, kind: Kind
) -> list[tuple[int, int] | None]:
    """Write the pictures of faces into a file, image by image, and return where each is; None for one without a picture."""
    boxes: list[Any] = list(zip(*(rows[name].to_pylist() for name in "xywh"), strict=True))
    boxes = [None] * len(boxes) if kind.of_images else boxes
    places: list[tuple[int, int] | None] = [None] * len(boxes)
    known = [index for index, record in enumerate(records) if record]
    by_image = sorted(known, key=lambda index: _order(records[index]))
    for start in range(0, len(by_image), CUT_AT_ONCE):
        chosen = by_image[start : start + CUT_AT_ONCE]
        faces = [(record, boxes[index]) for index in chosen if (record := records[index])]
        found = cut_faces(faces, source, limits, kind.px)
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


def _sheet(tiles: Sequence[bytes | None], kind: Kind) -> bytes:
    """Return the tiles on one JPEG, row by row; grey where there is no picture."""
    rows, px = -(-len(tiles) // kind.tiles_a_side), kind.px
    sheet: NDArray[np.uint8] = np.full((rows * px, kind.tiles_a_side * px, 3), 128, np.uint8)
    for number, tile in enumerate(tiles):
        if tile is not None:
            pixels: Any = cv2.imdecode(np.frombuffer(tile, np.uint8), cv2.IMREAD_COLOR)
            y, x = (px * place for place in divmod(number, kind.tiles_a_side))
            scale = px / max(pixels.shape[:2])
            height, width = (max(1, round(scale * side)) for side in pixels.shape[:2])
            sheet[y : y + height, x : x + width] = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)
    return cv2.imencode(".jpg", sheet, [cv2.IMWRITE_JPEG_QUALITY, 85])[1].tobytes()


def review_page(title: str, faces: pa.Table, classes: Sequence[str], kind: Kind = REVIEW) -> str:
    """Return the page. Its script is the only one in it that a browser runs, and it loads nothing but the sheets."""
    others = IMAGE_ANSWERS if kind.of_images else (NOT_A_FACE, CANNOT_TELL)
    keys = dict(zip(() if kind.of_images else classes, [*KEYS, *[""] * len(classes)], strict=False))
    keys |= {name: OTHER_KEYS[name] for name in others}
    answers = [{"name": name, "key": key, "color": COLORS.get(name, "#5c677d")} for name, key in keys.items()]
    columns = dict(_columns(faces, kind))
    index = {"answers": answers, "side": kind.tiles_a_side, "px": kind.px, "sheets": kind.sheets, "columns": columns}
    index["blind"] = kind.is_blind
    index["file"] = "corrections-of-images" if kind.of_images else "corrections"
    text = json.dumps(index, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    index["id"] = hashlib.sha256(text.encode()).hexdigest()[:16]
    text = json.dumps(index, ensure_ascii=False, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    script = template_text("review.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return render(
        "review.html", title=title, index=text, script=script, digest=digest, answers=answers, count=len(faces), kind=kind
    )


def _columns(faces: pa.Table, kind: Kind) -> Iterator[tuple[str, Any]]:
    """Yield the columns of the index; texts that repeat are numbers in a list of their own."""
    for name in (*COLUMNS, *SAID, "chosen"):
        is_there = name in faces.column_names and not (kind.is_blind and name in SAID)
        values = faces[name].to_pylist() if is_there else [None] * len(faces)
        if name in ("confidence", "quality", *"xywh"):
            yield name, [None if value is None or not math.isfinite(value) else value for value in values]
        elif name in ("uri", "member", "expression", "folder", "model_digest", "chosen"):
            texts = {text: number for number, text in enumerate(dict.fromkeys(values))}
            yield name, {"texts": list(texts), "of": [texts[value] for value in values]}
        else:
            yield name, values
