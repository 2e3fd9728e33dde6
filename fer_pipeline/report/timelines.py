"""Expressions over time in a run's videos, for its page."""

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from fer_pipeline.base import storage
from fer_pipeline.base.storage import parquet
from fer_pipeline.labelling.manifest import last_moments_ms
from fer_pipeline.labelling.run import RunFolder, RunRecord
from fer_pipeline.labelling.schemas import FACES

MAX_VIDEOS = 8
MAX_BINS = 120
VIDEO = ["uri", "member"]
"""The columns that name a video."""
Video = tuple[str, str | None]
COLORS = {
    "angry": "#d1495b", "contempt": "#8d6a9f", "disgust": "#6a994e", "fear": "#7b5ea7", "happy": "#f2b134",
    "neutral": "#9aa5b1", "sad": "#3d7ea6", "surprise": "#ee8434",
}  # fmt: skip


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
    return [_timeline(video, counts[video], ends.get(video, 0), record.known.fps) for video in chosen]


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
    colors = {expression: COLORS.get(expression, "#5c677d") for expression in order}
    peak, bars = max(one.total() for one in bins), []
    for x, one in enumerate(bins):
        y = peak
        for expression in order:
            if one[expression]:
                y -= one[expression]
                bars.append({"x": x, "y": y, "height": one[expression], "color": colors[expression]})
    return Timeline(*video, end_ms / 1000 + 1 / fps, counts.total(), peak, len(bins), bars, colors)
