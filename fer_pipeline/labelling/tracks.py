"""Tracks: faces that stay in view of a video, joined over the frames of all shards once these are labelled."""

import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from fer_pipeline.base import storage
from fer_pipeline.base.storage import parquet
from fer_pipeline.labelling.run import READERS, RunFolder, RunRecord
from fer_pipeline.labelling.schemas import ADDED, CATEGORY, IMAGES
from fer_pipeline.models.metrics import is_uncertain, softmax

TRACKS = pa.schema(
    [
        pa.field("uri", pa.string(), nullable=False),
        pa.field("member", pa.string()),
        pa.field("path", pa.string()),
        pa.field("folder", pa.string()),
        pa.field("track_id", pa.int32(), nullable=False),
        pa.field("start_ms", pa.int64(), nullable=False),
        pa.field("end_ms", pa.int64(), nullable=False),
        pa.field("frames", pa.int32(), nullable=False),
        pa.field("x", pa.float32(), nullable=False),
        pa.field("y", pa.float32(), nullable=False),
        pa.field("w", pa.float32(), nullable=False),
        pa.field("h", pa.float32(), nullable=False),
        pa.field("expression", CATEGORY, nullable=False),
        pa.field("confidence", pa.float32(), nullable=False),
        pa.field("probabilities", pa.list_(pa.float32()), nullable=False),
        pa.field("uncertain", pa.bool_(), nullable=False),
        pa.field("best_time_ms", pa.int64(), nullable=False),
        pa.field("best_face_id", pa.int32(), nullable=False),
        pa.field("times_ms", pa.list_(pa.int64()), nullable=False),
        pa.field("face_ids", pa.list_(pa.int32()), nullable=False),
        pa.field("expressions", pa.list_(pa.string()), nullable=False),
    ]
)
"""One row for each face that stays in view of a video; docs/columns.md says what each column is."""
FOLDER = "tracks"
COLUMNS = ["uri", "member", "path", "folder", "time_ms", "phash", "colours", "faces", "qualities"]
LEAST_OVERLAP = -0.2
"""Least `overlaps` of the boxes of one face in two frames: those of equal size may be a side apart."""
LARGEST_GROWTH = 1.8
"""A face's side changes at most by this factor from one frame to the next."""
GAP_MS, GAP_FRAMES = 500, 2
"""A face may be missed for this long, or for this number of frames if they are further apart."""
CUT_BITS, CUT_COLOURS = 60, 0.25
"""Frames belong to different shots if their perceptual hashes differ in more bits and their colours in more than this share. In
three clips at 1 frame a second, hashes differ in up to 136 bits within a shot, colours in up to .27; those of different clips
in .35 at least, those of 100 scenes in .25 in 95 % of pairs."""
TRACKS_A_FILE, SIGHTINGS_A_FILE = 65_536, 1_000_000
"""A file of `tracks/` ends above one of them."""


class Track:
    """A face so far: its sightings in brief, sums over them, and where it was last."""

    def __init__(self, classes: int) -> None:
        self.times_ms: list[int] = []
        self.face_ids: list[int] = []
        self.expressions: list[str] = []
        self.boxes, self.logits = np.zeros(4), np.zeros(classes)
        """Sums of x, y, w, h and of the calibrated logits."""
        self.best: tuple[float, float] = (-1.0, -1.0)
        self.best_time_ms = self.best_face_id = 0
        self.last: list[NDArray[np.float64]] = []
        """Its last two boxes."""

    def add(self, time_ms: int, face: dict[str, Any], picture: dict[str, Any] | None, box: NDArray[np.float64]) -> None:
        """Add the face, of FACE, of a later frame, with the QUALITY of its picture if that is known."""
        self.times_ms.append(time_ms)
        self.face_ids.append(face["face_id"])
        self.expressions.append(sys.intern(face["expression"]))
        self.boxes += box
        self.logits += np.log(np.maximum(face["probabilities"], 1e-12))
        self.last = [*self.last[-1:], box]
        clarity = (picture["quality"] if picture else 0.0, face["detection_score"])
        if clarity > self.best:
            self.best, self.best_time_ms, self.best_face_id = clarity, time_ms, face["face_id"]

    def expected(self, time_ms: int) -> NDArray[np.float64]:
        """Return the box (x, y, w, h) where the face is at a time if it goes on moving as it did, at most by its own side."""
        if len(self.last) < 2:
            return self.last[-1]
        before, last = self.last
        share = (time_ms - self.times_ms[-1]) / max(1, self.times_ms[-1] - self.times_ms[-2])
        moved = (last[:2] + last[2:] / 2) - (before[:2] + before[2:] / 2)
        most = last[2:].max()
        return np.concatenate([last[:2] + np.clip(moved * share, -most, most), last[2:]])


def overlaps(ours: NDArray[np.float64], theirs: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return how far boxes (n, 4) and (m, 4), x, y, w, h, lie on one another, (n, m), from -1 to 1 for equal ones.

    Distance-IoU (Zheng et al., 2020): the intersection over the union, less the squared distance of the centres over that of the
    corners of the smallest box around both.
    """
    (start, side), (other_start, other_side) = (np.split(boxes, 2, -1) for boxes in (ours[:, None], theirs[None]))
    end, other_end = start + side, other_start + other_side
    inner = np.minimum(end, other_end) - np.maximum(start, other_start)
    around = np.maximum(end, other_end) - np.minimum(start, other_start)
    apart = (start + end - other_start - other_end) / 2
    common = np.maximum(inner, 0).prod(2)
    union = np.maximum(side.prod(2) + other_side.prod(2) - common, 1e-9)
    return np.asarray(common / union - (apart**2).sum(2) / np.maximum((around**2).sum(2), 1e-9))


class Shots:
    """Joins the faces of one video, frame by frame."""

    def __init__(self, classes: int, interval_ms: int) -> None:
        """`classes`: their number. `interval_ms`: time between two frames that are neighbours."""
        self.classes, self.longest_ms = classes, max(GAP_MS, GAP_FRAMES * interval_ms)
        self.open: list[Track] = []
        self.done: list[Track] = []
        self._time_ms: int | None = None
        self._look: tuple[str, str] | None = None

    def add(
        self, time_ms: int, look: tuple[str, str] | None, faces: list[dict[str, Any]], pictures: list[dict[str, Any]] | None
    ) -> None:
        """Add the faces of the next frame. Frames come in the order of their times; a clock that goes back ends all tracks.

        `look`: the frame's perceptual hash and colours, in hex; None if they are not known.
        """
        is_back = self._time_ms is not None and time_ms < self._time_ms
        is_cut = look is not None and self._look is not None and _is_cut(look, self._look)
        ended = [is_cut or is_back or time_ms - one.times_ms[-1] > self.longest_ms for one in self.open]
        self.done += [one for one, is_over in zip(self.open, ended, strict=True) if is_over]
        self.open = [one for one, is_over in zip(self.open, ended, strict=True) if not is_over]
        self._time_ms, self._look = time_ms, look or self._look
        boxes = np.array([[face[name] for name in "xywh"] for face in faces], np.float64).reshape(-1, 4)
        for place, track in self._matched(time_ms, boxes).items():
            track.add(time_ms, faces[place], pictures[place] if pictures else None, boxes[place])

    def _matched(self, time_ms: int, boxes: NDArray[np.float64]) -> dict[int, Track]:
        """Return the track of each face: the pairs that overlap most come first, what is left begins a track."""
        found: dict[int, Track] = {}
        if self.open and len(boxes):
            last = np.array([track.last[-1] for track in self.open])
            expected = np.array([track.expected(time_ms) for track in self.open])
            shares = np.maximum(overlaps(expected, boxes), overlaps(last, boxes))
            growth = np.sqrt(np.maximum(boxes[:, 2:].prod(1), 1e-9)[None] / np.maximum(last[:, 2:].prod(1), 1e-9)[:, None])
            shares[(growth > LARGEST_GROWTH) | (growth < 1 / LARGEST_GROWTH)] = -1
            taken: set[int] = set()
            for number, place in zip(*np.unravel_index(np.argsort(-shares, axis=None, kind="stable"), shares.shape), strict=True):
                if shares[number, place] < LEAST_OVERLAP:
                    break
                if int(number) not in taken and int(place) not in found:
                    taken.add(int(number))
                    found[int(place)] = self.open[int(number)]
        for place in range(len(boxes)):
            if place not in found:
                found[place] = Track(self.classes)
                self.open.append(found[place])
        return found

    def ended(self) -> list[Track]:
        """Return all tracks, by their first moment and their place in its frame."""
        return sorted(self.done + self.open, key=lambda track: (track.times_ms[0], track.face_ids[0]))


def _is_cut(ours: tuple[str, str], theirs: tuple[str, str]) -> bool:
    """Return whether two frames belong to different shots."""
    bits = (int(ours[0], 16) ^ int(theirs[0], 16)).bit_count()
    first, second = (np.frombuffer(bytes.fromhex(look[1]), np.uint8).astype(int) for look in (ours, theirs))
    share = 1 - np.minimum(first, second).sum() / max(1, first.sum(), second.sum())
    return bits > CUT_BITS and bool(share > CUT_COLOURS)


def tracks_of(
    frames: Iterable[dict[str, Any]], classes: tuple[str, ...], uncertain_below: float, fps: float
) -> Iterator[dict[str, Any]]:
    """Yield rows of `TRACKS` for the rows `COLUMNS` of frames, those of each video together and in the order of their times."""
    for _, video in groupby(frames, key=lambda row: (row["uri"], row["member"])):
        shots, row = Shots(len(classes), round(1000 / fps)), {}
        for row in video:
            pictures = row["qualities"] if len(row["qualities"] or ()) == len(row["faces"]) else None  # None: an earlier version
            look = (row["phash"], row["colours"]) if row["phash"] and row["colours"] else None
            shots.add(row["time_ms"], look, row["faces"], pictures)
        place = {name: row[name] for name in ("uri", "member", "path", "folder")}
        for number, track in enumerate(shots.ended()):
            yield place | {"track_id": number} | _summary(track, classes, uncertain_below)


def _summary(track: Track, classes: tuple[str, ...], uncertain_below: float) -> dict[str, Any]:
    """Return what a row says of a track. Its probabilities are those of the mean of the calibrated logits."""
    count = len(track.times_ms)
    chances = softmax((track.logits / count)[None])[0]
    best = int(chances.argmax())
    return {
        "start_ms": track.times_ms[0],
        "end_ms": track.times_ms[-1],
        "frames": count,
        **dict(zip("xywh", (track.boxes / count).tolist(), strict=True)),
        "expression": classes[best],
        "confidence": float(chances[best]),
        "probabilities": chances.tolist(),
        "uncertain": bool(is_uncertain(float(chances[best]), uncertain_below)),
        "best_time_ms": track.best_time_ms,
        "best_face_id": track.best_face_id,
        "times_ms": track.times_ms,
        "face_ids": track.face_ids,
        "expressions": track.expressions,
    }


def write_tracks(folder: RunFolder, record: RunRecord, shards: list[int]) -> int:
    """Write `tracks/` from the committed shards that hold frames, in ascending order, and return the number of tracks.

    In memory are the sightings of one video's faces and of a file, some 200 bytes each. The same shards give the same files.
    """

    def read(shard: int) -> pa.Table:
        rows = parquet.read_own(folder.images_path(shard), IMAGES, COLUMNS, added=ADDED)
        return rows.filter(rows["time_ms"].is_valid())

    def frames() -> Iterator[dict[str, Any]]:
        with ThreadPoolExecutor(READERS) as pool:
            for start in range(0, len(shards), READERS):
                for rows in pool.map(read, shards[start : start + READERS]):
                    yield from rows.to_pylist()

    count, written = 0, set[str]()
    for rows in _files(tracks_of(frames(), record.classes, record.known.uncertain_below, record.known.fps)):
        name = f"{len(written):05d}.parquet"
        parquet.write_table(folder.path(FOLDER, name), pa.Table.from_pylist(rows, schema=TRACKS.with_metadata(record.metadata)))
        written.add(name)
        count += len(rows)
    folder.clear(FOLDER, kept=written)  # what an earlier course of the run left
    return count


def read_tracks(folder: RunFolder) -> Iterator[pa.Table]:
    """Yield the rows of `TRACKS` of a run, file by file; none for a run without videos."""
    for name in sorted(storage.list_names(folder.path(FOLDER))):
        yield parquet.read_own(folder.path(FOLDER, name), TRACKS)


def _files(tracks: Iterable[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Yield the rows of each file of `tracks/`."""
    rows, sightings = list[dict[str, Any]](), 0
    for row in tracks:
        rows.append(row)
        sightings += row["frames"]
        if len(rows) >= TRACKS_A_FILE or sightings >= SIGHTINGS_A_FILE:
            yield rows
            rows, sightings = [], 0
    if rows:
        yield rows
