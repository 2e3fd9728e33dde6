"""Corrections: what people answer about faces. They stand beside labels, and are joined to them by content, moment and box."""

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any
from uuid import uuid4

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import AwareDatetime, Field, ValidationError

from fer_pipeline.base import storage
from fer_pipeline.base.config import Config, explain
from fer_pipeline.base.storage import parquet

NOT_A_FACE, CANNOT_TELL = "not_a_face", "cannot_tell"
"""Answers besides the classes."""
NO_FACE, MISSED_FACE = "no_face", "missed_face"
IMAGE_ANSWERS = (NO_FACE, MISSED_FACE)
"""Answers about an image in which no face was detected; its box is all of the image."""
CORRECTIONS = pa.schema(
    [
        pa.field("content_sha256", pa.string()),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("member", pa.string()),
        pa.field("time_ms", pa.int64()),
        pa.field("x", pa.float32(), nullable=False),
        pa.field("y", pa.float32(), nullable=False),
        pa.field("w", pa.float32(), nullable=False),
        pa.field("h", pa.float32(), nullable=False),
        pa.field("answer", pa.string(), nullable=False),
        pa.field("seen", pa.string()),
        pa.field("model_digest", pa.string()),
        pa.field("by", pa.string(), nullable=False),
        pa.field("at", pa.timestamp("us", "UTC"), nullable=False),
        pa.field("chosen", pa.string()),
    ]
)
"""One answer of one person: the image by the digest of its bytes, or a frame by file and moment; the box of the face in pixels
of the upright image; the answer; the label that was seen and its model; a pseudonym; when; and how the face was chosen: by its
`margin` (`review --pick`) or, so that it may stand for all, at `random` or for an audit (`audit-` and its id). The last answer of
a person counts."""
REVIEWED = ("expression_reviewed", "reviewers", "review_share")
"""Columns that faces have where there are corrections: the answer of the majority (null without one, and in a tie), the number of
people who answered, and the share of them who gave the most frequent answer."""
MOST_PX = 10.0**6
SAME_FACE = 0.5
"""A correction is of the face whose box shares most with its own, at least this much (intersection over union)."""
Key = tuple[str | None, str | None, str | None, int | None]


class Correction(Config):
    """A line of a file of corrections."""

    content_sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None
    uri: str = Field(min_length=1, max_length=32_768)
    member: Annotated[str, Field(max_length=32_768)] | None = None
    time_ms: int | None = Field(None, ge=0, le=10**12)
    x: float = Field(ge=-MOST_PX, le=MOST_PX)
    y: float = Field(ge=-MOST_PX, le=MOST_PX)
    w: float = Field(ge=0.01, le=MOST_PX)
    h: float = Field(ge=0.01, le=MOST_PX)
    answer: str
    seen: Annotated[str, Field(max_length=200)] | None = None
    model_digest: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None
    by: str = Field(pattern=r"^[\w.-]{1,40}$")
    """A pseudonym."""
    at: Annotated[AwareDatetime, Field(ge=datetime(2000, 1, 1, tzinfo=UTC), le=datetime(2200, 1, 1, tzinfo=UTC))]
    chosen: Annotated[str, Field(pattern="^(random|margin|audit-[0-9a-f]{8})$")] | None = None


@dataclass(frozen=True)
class Refused:
    """A line that is no correction."""

    line: int
    reason: str


def parsed(text: str, classes: Sequence[str]) -> tuple[list[tuple[int, Correction]], list[Refused]]:
    """Return the corrections in lines of JSON with their numbers, and the lines that are none."""
    return validated(((number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()), classes)


def validated(
    items: Iterable[tuple[int, str | Mapping[str, Any]]], classes: Sequence[str]
) -> tuple[list[tuple[int, Correction]], list[Refused]]:
    """Return the corrections among numbered items, lines of JSON or facts, and those that are none."""
    found, refused, answers = [], [], [*classes, NOT_A_FACE, CANNOT_TELL, *IMAGE_ANSWERS]
    for number, item in items:
        try:
            one = Correction.model_validate(json.loads(item) if isinstance(item, str) else item)
        except ValidationError as error:
            refused.append(Refused(number, explain(error)[:200]))
        except (ValueError, RecursionError) as error:
            refused.append(Refused(number, f"it is not JSON: {storage.reason(error)[:100]}"))
        else:
            if one.answer in answers:
                found.append((number, one))
            else:
                refused.append(Refused(number, f"'{one.answer[:40]}' is not an answer: {', '.join(answers)} are"))
    return found, refused


def table_of(corrections: Sequence[Correction]) -> pa.Table:
    """Return rows of `CORRECTIONS`."""
    return pa.Table.from_pylist([one.model_dump() for one in corrections], schema=CORRECTIONS)


def read_corrections(folder: str) -> pa.Table:
    """Return the rows of `CORRECTIONS` in a folder, each once. Raise UserError for a damaged file."""
    rows = pa.concat_tables([CORRECTIONS.empty_table(), *(rows for _, rows in _files(folder))])
    return rows.group_by(CORRECTIONS.names, use_threads=False).aggregate([]).select(CORRECTIONS.names).cast(CORRECTIONS)


def _files(folder: str) -> Iterator[tuple[str, pa.Table]]:
    """Yield each file in a folder, and its rows."""
    for name in sorted(storage.list_names(folder)):
        if name.endswith(".parquet"):
            yield storage.join(folder, name), parquet.read_own(storage.join(folder, name), CORRECTIONS)


def add_corrections(folder: str, rows: pa.Table) -> None:
    """Write rows of `CORRECTIONS` as a new file: no file is ever changed by an addition."""
    if len(rows):
        parquet.write_table(storage.join(folder, f"{uuid4().hex}.parquet"), rows)


def carry_corrections(source: str, target: str, erased: Collection[str]) -> None:
    """Copy the corrections in a folder to another one that lacks them, except those that were erased there."""
    rows = read_corrections(source)
    known = set(map(whole, read_corrections(target).to_pylist())) if len(rows) else set()
    fresh = [whole(row) not in known and not is_erased(row, erased) for row in rows.to_pylist()]
    add_corrections(target, rows.filter(pa.array(fresh, pa.bool_())))


def erase_corrections(folder: str, uris: Collection[str], contents: Collection[str]) -> set[str]:
    """Delete the corrections of these files and contents (or erasures). Return the erasure of each image or video."""
    found = set[str]()
    for file, rows in list(_files(folder)):
        gone = [row["uri"] in uris or erasure(row) in contents for row in rows.to_pylist()]
        if any(gone):
            add_corrections(folder, rows.filter(pa.array([not one for one in gone])))
            storage.remove(file)
            found |= {erasure(row) for row, is_gone in zip(rows.to_pylist(), gone, strict=True) if is_gone}
    return found


def erasure(row: Mapping[str, Any]) -> str:
    """Return the digest by which erased corrections are known: of the content or, for a frame, of the name of its file."""
    return row["content_sha256"] or hashlib.sha256(f"file\0{row['uri']}".encode("utf-8", "surrogatepass")).hexdigest()


def is_erased(row: Mapping[str, Any], erased: Collection[str]) -> bool:
    """Return whether corrections of this image, or of this video, were erased. `erased`: digests."""
    return erasure(row) in erased


def new_among(corrections: Sequence[Correction], known: pa.Table) -> list[bool]:
    """Return which corrections (n,) are neither among known rows nor among the ones before."""
    seen, found = set(map(whole, known.to_pylist())), []
    for row in table_of(corrections).to_pylist():
        found.append(whole(row) not in seen)
        seen.add(whole(row))
    return found


def measures(row: Mapping[str, Any]) -> bool:
    """Return whether an answer is about a face that was chosen at random: it measures models, and none learns it."""
    return row["chosen"] not in (None, "margin")


def whole(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return all values of a row of `CORRECTIONS`."""
    return tuple(row[name] for name in CORRECTIONS.names)


def _key(row: Mapping[str, Any]) -> Key:
    """Return what names an image: its content, wherever it is, or the place of a frame."""
    digest = row["content_sha256"]
    return (digest, None, None, None) if digest else (None, row["uri"], row["member"], row["time_ms"])


class Reviews:
    """Joins corrections with faces."""

    def __init__(self, corrections: pa.Table) -> None:
        """`corrections`: rows of `CORRECTIONS`."""
        self._of: dict[Key, list[dict[str, Any]]] = defaultdict(list)
        about_images = pc.is_in(corrections["answer"], pa.array(IMAGE_ANSWERS))
        for row in corrections.filter(pc.invert(about_images)).sort_by("at").to_pylist():
            self._of[_key(row)].append(row)
        self._digests = pa.array(sorted({key[0] for key in self._of if key[0]}), pa.string())
        self._videos = pa.array(sorted({key[1] for key in self._of if key[1]}), pa.string())

    def __len__(self) -> int:
        return sum(map(len, self._of.values()))

    def _images(self, faces: pa.Table) -> Iterator[tuple[list[int], list[tuple[int | None, dict[str, Any]]]]]:
        """Yield the positions of the faces of each image with corrections, and these with the place of their face among them."""
        may_be = pc.or_(pc.is_in(faces["content_sha256"], self._digests), pc.is_in(faces["uri"], self._videos))
        positions = np.flatnonzero(pc.fill_null(may_be, False).to_numpy(zero_copy_only=False))
        columns = ["content_sha256", "uri", "member", "time_ms", *"xywh"]
        groups: dict[tuple[Key, Any], list[tuple[int, dict[str, Any]]]] = defaultdict(list)
        for position, row in zip(positions.tolist(), faces.select(columns).take(pa.array(positions)).to_pylist(), strict=True):
            if _key(row) in self._of:
                groups[_key(row), (row["uri"], row["member"])].append((position, row))  # copies are images of their own
        for (key, _), found in groups.items():
            boxes = np.array([[row[name] for name in "xywh"] for _, row in found], np.float64)
            places = [face_of([one[side] for side in "xywh"], boxes) for one in self._of[key]]
            yield [position for position, _ in found], list(zip(places, self._of[key], strict=True))

    def matched(self, faces: pa.Table) -> set[tuple[Any, ...]]:
        """Return the corrections (`CORRECTIONS.names`) that have a face among rows of `flat_faces`."""
        return {whole(one) for _, found in self._images(faces) for place, one in found if place is not None}

    def of(self, faces: pa.Table) -> dict[int, list[dict[str, Any]]]:
        """Return the corrections of each face, the oldest first, by its position among rows of faces."""
        found: dict[int, list[dict[str, Any]]] = defaultdict(list)
        for positions, corrections in self._images(faces):
            for place, one in corrections:
                if place is not None:
                    found[positions[place]].append(one)
        return found

    def joined(self, faces: pa.Table) -> pa.Table:
        """Return rows of `flat_faces` with the columns `REVIEWED`."""
        answers: list[str | None] = [None] * len(faces)
        people, shares = np.zeros(len(faces), np.int32), np.full(len(faces), np.nan, np.float32)
        for position, corrections in self.of(faces).items():
            counts = counted(corrections)
            answers[position] = majority(counts)
            people[position], shares[position] = counts.total(), max(counts.values()) / counts.total()
        columns = (pa.array(answers, pa.string()), pa.array(people), pa.array(shares, mask=people == 0))
        for name, column in zip(REVIEWED, columns, strict=True):
            faces = faces.append_column(name, column)
        return faces


def counted(corrections: Sequence[Mapping[str, Any]]) -> Counter[str]:
    """Return how many people gave each answer about a face; the last one of each person counts. The oldest comes first."""
    return Counter({one["by"]: one["answer"] for one in corrections}.values())


def majority(counts: Mapping[str, int]) -> str | None:
    """Return the most frequent answer; None if another one is as frequent."""
    first, *others = Counter(counts).most_common(2)
    return None if others and others[0][1] == first[1] else first[0]


def face_of(box: Sequence[float], boxes: np.ndarray[Any, np.dtype[np.float64]]) -> int | None:
    """Return the place of the box (n, 4) that shares most with another one; None if none shares enough. Boxes are x, y, w, h."""
    x, y, w, h = map(float, box)
    sides = np.minimum(boxes[:, :2] + boxes[:, 2:], (x + w, y + h)) - np.maximum(boxes[:, :2], (x, y))
    inner = np.maximum(0, sides).prod(1)
    overlap = inner / (boxes[:, 2:].prod(1) + w * h - inner)
    best = int(overlap.argmax())
    return best if overlap[best] >= SAME_FACE else None
