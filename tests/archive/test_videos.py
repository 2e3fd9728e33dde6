import shutil
import subprocess
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest

from fer_pipeline.archive.fetch import fetch
from fer_pipeline.archive.files import Selection
from fer_pipeline.archive.formats.spec import Frame
from fer_pipeline.archive.formats.videos import Video
from fer_pipeline.archive.listing import Listing
from fer_pipeline.archive.record import Record
from fer_pipeline.base.errors import RecordError

FPS, SECONDS = 10, 8


@pytest.fixture(scope="module", params=["mp4", "avi"])
def video(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A video that grows brighter: frame i has the grey value 3 i."""
    path = tmp_path_factory.mktemp("video") / f"ramp.{request.param}"
    codec = {"mp4": "mp4v", "avi": "MJPG"}[request.param]
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*codec), FPS, (64, 48))
    for index in range(FPS * SECONDS):
        writer.write(np.full((48, 64, 3), 3 * index, np.uint8))
    writer.release()
    return path


def records_of(source: Path, fps: float = 1.0) -> list[Record]:
    return list(Listing(str(source), Selection(fps=fps)))


def test_frames_are_sampled_at_the_rate_asked_for(video: Path) -> None:
    assert [record.time_ms for record in records_of(video)] == [1000 * second for second in range(SECONDS)]
    assert [record.time_ms for record in records_of(video, 2.5)][:4] == [0, 400, 800, 1200]
    assert len(records_of(video, 100)) == pytest.approx(100 * SECONDS, abs=10)


@pytest.mark.parametrize("start_s", [0, 3, 7])
def test_a_frame_is_that_of_its_moment_wherever_reading_begins(video: Path, start_s: int) -> None:
    opened = Video(str(video))
    for second in range(start_s, SECONDS):
        assert opened.at(1000 * second).mean() == pytest.approx(3 * FPS * second, abs=3)


UNEVEN_MS = (0, 100, 200, 1500, 1600, 2000, 5000)
"""Start times of the frames of the uneven video. The last frame is shown for three seconds."""


@pytest.fixture(scope="module", params=["mp4", "mkv"])
def uneven(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A video of variable frame rate: frame i has the grey value 30 i."""
    path = tmp_path_factory.mktemp("uneven") / f"uneven.{request.param}"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.time_base = 64, 48, Fraction(1, 1000)
        stream.codec_context.time_base = Fraction(1, 1000)
        ends = (*UNEVEN_MS[1:], 8000)
        for index, start in enumerate(UNEVEN_MS):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 30 * index, np.uint8), format="bgr24")
            frame.pts, frame.time_base = start, Fraction(1, 1000)
            container.mux(with_duration(stream.encode(frame), ends))
        container.mux(with_duration(stream.encode(None), ends))
    return path


def with_duration(packets: list[Any], ends_ms: tuple[int, ...]) -> list[Any]:
    for packet in packets:
        assert packet.pts is not None
        packet.duration = min(end for end in ends_ms if end > packet.pts) - packet.pts
    return packets


def shown(path: Path, moments_ms: list[int]) -> list[int]:
    """Return the index of the frame of the uneven video that is read at each moment."""
    video = Video(str(path))
    return [round(float(video.at(moment).mean()) / 30) for moment in moments_ms]


def test_a_moment_in_a_gap_gets_the_frame_that_is_shown_then(uneven: Path) -> None:
    assert shown(uneven, [0, 99, 150, 1000, 1499, 1500, 1999, 3000, 4999, 5000]) == [0, 0, 1, 2, 2, 3, 4, 5, 5, 6]
    assert [shown(uneven, [moment])[0] for moment in (1499, 3000, 4999)] == [2, 5, 5]  # found by seeking


def test_a_last_frame_is_shown_to_its_end_and_every_listed_moment_has_a_frame(uneven: Path) -> None:
    moments = [record.time_ms or 0 for record in records_of(uneven)]
    assert moments == [0, 1000, 2000, 3000, 4000, 5000, 6000, 7000]
    assert shown(uneven, moments) == [0, 2, 5, 5, 5, 6, 6, 6]


@pytest.mark.skipif(shutil.which("ffprobe") is None, reason="needs ffprobe")
def test_frames_begin_when_ffprobe_says_so(uneven: Path) -> None:
    command = ["ffprobe", "-v", "error", "-select_streams", "v", "-show_entries", "frame=pts_time", "-of", "csv=p=0"]
    out = subprocess.run([*command, str(uneven)], capture_output=True, text=True, check=True).stdout
    starts = [round(1000 * float(line.strip(","))) for line in out.split()]
    assert shown(uneven, starts) == list(range(len(UNEVEN_MS)))
    assert shown(uneven, [start - 2 for start in starts[1:]]) == list(range(len(UNEVEN_MS) - 1))


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="needs ffmpeg")
@pytest.mark.parametrize("turn", [90, 180, 270])
def test_a_turned_video_is_upright(turn: int, shared: Path, tmp_path: Path) -> None:
    source, turned = shared / "data" / "videos" / "single_face.mp4", tmp_path / "turned.mp4"
    command = ["ffmpeg", "-v", "error", "-i", str(source), "-c", "copy", "-an", "-metadata:s:v", f"rotate={turn}", str(turned)]
    subprocess.run(command, check=True)
    upright = cv2.VideoCapture(str(turned)).read()[1]  # OpenCV turns by itself
    assert upright.shape == ((640, 360, 3) if turn % 180 else (360, 640, 3))
    assert np.array_equal(Video(str(turned)).at(0), upright)


def test_a_moment_may_be_asked_for_again(video: Path) -> None:
    opened = Video(str(video))
    assert [round(float(opened.at(moment).mean()) / 30) for moment in (2000, 2000, 5000, 1000)] == [2, 2, 5, 1]


def test_videos_are_no_records_where_no_rate_is_given(video: Path) -> None:
    listing = Listing(str(video.parent))
    assert list(listing) == [] and dict(listing.skipped) == {f"{video.suffix} (video)": 1}


def test_a_file_that_is_no_video_is_one_record_that_says_so(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"not a video" * 100)
    (record,) = records_of(tmp_path)
    assert record.error == "the video cannot be read: the file is not a video of a supported format"


def test_a_video_that_breaks_off_has_a_row_for_every_moment_it_claims(video: Path, tmp_path: Path) -> None:
    if video.suffix == ".mp4":
        pytest.skip("an mp4 without its end cannot be opened at all")
    broken = tmp_path / "broken.avi"
    data = video.read_bytes()
    broken.write_bytes(data[: len(data) // 2])
    records = records_of(broken)
    opened, outcomes = Video(str(broken)), []
    for record in records:
        try:
            opened.at(record.time_ms or 0)
            outcomes.append("ok")
        except RecordError as error:
            outcomes.append(error.reason)
    assert outcomes[0] == "ok" and outcomes == sorted(outcomes, key=lambda outcome: outcome != "ok")


def test_a_video_that_vanishes_after_listing_is_unreadable(video: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copy(video, tmp_path / video.name))
    records = records_of(copy)
    copy.unlink()
    with fetch(records, 10**9) as fetched:
        frames = list(fetched)
    assert len(frames) == SECONDS and all(isinstance(frame, Frame) for frame in frames)
    with pytest.raises(RecordError, match="No such file") as caught:
        Video(str(copy)).at(0)
    assert caught.value.status == "unreadable"


def test_real_videos_read_the_same_in_sequence_and_after_a_search(shared: Path) -> None:
    for path in sorted((shared / "data" / "videos").iterdir()):
        moments = [record.time_ms or 0 for record in records_of(path)]
        opened = Video(str(path))
        in_sequence = [opened.at(moment) for moment in moments]
        for index in range(0, len(moments), 7):
            assert np.array_equal(Video(str(path)).at(moments[index]), in_sequence[index]), (path.name, moments[index])


@pytest.mark.parametrize("failures", [1, 2])
def test_one_read_that_fails_costs_no_frame_and_two_cost_one(failures: int, video: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failed read does not mean a damaged video: it is reopened, and later frames are read."""
    opened, decode, moments = Video(str(video)), Video._decode, Video(str(video)).moments_ms(1.0)
    expected = [Video(str(video)).at(moment) for moment in moments]
    left = failures

    def failing(self: Video) -> Iterator[Any]:
        nonlocal left
        for number, frame in enumerate(decode(self)):
            if number == 3 and left:
                left -= 1
                raise ConnectionResetError("reset")
            yield frame

    monkeypatch.setattr(Video, "_decode", failing)
    found: list[Any] = []
    for moment in moments:
        try:
            found.append(opened.at(moment))
        except RecordError as error:
            assert error.status == "unreadable"
            found.append(None)
    assert sum(one is None for one in found) == failures - 1
    assert all(one is None or np.array_equal(one, other) for one, other in zip(found, expected, strict=True))
