from collections import Counter

from fer_pipeline.report.timelines import _timeline


def test_a_timeline_stacks_the_faces_of_each_bin() -> None:
    counts = Counter({(0, "happy"): 2, (0, "sad"): 1, (9000, "happy"): 1})
    line = _timeline(("a.tar", "a.mp4"), counts, end_ms=9000, fps=1)
    assert (line.bins, line.peak, line.faces, line.duration_s) == (10, 3, 4, 10)
    assert [(bar["x"], bar["y"], bar["height"]) for bar in line.bars] == [(0, 1, 2), (0, 0, 1), (9, 2, 1)]


def test_a_long_video_has_a_bounded_number_of_bins() -> None:
    counts = Counter({(moment * 1000, "happy"): 1 for moment in range(3600)})
    line = _timeline(("a.tar", "a.mp4"), counts, end_ms=3_599_000, fps=1)
    assert line.bins == 120 and line.peak == 30 and sum(bar["height"] for bar in line.bars) == 3600
