import tarfile
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest

from fer_pipeline.faces.pixels import Pixels
from fer_pipeline.jobs.label import job
from fer_pipeline.jobs.label.config import LabelConfig
from fer_pipeline.labelling.run import RunFolder
from fer_pipeline.report.timelines import COLORS, _is_whole, _timeline, timelines


def test_a_timeline_stacks_the_faces_of_each_bin() -> None:
    counts = Counter({(0, "happy"): 2, (0, "sad"): 1, (9000, "happy"): 1})
    line = _timeline(("a.tar", "a.mp4"), counts, end_ms=9000, fps=1)
    assert (line.bins, line.peak, line.faces, line.duration_s) == (10, 3, 4, 10)
    assert [(bar["x"], bar["y"], bar["height"]) for bar in line.bars] == [(0, 1, 2), (0, 0, 1), (9, 2, 1)]


def test_a_long_video_has_a_bounded_number_of_bins() -> None:
    counts = Counter({(moment * 1000, "happy"): 1 for moment in range(3600)})
    line = _timeline(("a.tar", "a.mp4"), counts, end_ms=3_599_000, fps=1)
    assert line.bins == 120 and line.peak == 30 and sum(bar["height"] for bar in line.bars) == 3600


def test_the_longest_tracks_of_a_video_are_shown_with_their_labels(hopper: Pixels, tmp_path: Path, local_ray: None) -> None:
    """A link opens a video of a disk at the moment; a video in a container has none."""
    clip = tmp_path / "clips" / "a b.mp4"
    clip.parent.mkdir()
    writer = cv2.VideoWriter(str(clip), cv2.VideoWriter.fourcc(*"mp4v"), 2, (hopper.shape[1], hopper.shape[0]))
    for number in range(8):
        writer.write(hopper if number > 3 else np.zeros_like(hopper))
    writer.release()
    with tarfile.open(tmp_path / "clips" / "c.tar", "w") as tar:
        tar.add(clip, "c.mp4")
    out = tmp_path / "run"
    record = job.run(LabelConfig(source=str(clip.parent), out=str(out), detector="mtcnn", fps=2))
    found = {video.member: video for video in timelines(RunFolder(str(out)), record)}
    assert set(found) == {None, "c.mp4"}
    for video in found.values():
        (track,) = video.tracks
        assert (track["start_ms"], track["end_ms"], track["frames"]) == (2000, 3500, 4)
        color = COLORS[track["expression"]]
        assert track["stripes"] == ", ".join(f"{color} {at}% {at + 25}%" for at in (0.0, 25.0, 50.0, 75.0))
    assert found["c.mp4"].href is None and found[None].href == clip.as_uri()
    assert f'<a href="{clip.as_uri()}#t=2.0">0:00:02.0</a>' in (out / "report.html").read_text()


@pytest.mark.parametrize(
    "change",
    [{"end_ms": 0}, {"times_ms": None}, {"times_ms": []}, {"expressions": ["happy"]}, {"start_ms": None}, {"confidence": None}],
)
def test_a_track_that_another_program_wrote_is_left_out(change: dict[str, object], tmp_path: Path) -> None:
    row: dict[str, object] = {
        "uri": "/a.mp4",
        "member": None,
        "track_id": 0,
        "start_ms": 1000,
        "end_ms": 2000,
        "frames": 2,
        "expression": "sad",
    }
    row |= {"confidence": 0.5, "uncertain": False, "times_ms": [1000, 2000], "expressions": ["sad", "sad"]}
    assert _is_whole(row) and not _is_whole(row | change)
