"""Expressions over time in the videos of a run, for its page."""

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from fer_pipeline.core import storage
from fer_pipeline.core.manifest import last_moments_ms
from fer_pipeline.core.run import RunFolder, RunRecord
from fer_pipeline.core.schemas import FACES

VIDEOS = 8
STRETCHES = 120
COLORS = {
    "angry": "#d1495b", "contempt": "#8d6a9f", "disgust": "#6a994e", "fear": "#7b5ea7", "happy": "#f2b134",
    "neutral": "#9aa5b1", "sad": "#3d7ea6", "surprise": "#ee8434",
}  # fmt: skip
OTHER = "#5c677d"


@dataclass
class Timeline:
    """A video's faces by expression in equal stretches of its time."""

    uri: str
    duration_s: float
    faces: int
    most: int
    """Faces in the fullest stretch."""
    stretches: int
    bars: list[dict[str, Any]]
    """`x`, `y`, `height` (in faces) and `color` of each part of a stretch's bar."""
    legend: dict[str, str]


def timelines(folder: RunFolder, record: RunRecord) -> list[Timeline]:
    """Return the timelines of the videos with most faces, `VIDEOS` at most; none where the run holds no videos."""
    totals: Counter[str] = Counter()
    for faces in _frames(folder):
        sums = faces.group_by("uri").aggregate([([], "count_all")])
        totals.update(dict(zip(sums["uri"].to_pylist(), sums["count_all"].to_pylist(), strict=True)))
    chosen = sorted(totals, key=lambda uri: (-totals[uri], uri))[:VIDEOS]
    counts: dict[str, Counter[tuple[int, str]]] = defaultdict(Counter)
    for faces in _frames(folder) if chosen else ():
        some = faces.filter(pc.is_in(faces["uri"], pa.array(chosen)))
        for uri, moment, expression in zip(*(some[column].to_pylist() for column in some.column_names), strict=True):
            counts[uri][moment, expression] += 1
    ends = last_moments_ms(folder.manifest_prefix(record.run_id), chosen) if chosen else {}
    return [_timeline(uri, counts[uri], ends.get(uri, 0), record.known.fps) for uri in chosen]


def _frames(folder: RunFolder) -> Iterator[pa.Table]:
    """Yield the faces in frames of videos, file by file: uri, time_ms, expression."""
    for name in storage.list_names(folder.path("faces")):
        faces = storage.read_ours(folder.path("faces", name), FACES, ["uri", "time_ms", "expression"])
        yield faces.filter(pc.is_valid(faces["time_ms"]))


def _timeline(uri: str, counts: Counter[tuple[int, str]], end_ms: int, fps: float) -> Timeline:
    frames = round(end_ms * fps / 1000) + 1
    stretches = min(STRETCHES, frames)
    bins: list[Counter[str]] = [Counter() for _ in range(stretches)]
    for (moment, expression), count in counts.items():
        bins[min(stretches - 1, moment * stretches // (end_ms + 1))][expression] += count
    order = sorted({expression for _, expression in counts})
    most, bars = max(one.total() for one in bins), []
    for x, one in enumerate(bins):
        y = most
        for expression in order:
            if one[expression]:
                y -= one[expression]
                bars.append({"x": x, "y": y, "height": one[expression], "color": COLORS.get(expression, OTHER)})
    legend = {expression: COLORS.get(expression, OTHER) for expression in order}
    return Timeline(uri, end_ms / 1000 + 1 / fps, counts.total(), most, stretches, bars, legend)
