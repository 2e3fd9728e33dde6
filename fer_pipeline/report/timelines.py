"""Expressions over time, and the faces that stay in view, in a run's videos, for its page."""

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from heapq import nsmallest
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from fer_pipeline.base import storage
from fer_pipeline.base.storage import parquet
from fer_pipeline.labelling.manifest import last_moments_ms
from fer_pipeline.labelling.run import RunFolder, RunRecord
from fer_pipeline.labelling.schemas import FACES
from fer_pipeline.labelling.tracks import read_tracks
from fer_pipeline.report.gallery import link_of

MAX_VIDEOS = 8
MAX_BINS, MAX_TRACKS = 120, 12
VIDEO = ["uri", "member"]
"""The columns that name a video."""
Video = tuple[str, str | None]
COLORS = {
    "angry": "#d1495b", "contempt": "#8d6a9f", "disgust": "#6a994e", "fear": "#7b5ea7", "happy": "#f2b134",
    "neutral": "#9aa5b1", "sad": "#3d7ea6", "surprise": "#ee8434",
}  # fmt: skip

TRACK = [*VIDEO, *"track_id start_ms end_ms frames expression confidence uncertain times_ms expressions".split()]
PLAYED = (".mp4", ".m4v", ".webm", ".mov")
"""Extensions of videos that browsers play."""


@dataclass
class Timeline:
    """Number of faces by expression in equal time bins of a video."""

    uri: str
    member: str | None
    """The video's name in its container."""
    duration_s: float
    faces: int
    peak: int
    """Number of faces in the fullest bin."""
    bins: int
    bars: list[dict[str, Any]]
    """`x`, `y`, `height` (in faces) and `color` of each part of a bin's bar."""
    legend: dict[str, str]
    tracks: list[dict[str, Any]] = field(default_factory=list)
    """The faces that stay in view longest, in the order in which they appear: columns of `tracks/`, and
    `length_ms`, with the time of its last frame, and `stripes`, the colours of its labels as stops of a gradient."""
    href: str | None = None
    """The file, if a browser can open it."""


def timelines(folder: RunFolder, record: RunRecord) -> list[Timeline]:
    """Return the timelines of the at most `MAX_VIDEOS` videos with the most faces."""
    totals: Counter[Video] = Counter()
    for faces in _frames(folder):
        sums = faces.group_by(VIDEO).aggregate([([], "count_all")])
        names = zip(*(sums[name].to_pylist() for name in VIDEO), strict=True)
        totals.update(dict(zip(names, sums["count_all"].to_pylist(), strict=True)))
    chosen = sorted(totals, key=lambda video: (-totals[video], video[0], video[1] or ""))[:MAX_VIDEOS]
    uris = sorted({uri for uri, _ in chosen})
    counts: dict[Video, Counter[tuple[int, str]]] = defaultdict(Counter)
    for faces in _frames(folder) if chosen else ():
        some = faces.filter(pc.is_in(faces["uri"], pa.array(uris)))
        for uri, member, moment, expression in zip(*(some[column].to_pylist() for column in some.column_names), strict=True):
            if (uri, member) in chosen:
                counts[uri, member][moment, expression] += 1
    ends = last_moments_ms(folder.manifest_prefix(record.run_id), uris) if chosen else {}
    found = [_timeline(video, counts[video], ends.get(video, 0), record.known.fps) for video in chosen]
    tracks = _longest(folder, {(one.uri, one.member) for one in found})
    for one in found:
        one.tracks = [_lane(row, 1000 / record.known.fps) for row in tracks[one.uri, one.member]]
        is_played = one.member is None and Path(one.uri).suffix.lower() in PLAYED
        one.href = link_of(one.uri) if is_played else None
    return found


def _longest(folder: RunFolder, videos: set[Video]) -> dict[Video, list[dict[str, Any]]]:
    """Return the tracks of each video that stay in view longest, in the order in which they appear."""
    kept: dict[Video, list[dict[str, Any]]] = defaultdict(list)
    uris = pa.array(sorted({uri for uri, _ in videos}))
    for tracks in read_tracks(folder) if videos else ():
        some = tracks.filter(pc.and_(pc.greater(tracks["frames"], 1), pc.is_in(tracks["uri"], uris)))
        for row in filter(_is_whole, some.select(TRACK).to_pylist()):
            kept[row["uri"], row["member"]].append(row)
    for video, rows in kept.items():
        longest = nsmallest(MAX_TRACKS, rows, key=lambda one: (one["start_ms"] - one["end_ms"], one["track_id"]))
        kept[video] = sorted(longest, key=lambda one: int(one["track_id"]))
    return kept


def _is_whole(track: dict[str, Any]) -> bool:
    """Return whether the values of a track fit together; another program may have written it."""
    values = [value for name, value in track.items() if name != "member"]
    if any(value is None for value in [*values, *(track["times_ms"] or [None]), *(track["expressions"] or [None])]):
        return False
    lengths = {len(track["times_ms"]), len(track["expressions"]), track["frames"]}
    return len(lengths) == 1 and 0 <= track["start_ms"] <= track["end_ms"]


def _lane(track: dict[str, Any], frame_ms: float) -> dict[str, Any]:
    """Return a track with its length and with the colours of its labels, from start to end, as stops of a gradient in CSS."""
    length_ms, step = track["end_ms"] - track["start_ms"] + frame_ms, -(-track["frames"] // MAX_BINS)
    places = [round(100 * (time_ms - track["start_ms"]) / length_ms, 1) for time_ms in track["times_ms"][::step]]
    labels = zip(track["expressions"][::step], places, [*places[1:], 100.0], strict=True)
    stripes = ", ".join(f"{_color(expression)} {start}% {end}%" for expression, start, end in labels)
    return track | {"length_ms": length_ms, "stripes": stripes}


def _color(expression: str) -> str:
    return COLORS.get(expression, "#5c677d")


def _frames(folder: RunFolder) -> Iterator[pa.Table]:
    """Yield `uri`, `member`, `time_ms` and `expression` of the faces in videos, file by file."""
    for name in storage.list_names(folder.path("faces")):
        faces = parquet.read_own(folder.path("faces", name), FACES, [*VIDEO, "time_ms", "expression"])
        yield faces.filter(pc.is_valid(faces["time_ms"]))


def _timeline(video: Video, counts: Counter[tuple[int, str]], end_ms: int, fps: float) -> Timeline:
    frames = round(end_ms * fps / 1000) + 1
    bins: list[Counter[str]] = [Counter() for _ in range(min(MAX_BINS, frames))]
    for (moment, expression), count in counts.items():
        bins[min(len(bins) - 1, moment * len(bins) // (end_ms + 1))][expression] += count
    order = sorted({expression for _, expression in counts})
    colors = {expression: _color(expression) for expression in order}
    peak, bars = max(one.total() for one in bins), []
    for x, one in enumerate(bins):
        y = peak
        for expression in order:
            if one[expression]:
                y -= one[expression]
                bars.append({"x": x, "y": y, "height": one[expression], "color": colors[expression]})
    return Timeline(*video, end_ms / 1000 + 1 / fps, counts.total(), peak, len(bins), bars, colors)
