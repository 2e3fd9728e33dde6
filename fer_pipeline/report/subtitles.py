"""Subtitles of a run's videos from its tracks: WebVTT and Advanced SubStation Alpha for players, CSV for annotation tools."""

import csv
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from fer_pipeline.base import storage
from fer_pipeline.labelling.run import RunFolder, RunRecord
from fer_pipeline.labelling.tracks import read_tracks

FOLDER = "subtitles"
LONGEST_NAME = 150
"""In bytes; a file name may have 255, of which writing it takes some."""
ASS_HEAD = """[Script Info]
ScriptType: v4.00+

[V4+ Styles]
Format: Name, Fontname, Fontsize, PrimaryColour, OutlineColour, BorderStyle, Outline, Shadow, Alignment, MarginL, MarginR, MarginV
Style: Default,Sans,16,&H00FFFFFF,&H00000000,1,1,0,2,10,10,10

[Events]
Format: Layer, Start, End, Style, Text
"""


@dataclass(frozen=True)
class Cue:
    """What stands on a video for a while."""

    start_ms: int
    end_ms: int
    face: int
    """Number of the face in its video, from 1."""
    label: str

    @property
    def text(self) -> str:
        return f"{self.face}: {self.label}"


def write_subtitles(folder: RunFolder, record: RunRecord) -> list[str]:
    """Write `subtitles/PATH.vtt`, `.ass` and `.csv` for each video with a face, and return the paths of the first kind."""
    folder.clear(FOLDER)  # what an earlier course of the run left
    rows, written = (row for part in read_tracks(folder) for row in part.to_pylist()), dict[str, str]()
    interval_ms = round(1000 / record.known.fps)
    for (uri, member, path), tracks in groupby(rows, key=lambda row: (row["uri"], row["member"], row["path"])):
        cues = sorted((cue for track in tracks for cue in cues_of(track, interval_ms)), key=lambda cue: (cue.start_ms, cue.face))
        name = _file_name(path or member or uri, written)
        storage.write_bytes(folder.path(FOLDER, f"{name}.vtt"), web_vtt(cues).encode())
        storage.write_bytes(folder.path(FOLDER, f"{name}.ass"), ass(cues).encode())
        storage.write_bytes(folder.path(FOLDER, f"{name}.csv"), tiers(cues).encode())
        written[name.lower()] = folder.path(FOLDER, f"{name}.vtt")
    return list(written.values())


def _file_name(path: str, taken: dict[str, str]) -> str:
    """Return a name for the files of a video, which anybody may have named: one folder, no name twice."""
    plain = re.sub(r"[^\w.-]+", "_", path).encode()[-LONGEST_NAME:].decode(errors="ignore").lstrip(".") or "video"
    name, number = plain, 1
    while name.lower() in taken:
        number += 1
        name = f"{plain}-{number}"
    return name


def cues_of(track: dict[str, Any], interval_ms: int) -> Iterator[Cue]:
    """Yield a cue for each stretch of frames in which the label of a face, a row of `TRACKS`, stays the same.

    A label holds until the next frame with the face, at most for two of the intervals at which frames were sampled.
    """
    times, face = track["times_ms"], track["track_id"] + 1
    started, label = times[0], track["expressions"][0]
    for before, time, expression in zip(times, times[1:], track["expressions"][1:], strict=False):
        end = min(time, before + 2 * interval_ms)
        if expression != label or end < time:
            yield Cue(started, end, face, label)
            started, label = time, expression
    yield Cue(started, times[-1] + interval_ms, face, label)


def web_vtt(cues: list[Cue]) -> str:
    """Return cues as a WebVTT file (W3C)."""
    blocks = [f"{_clock(cue.start_ms)} --> {_clock(cue.end_ms)}\n{_escaped(cue.text)}\n" for cue in cues]
    return "\n".join(["WEBVTT\n", *blocks])


def ass(cues: list[Cue]) -> str:
    """Return cues as an Advanced SubStation Alpha file, whose clock counts hundredths of a second."""
    moments = [[_clock(time_ms)[:-1].removeprefix("0") for time_ms in (cue.start_ms, cue.end_ms)] for cue in cues]
    lines = [f"Dialogue: 0,{start},{end},Default,{_in_ass(cue.text)}\n" for (start, end), cue in zip(moments, cues, strict=True)]
    return ASS_HEAD + "".join(lines)


def tiers(cues: list[Cue]) -> str:
    """Return cues as CSV, as ELAN and others import it: a tier for each face, start and end in ms, the annotation."""
    text = io.StringIO()
    rows = [(f"face {cue.face}", cue.start_ms, cue.end_ms, cue.label) for cue in cues]
    csv.writer(text, lineterminator="\n").writerows([("tier", "start_ms", "end_ms", "annotation"), *rows])
    return text.getvalue()


def _clock(time_ms: int) -> str:
    seconds, ms = divmod(max(0, time_ms), 1000)
    return f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}.{ms:03d}"


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _in_ass(text: str) -> str:
    return re.sub(r"[{}\\\n]", "_", text)
