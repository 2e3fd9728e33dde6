from pathlib import Path

import av
import pytest

import fer_pipeline as fer
from fer_pipeline.cli import report
from fer_pipeline.cli.report import ReportConfig
from fer_pipeline.report.subtitles import Cue, ass, cues_of, tiers, web_vtt
from tests.labelling.test_tracks import clip  # noqa: F401 (a fixture)


def test_a_label_is_one_cue_while_it_stays() -> None:
    track = {"track_id": 2, "times_ms": [0, 200, 400, 1600, 1800], "expressions": ["happy", "happy", "sad", "sad", "happy"]}
    assert list(cues_of(track, 200)) == [
        Cue(0, 400, 3, "happy"),
        Cue(400, 800, 3, "sad"),
        Cue(1600, 1800, 3, "sad"),
        Cue(1800, 2000, 3, "happy"),
    ]
    assert next(cues_of({"track_id": 0, "times_ms": [500], "expressions": ["sad"]}, 1000)) == Cue(500, 1500, 1, "sad")


def test_a_face_that_is_not_seen_for_a_while_has_no_cue_then() -> None:
    track = {"track_id": 0, "times_ms": [0, 200, 2000], "expressions": ["happy"] * 3}
    assert list(cues_of(track, 200)) == [Cue(0, 600, 1, "happy"), Cue(2000, 2200, 1, "happy")]


def test_a_day_long_video_has_the_right_hours() -> None:
    cues = [Cue(43_200_000, 360_000_000, 1, "sad")]
    assert "Dialogue: 0,12:00:00.00,100:00:00.00,Default,1: sad" in ass(cues) and "12:00:00.000 --> 100:00:00.000" in web_vtt(
        cues
    )


def test_texts_of_a_model_are_escaped() -> None:
    cues = [Cue(3_725_040, 3_726_000, 1, "<b>&{x}\\N")]
    assert web_vtt(cues) == "WEBVTT\n\n01:02:05.040 --> 01:02:06.000\n1: &lt;b&gt;&amp;{x}\\N\n"
    assert tiers([*cues, Cue(0, 5, 2, 'a,"b"')]).splitlines()[1:] == ["face 1,3725040,3726000,<b>&{x}\\N", 'face 2,0,5,"a,""b"""']
    assert ass(cues).endswith("Dialogue: 0,1:02:05.04,1:02:06.00,Default,1: <b>&_x__N\n")


@pytest.mark.parametrize("names", [("a/clip.avi", "a_clip.avi", "../clip.avi", f"{'映画' * 20}/{'動画' * 30}.avi")])
def test_each_video_has_files_that_a_player_reads(names: tuple[str, ...], clip: Path, tmp_path: Path, local_ray: None) -> None:  # noqa: F811
    source = tmp_path / "videos/deep"
    for name in names:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes((clip / "clip.avi").read_bytes())
    run = fer.label(source.parent, tmp_path / "run", detector="mtcnn", fps=5)
    found = report.run(ReportConfig(run=run.url, subtitles=True)).subtitles
    assert [Path(path).name for path in found][:3] == ["clip.avi.vtt", "deep_a_clip.avi.vtt", "deep_a_clip.avi-2.vtt"]
    assert len(found) == 4 and Path(found[3]).name.endswith("動画.avi.vtt")
    (tmp_path / "run/subtitles/gone.vtt").write_text("of an earlier course")
    assert report.run(ReportConfig(run=run.url, subtitles=True)).subtitles == found
    assert {path.parent for path in (tmp_path / "run/subtitles").iterdir()} == {tmp_path / "run/subtitles"}
    for path in found:
        for place in (path, path.replace(".vtt", ".ass")):
            with av.open(place) as file:
                packets = [packet for packet in file.demux(subtitles=0) if packet.pts is not None and packet.size]
                assert file.streams.subtitles and packets and packets[0].pts == 0


def test_a_run_without_videos_has_none(labelled: fer.Run) -> None:
    assert report.run(ReportConfig(run=labelled.url, subtitles=True)).subtitles == ()
