from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

import fer_pipeline as fer
from fer_pipeline.faces.phash import colours_of
from fer_pipeline.labelling.tracks import TRACKS, overlaps, tracks_of

CLASSES = ("happy", "sad")
PHASHES = [np.random.default_rng(seed).bytes(32).hex() for seed in range(4)]
"""Perceptual hashes, half of whose bits differ."""
COLOURS = [colours_of(np.full((48, 64, 3), colour, np.uint8)).hex() for colour in ((200, 10, 10), (10, 200, 10))]
Way = Callable[[float], tuple[float, float] | None]
"""Where the centre of a face is at a time in seconds; None if it is not seen."""


def frames(ways: dict[str, Way], fps: float, seconds: float, shot: Callable[[float], int] = lambda _: 0) -> list[dict[str, Any]]:
    """Return the rows of a video; the detection score of a face tells who it is."""
    rows = []
    for number in range(round(seconds * fps)):
        now = number / fps
        seen = [(name, place) for name, way in ways.items() if (place := way(now))]
        seen.sort(key=lambda one: one[1])  # the order of faces in a frame says nothing
        faces = [
            {"face_id": index, "x": x - 50, "y": y - 60, "w": 100.0, "h": 120.0, "detection_score": 0.5 + ord(name) / 1000,
             "expression": "happy", "confidence": 0.8, "probabilities": [0.8, 0.2]}
            for index, (name, (x, y)) in enumerate(seen)
        ]  # fmt: skip
        row: dict[str, Any] = {
            "uri": "v.mp4",
            "member": None,
            "path": "v.mp4",
            "folder": "",
            "time_ms": round(now * 1000),
            "phash": PHASHES[shot(now)],
        }
        rows.append(row | {"colours": COLOURS[shot(now) % 2], "faces": faces, "qualities": None})
    return rows


def found(rows: list[dict[str, Any]], fps: float = 5) -> list[dict[str, Any]]:
    return list(tracks_of(rows, CLASSES, 0.5, fps))


def people(rows: list[dict[str, Any]], fps: float = 5) -> list[list[str]]:
    """Return who each track holds, frame by frame."""
    by_place = {(row["time_ms"], face["face_id"]): face for row in rows for face in row["faces"]}
    scores = [
        [by_place[place]["detection_score"] for place in zip(one["times_ms"], one["face_ids"], strict=True)]
        for one in found(rows, fps)
    ]
    return [[chr(round((score - 0.5) * 1000)) for score in track] for track in scores]


@pytest.mark.parametrize("fps", [1, 2, 5, 10])
def test_two_people_who_stay_are_two_tracks(fps: float) -> None:
    ways: dict[str, Way] = {"a": lambda t: (200 + 10 * np.sin(t), 300), "b": lambda t: (600 - 8 * t, 310 + 3 * t)}
    tracks = people(frames(ways, fps, 10), fps)
    assert [set(track) for track in tracks] == [{"a"}, {"b"}] and {len(track) for track in tracks} == {10 * fps}


@pytest.mark.parametrize("fps", [5, 10])
def test_people_who_cross_keep_their_tracks(fps: float) -> None:
    ways: dict[str, Way] = {"a": lambda t: (100 + 120 * t, 300), "b": lambda t: (900 - 120 * t, 340)}
    assert [set(track) for track in people(frames(ways, fps, 6), fps)] == [{"a"}, {"b"}]


def test_a_face_that_is_missed_for_a_moment_goes_on_and_one_that_comes_back_later_begins_anew() -> None:
    blinks: dict[str, Way] = {"a": lambda t: None if 2 <= t < 2.1 else (200, 300)}
    leaves: dict[str, Way] = {"a": lambda t: None if 2 <= t < 5 else (200, 300)}
    assert len(people(frames(blinks, 5, 6))) == 1
    tracks = found(frames(leaves, 5, 8))
    assert [(one["start_ms"], one["end_ms"], one["frames"]) for one in tracks] == [(0, 1800, 10), (5000, 7800, 15)]
    assert [one["track_id"] for one in tracks] == [0, 1]


def test_a_cut_ends_all_tracks_also_where_the_next_face_is_in_the_same_place() -> None:
    ways: dict[str, Way] = {"a": lambda t: (200, 300) if t < 3 else None, "b": lambda t: (210, 300) if t >= 3 else None}
    assert [set(track) for track in people(frames(ways, 5, 6, lambda t: int(t >= 3)))] == [{"a"}, {"b"}]


def in_a_crowd(number: int) -> Way:
    return lambda t: (150.0 * (number % 20) + 20 * float(np.sin(t + number)), 150.0 * (number // 20))


def test_a_shot_whose_picture_moves_but_keeps_its_colours_has_no_cut() -> None:
    assert len(people(frames({"a": lambda t: (200, 300)}, 5, 4, lambda t: 2 * (int(5 * t) % 2)))) == 1


def test_frames_of_earlier_versions_have_no_colours_and_no_cuts() -> None:
    rows = frames({"a": lambda t: (200, 300)}, 5, 4, lambda t: int(5 * t) % 2)
    assert [one["frames"] for one in found([row | {"colours": None} for row in rows])] == [20]
    assert len(found(rows)) == 20


def test_every_face_of_a_frame_with_200_is_in_one_track() -> None:
    ways = {chr(300 + number): in_a_crowd(number) for number in range(200)}
    tracks = people(frames(ways, 5, 3))
    assert len(tracks) == 200 and all(len(set(track)) == 1 and len(track) == 15 for track in tracks)


def test_frames_that_are_far_apart_are_not_joined_although_nothing_lies_between() -> None:
    rows = [row for row in frames({"a": lambda t: (200, 300)}, 1, 400) if row["time_ms"] % 100_000 < 3000]
    assert [one["frames"] for one in found(rows, 1)] == [3, 3, 3, 3]


def test_a_clock_that_jumps_back_joins_nothing_wrongly_and_loses_no_face() -> None:
    rows = frames({"a": lambda t: (200, 300)}, 5, 2) + frames({"a": lambda t: (200, 300)}, 5, 2)
    tracks = found(rows)
    assert [one["frames"] for one in tracks] == [10, 10]


def test_videos_are_apart_and_frames_without_faces_are_none() -> None:
    first, second = (frames({"a": lambda t: (200, 300)}, 1, 3) for _ in range(2))
    for row in second:
        row["uri"] = "w.mp4"
    tracks = found([*first, *second, *frames({}, 1, 90)], 1)
    assert [(one["uri"], one["track_id"], one["frames"]) for one in tracks] == [("v.mp4", 0, 3), ("w.mp4", 0, 3)]
    assert found([]) == []


def test_a_track_has_the_mean_of_the_logits_and_the_clearest_frame() -> None:
    rows = frames({"a": lambda t: (200 + 2 * t, 300)}, 1, 3)
    chances = [[0.9, 0.1], [0.3, 0.7], [0.6, 0.4]]
    for row, chance, quality in zip(rows, chances, (0.5, 0.9, 0.7), strict=True):
        row["faces"][0]["probabilities"], row["qualities"] = chance, [{"quality": quality}]
    (track,) = found(rows, 1)
    logits = np.log(chances).mean(0)
    assert track["probabilities"] == pytest.approx(np.exp(logits) / np.exp(logits).sum())
    assert (track["expression"], track["uncertain"], track["best_time_ms"], track["best_face_id"]) == ("happy", False, 1000, 0)
    assert track["x"] == pytest.approx(152) and track["expressions"] == ["happy"] * 3
    assert next(tracks_of(rows, CLASSES, 0.99, 1))["uncertain"]
    assert set(track) == set(TRACKS.names)


def test_overlaps_are_shares_of_the_union_less_the_distance() -> None:
    boxes = np.array([[0, 0, 10, 10], [5, 0, 10, 10], [20, 20, 5, 5], [0, 0, 0, 0]], float)
    assert overlaps(boxes[:1], boxes)[0] == pytest.approx([1, 1 / 3 - 25 / 325, -(17.5**2) * 2 / (25**2 * 2), -50 / 200])


@pytest.fixture(scope="module")
def clip(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clip of 4 s at 5 frames a second: a person moves to the right, then, after a cut, another one does."""
    folder = tmp_path_factory.mktemp("clip")
    writer = cv2.VideoWriter(str(folder / "clip.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 5, (640, 480))
    for name in ("hopper", "astronaut"):
        photo = cv2.imread(str(next(archive.rglob(f"{name}-320.jpg"))))
        assert photo is not None
        for number in range(10):
            frame = np.full((480, 640, 3), 120 if name == "hopper" else 20, np.uint8)
            frame[80 : 80 + photo.shape[0], 12 * number : 12 * number + photo.shape[1]] = photo
            writer.write(frame)
    writer.release()
    return folder


@pytest.mark.parametrize("shard_records", [1, 7, 64])
def test_tracks_are_the_same_for_any_size_of_shards_and_after_a_kill(
    shard_records: int, clip: Path, tmp_path: Path, local_ray: None
) -> None:
    run = fer.label(clip, tmp_path / "run", detector="mtcnn", fps=5, shard_records=shard_records)
    tracks = run.tracks()
    assert run.record.result and run.record.result.tracks == len(tracks) == 2
    assert tracks.select(["track_id", "start_ms", "end_ms", "frames"]).to_pylist() == [
        {"track_id": 0, "start_ms": 0, "end_ms": 1800, "frames": 10},
        {"track_id": 1, "start_ms": 2000, "end_ms": 3800, "frames": 10},
    ]
    assert sum(tracks["frames"].to_pylist()) == run.record.result.faces and "p_happy" in tracks.column_names
    (tmp_path / "run/tracks/00001.parquet").write_bytes((tmp_path / "run/tracks/00000.parquet").read_bytes())
    for lost in ("tracks/00000.parquet", "_SUCCESS", "images/000000.parquet"):
        (tmp_path / "run" / lost).unlink()  # as a kill leaves them
    again = fer.label(clip, tmp_path / "run", detector="mtcnn", fps=5, shard_records=shard_records)
    assert again.tracks().equals(tracks)


def test_a_run_without_videos_has_no_tracks(labelled: fer.Run) -> None:
    assert labelled.record.result and labelled.record.result.tracks == 0 and labelled.tracks().num_rows == 0
