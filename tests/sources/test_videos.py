import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from fer_pipeline.core.errors import RecordError
from fer_pipeline.core.manifest import Record
from fer_pipeline.sources.files import Selection
from fer_pipeline.sources.listing import Listing
from fer_pipeline.sources.videos import Video
from fer_pipeline.stages.fetch import Frame, fetch

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


def test_a_moment_may_be_asked_for_again(video: Path) -> None:
    opened = Video(str(video))
    assert [round(float(opened.at(moment).mean()) / 30) for moment in (2000, 2000, 5000, 1000)] == [2, 2, 5, 1]


def test_videos_are_no_records_where_no_rate_is_given(video: Path) -> None:
    listing = Listing(str(video.parent))
    assert list(listing) == [] and dict(listing.skipped) == {video.suffix: 1}


def test_a_file_that_is_no_video_is_one_record_that_says_so(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"not a video" * 100)
    (record,) = records_of(tmp_path)
    assert record.error == "the video cannot be read: the content is no video that is known here"


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
    frames = list(fetch(records, 10**9))
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
