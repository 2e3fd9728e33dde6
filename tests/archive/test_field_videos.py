"""Videos as people have them, against FFmpeg's own tools: the right stream, on the file's clock, upright, with square pixels.

The comments say what commit 04c3eb5 did.
"""

import gc
import shutil
import subprocess
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest

from fer_pipeline.archive.capture import UNKNOWN
from fer_pipeline.archive.files import Selection
from fer_pipeline.archive.formats.spec import Frame
from fer_pipeline.archive.formats.video_streams import best_stream, discard_others, upright, without_combs
from fer_pipeline.archive.formats.videos import Video
from fer_pipeline.archive.listing import Listing
from fer_pipeline.base.errors import RecordError
from fer_pipeline.faces.decode import decode

SECONDS_6 = [0, 1000, 2000, 3000, 4000, 5000]
MOMENTS: dict[str, list[int]] = {
    "x.mts": SECONDS_6, "x.m2ts": SECONDS_6, "x.ts": SECONDS_6, "x.mpg": SECONDS_6, "x.flv": SECONDS_6, "x.f4v": SECONDS_6,
    "x.insv": SECONDS_6, "PXL.MP": SECONDS_6, "noextvideo": SECONDS_6,  # skipped
    "mirror_meta.mp4": SECONDS_6,  # upside down
    "m_hflip.mp4": [0, 1000],  # upside down
    "covr_before_trak.mp4": SECONDS_6,  # the cover, and five failures
    "two_streams_thumb_first.mp4": [0, 1000, 2000],  # the preview of 180 x 100
    "ts_offset_60s.mkv": SECONDS_6,  # 59 failures
    "ts_offset_1h.mkv": [0, 1000, 2000],  # unreadable
    "video_starts_late.mp4": [2000, 3000, 4000, 5000, 6000, 7000],  # six, 1.5 s before their time
    "anam_2_1.mp4": SECONDS_6, "hdv_4_3.mkv": SECONDS_6,  # squashed
}  # fmt: skip


def run(command: list[str], **options: Any) -> Any:
    """Run one of FFmpeg's tools; skip the rest of a test without it."""
    if shutil.which(command[0]) is None:
        pytest.skip(f"needs {command[0]}")
    return subprocess.run(command, **options)


def ffmpeg(path: Path, at_s: float, stream: int) -> np.ndarray:
    """Return the frame that FFmpeg shows at a time of the file's clock: turned, mirrored, with square pixels."""
    command = ["ffmpeg", "-v", "error", "-i", str(path), "-map", f"0:{stream}", "-vf"]
    start_s = float(probe(path, "format=start_time", "")[0])
    select = f"select=gte(t\\,{at_s + start_s - 0.0005:.4f}),scale=iw*max(1\\,sar):ih*max(1\\,1/sar),setsar=1"
    out = run(
        [*command, select, "-copyts", "-frames:v", "1", "-f", "image2pipe", "-c:v", "png", "-"], capture_output=True, check=True
    )
    return np.asarray(cv2.imdecode(np.frombuffer(out.stdout, np.uint8), cv2.IMREAD_COLOR))


def probe(path: Path, entries: str, stream: str) -> list[str]:
    """Return the values that ffprobe prints for an entry."""
    streams = ["-select_streams", stream] if stream else []
    command = ["ffprobe", "-v", "error", *streams, "-show_entries", entries, "-of", "csv=p=0", str(path)]
    out = run(command, capture_output=True, text=True, check=True).stdout
    return [line.strip(",") for line in out.split()]


@pytest.mark.parametrize("name", MOMENTS)
def test_a_video_has_its_moments_and_ffmpegs_pixels(name: str, shared: Path) -> None:
    path = shared / "data" / "field" / name
    assert [record.time_ms for record in Listing(str(path), Selection(fps=1.0))] == MOMENTS[name]
    video, stream = Video(str(path)), 1 if name.startswith(("covr", "two")) else 0
    for moment in (MOMENTS[name][0], MOMENTS[name][-1]):
        found, expected = video.at(moment), ffmpeg(path, max(moment / 1000, first_s(path, stream)), stream)
        assert found.shape == expected.shape
        assert np.abs(found.astype(int) - expected).mean() < 3
    video.close()


def first_s(path: Path, stream: int) -> float:
    """Return when the first picture is shown, on the file's clock."""
    start_s = float(probe(path, "format=start_time", "")[0])
    return float(probe(path, "stream=start_time", str(stream))[0]) - start_s


@pytest.mark.parametrize("name", ["x.mts", "ts_offset_60s.mkv", "video_starts_late.mp4", "x.f4v"])
def test_frames_are_shown_within_a_millisecond_of_ffprobes_time(name: str, shared: Path) -> None:
    path = shared / "data" / "field" / name
    start_s = float(probe(path, "format=start_time", "")[0])
    times = [float(line) for line in probe(path, "frame=pts_time", "0")]
    video = Video(str(path))
    for index in (1, 20, 33):
        after, before = (video.at(round(1000 * (times[index] - start_s)) + late) for late in (1, -2))
        exact = Video(str(path)).at(round(1000 * (times[index] - start_s)))
        assert np.array_equal(after, exact) and not np.array_equal(before, exact)


@pytest.mark.parametrize("matrix", ["hflip", "vflip", "90", "90 and hflip", "270", "180"])
def test_a_display_matrix_turns_and_mirrors_as_ffmpeg_does(matrix: str, tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    picture = np.asarray(cv2.resize(np.random.default_rng(0).integers(0, 255, (4, 6, 3), np.uint8), (96, 64)), np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=5)
        stream.width, stream.height = 96, 64
        for _ in range(5):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="bgr24")))
        container.mux(stream.encode(None))
    one = 0x10000
    values = {
        "hflip": (-one, 0, 0, one), "vflip": (one, 0, 0, -one), "90": (0, one, -one, 0), "90 and hflip": (0, one, one, 0),
        "270": (0, -one, one, 0), "180": (-one, 0, 0, -one),
    }[matrix]  # fmt: skip
    data = bytearray(path.read_bytes())
    identity = b"".join(value.to_bytes(4, "big") for value in (one, 0, 0, 0, one))
    place = data.find(identity, data.find(b"tkhd"))
    a, b, c, d = (value.to_bytes(4, "big", signed=True) for value in values)
    data[place : place + 20] = a + b + bytes(4) + c + d
    path.write_bytes(data)
    found, expected = Video(str(path)).at(0), ffmpeg(path, 0, 0)
    assert found.shape == expected.shape and np.abs(found.astype(int) - expected).mean() < 3


@pytest.mark.parametrize("sound", [False, True])
@pytest.mark.parametrize("ending", ["flv", "wmv", "mkv", "webm", "ts", "ogv", "mov"])
def test_a_video_whose_timestamps_start_at_an_hour_has_no_more_moments(ending: str, sound: bool, tmp_path: Path) -> None:
    """d6f29b6 could not list such a Flash file, and had 3,605 rows for a WMV of five seconds."""
    path = tmp_path / f"a.{ending}"
    inputs = ["-f", "lavfi", "-i", "testsrc=size=160x120:rate=25:duration=4.5"]
    inputs += ["-f", "lavfi", "-i", "sine=duration=4.5:sample_rate=44100"] if sound else []
    run(["ffmpeg", "-v", "error", *inputs, "-output_ts_offset", "3600", str(path)], check=True)
    assert [record.time_ms for record in Listing(str(path), Selection(fps=1.0))] == SECONDS_6[:5]
    video, stream = Video(str(path)), 1 if ending == "flv" and sound else 0
    for moment in (0, 4000):
        found, expected = video.at(moment), ffmpeg(path, max(moment / 1000, first_s(path, stream)), stream)
        assert np.abs(found.astype(int) - expected).mean() < 3


def test_a_file_of_subtitles_says_that_it_has_no_video(tmp_path: Path) -> None:
    (tmp_path / "a.srt").write_text("1\n00:00:00,000 --> 00:00:02,000\nhello\n")
    run(["ffmpeg", "-v", "error", "-i", str(tmp_path / "a.srt"), str(tmp_path / "a.mkv")], check=True)
    (record,) = Listing(str(tmp_path / "a.mkv"), Selection(fps=1.0))
    assert record.error == "the video cannot be read: the file has no video stream, only data"


def test_only_the_packets_of_the_chosen_stream_are_read(shared: Path) -> None:
    with av.open(str(shared / "data" / "field" / "two_streams_thumb_first.mp4")) as container:
        chosen = best_stream(container)
        assert chosen is not None and chosen.index == 1
        discard_others(container, chosen)
        container.seek(0)  # drop what was read to find the streams
        assert {packet.stream.index for packet in container.demux() if packet.size} == {1}


def test_sound_with_a_cover_is_one_skipped_file(shared: Path) -> None:
    """04c3eb5 labelled the cover, and had a failure for each second of the sound."""
    listing = Listing(str(shared / "data" / "field" / "audio_cover.mp4"), Selection(fps=1.0))
    assert list(listing) == []
    assert dict(listing.skipped) == {".mp4 (no video stream, only sound, 1 cover picture)": 1}
    assert "holds no images, only 1 .mp4 (no video stream" in listing.holds_nothing()


@pytest.mark.parametrize("ending", "mts m2ts ts mpg vob wmv asf flv 3gp 3g2 f4v ogv dv mov mkv webm mxf avi".split())
def test_every_kind_of_video_is_read_under_its_name_and_without_one(ending: str, tmp_path: Path) -> None:
    named, unnamed = tmp_path / f"a.{ending}", tmp_path / "without"
    codecs = {
        "ogv": ["-c:v", "libtheora"], "webm": ["-c:v", "libvpx", "-b:v", "1M"], "3gp": ["-s", "176x144", "-c:v", "h263"],
        "3g2": ["-c:v", "mpeg4"], "dv": ["-target", "pal-dv"], "f4v": ["-f", "mp4"],
    }  # fmt: skip
    command = ["ffmpeg", "-v", "error", "-f", "lavfi", "-i", "testsrc=size=320x240:rate=25:duration=2.5", "-an"]
    run([*command, *codecs.get(ending, []), str(named)], check=True)
    for path in (named, unnamed):
        if path is unnamed:
            named.rename(unnamed)
        records = list(Listing(str(path), Selection(fps=1.0)))
        assert [record.time_ms for record in records] == [0, 1000, 2000]
        found, expected = Video(str(path)).at(1000), ffmpeg(path, 1, 0)
        assert found.shape == expected.shape and np.abs(found.astype(int) - expected).mean() < 3


def test_a_frame_of_two_fields_has_no_combs() -> None:
    """A face that moves 8 px from field to field has none of its edges doubled."""
    still = np.zeros((64, 64, 3), np.uint8)
    still[:, 20:40] = 200
    woven = still.copy()
    woven[1::2] = np.roll(still[1::2], 8, axis=1)
    assert np.array_equal(without_combs(woven), still)
    assert without_combs(still[:63]).shape == (63, 64, 3)


def combs(picture: np.ndarray) -> float:
    """Return by how much the lines of a picture differ from the mean of their neighbours, in grey levels."""
    grey = picture.astype(float).mean(axis=2)
    return float(np.abs(grey[1:-1] - (grey[:-2] + grey[2:]) / 2).mean())


@pytest.mark.parametrize(("ending", "lines", "pixel"), [("mpg", 576, "16/15"), ("mpg", 480, "8/9"), ("dv", 480, "8/9")])
def test_a_camcorders_video_has_no_combs_whatever_the_shape_of_its_pixels(
    ending: str, lines: int, pixel: str, tmp_path: Path
) -> None:
    path = tmp_path / f"a.{ending}"
    rate, format_ = ("50", "yuv420p") if lines == 576 else ("60000/1001", "yuv411p" if ending == "dv" else "yuv420p")
    source = f"testsrc2=size=720x{lines}:rate={rate}:duration=1.5"
    fields = f"tinterlace=interleave_{'bottom' if ending == 'dv' else 'top'},format={format_},setsar={pixel}"
    codec = ["-c:v", "dvvideo"] if ending == "dv" else ["-c:v", "mpeg2video", "-flags", "+ildct+ilme", "-b:v", "8M"]
    run(["ffmpeg", "-v", "error", "-f", "lavfi", "-i", source, "-vf", fields, *codec, "-an", str(path)], check=True)
    with av.open(str(path)) as container:
        frames = container.decode(video=0)
        woven = [next(frames).to_ndarray(format="bgr24") for _ in range(26)][-1]
    found = Video(str(path)).at(round(1000 * 25 * (1 / 25 if lines == 576 else 1001 / 30000)))
    assert found.shape == ((576, 768, 3) if lines == 576 else (540, 720, 3))
    assert combs(found) < 0.5 * combs(woven)


def test_a_picture_is_turned_as_its_matrix_says() -> None:
    picture = np.arange(6, dtype=np.uint8).reshape(2, 3, 1)
    assert upright(picture, (1, 0, 0, 1))[..., 0].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert upright(picture, (-1, 0, 0, 1))[..., 0].tolist() == [[2, 1, 0], [5, 4, 3]]
    assert upright(picture, (0, 1, -1, 0))[..., 0].tolist() == [[3, 0], [4, 1], [5, 2]]  # a quarter to the right


def test_the_best_of_several_programs_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "two.ts"
    sources = [f"testsrc=size={size}:rate=25:duration=2.2" for size in ("160x120", "640x480")]
    inputs = [part for source in sources for part in ("-f", "lavfi", "-i", source)]
    maps = ["-map", "0", "-map", "1", "-program", "st=0", "-program", "st=1"]
    run(["ffmpeg", "-v", "error", *inputs, *maps, str(path)], check=True)
    assert Video(str(path)).at(0).shape == (480, 640, 3)


def test_a_video_leaves_no_frame_in_memory(tmp_path: Path) -> None:
    """Frames in circles of references stay until the garbage collector comes, with their threads."""
    path = tmp_path / "a.mp4"
    run(["ffmpeg", "-v", "error", "-f", "lavfi", "-i", "testsrc=size=320x240:rate=25:duration=2.5", str(path)], check=True)
    gc.collect()
    gc.disable()
    try:
        video = Video(str(path))
        for moment in video.moments_ms(4.0):
            video.at(moment)
        video.close()
        assert not [one for one in gc.get_objects() if type(one) is av.VideoFrame]
    finally:
        gc.enable()


def test_a_picture_that_grows_in_the_middle_is_too_large_from_its_first_frame_on() -> None:
    class Grown:
        size_px, capture = (10, 10), UNKNOWN

        def at(self, time_ms: int) -> np.ndarray:
            return np.zeros((200, 100, 3), np.uint8)

    with pytest.raises(RecordError, match="100 x 200 pixels are more than the limit of 1000"):
        decode(Frame(Grown(), 0), 1000)
