"""How well faces are joined into tracks, on made scenes in which everybody is known. One JSON line for each frame rate.

    python -m tests.benchmarks.tracks [--scenes 40] [--bytetrack | --labels]

A scene lasts 40 s: six people of 60 to 160 px in 1280 x 720 px walk on smooth random ways of up to 150 px a second and pass in
front of one another; boxes jitter by 4 %, 5 % of faces are missed, and a face that is covered by 40 % is not seen. After 20 s
there is a cut to six others. `joined` is the share of neighbouring sightings of a person (at most a second apart) that are in
one track; `pure` the share of tracks' frames that show the track's most frequent person; `switches` counts, per 100 sightings,
how often a track goes on with another person; `tracks` are those for each person, of which 1 is perfect. `--bytetrack` judges
ByteTrack (`pip install supervision==0.26.1`) in the same way.

`--labels`: how often frames and tracks are right, on 300 clips of each class whose frames are different faces of FER-2013
PublicTest. Frames of real video are alike, so tracks gain less there.
"""

import argparse
import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from itertools import pairwise, product
from typing import Any

import numpy as np

from fer_pipeline.faces.phash import colours_of
from fer_pipeline.labelling.tracks import tracks_of
from fer_pipeline.models.bundle import EMBEDDED, read_bundle

PEOPLE, SECONDS, CUT_S, STEP_S = 6, 40, 20, 0.1
WIDTH, HEIGHT = 1280, 720


def ways(rng: np.random.Generator) -> tuple[Any, Any]:
    """Return the centres (steps, people, 2) and the sides (people,) of people who walk."""
    steps = round(SECONDS / STEP_S)
    centres, speeds = np.empty((steps, PEOPLE, 2)), rng.normal(0, 60, (PEOPLE, 2))
    place = rng.uniform((150, 150), (WIDTH - 150, HEIGHT - 150), (PEOPLE, 2))
    for step in range(steps):
        speeds = np.clip(speeds + rng.normal(0, 25, (PEOPLE, 2)), -150, 150)
        place = place + speeds * STEP_S
        outside = (place < 100) | (place > (WIDTH - 100, HEIGHT - 100))
        speeds = np.where(outside, np.sign(np.array([WIDTH, HEIGHT]) / 2 - place) * abs(speeds), speeds)
        centres[step] = place
    return centres, rng.uniform(60, 160, PEOPLE)


def scene(seed: int, fps: float) -> list[dict[str, Any]]:
    """Return the rows of a scene's frames; the detection score of a face is the number of its person."""
    rng = np.random.default_rng(seed)
    shots = [ways(rng) for _ in range(2)]
    looks = [(rng.bytes(32).hex(), colours_of(np.full((8, 8, 3), colour, np.uint8)).hex()) for colour in (40, 200)]
    noise = np.random.default_rng([seed, round(fps)])
    rows = []
    for number in range(round(SECONDS * fps)):
        now = number / fps
        shot = int(now >= CUT_S)
        centres, sides = shots[shot]
        boxes = np.concatenate([centres[round(now / STEP_S)] - sides[:, None] / 2, np.stack([sides, sides * 1.2], 1)], 1)
        jittered = boxes + noise.normal(0, 0.04, boxes.shape) * sides[:, None]
        seen = [person for person in range(PEOPLE) if noise.random() > 0.05 and not _covered(boxes, person)]
        noise.shuffle(seen)
        faces = [
            {"face_id": index, **dict(zip("xywh", jittered[person].tolist(), strict=True)), "expression": "happy",
             "detection_score": float(shot * PEOPLE + person), "probabilities": [1.0]}
            for index, person in enumerate(seen)
        ]  # fmt: skip
        place: dict[str, Any] = {"uri": f"{seed}", "member": None, "path": "", "folder": "", "time_ms": round(now * 1000)}
        rows.append(place | {"phash": looks[shot][0], "colours": looks[shot][1], "faces": faces, "qualities": None})
    return rows


def _covered(boxes: Any, person: int) -> bool:
    """Return whether somebody nearer to the camera, who is the larger one, covers a face by 40 %."""
    nearer = boxes[boxes[:, 2] > boxes[person, 2]]
    ends = np.minimum(boxes[person, :2] + boxes[person, 2:], nearer[:, :2] + nearer[:, 2:])
    inner = np.maximum(0, ends - np.maximum(boxes[person, :2], nearer[:, :2])).prod(1)
    return bool((inner > 0.4 * boxes[person, 2:].prod()).any())


def judged(scenes: int, fps: float, tracker: Any = tracks_of) -> dict[str, float]:
    totals: Counter[str] = Counter()
    for seed in range(scenes):
        rows = scene(seed, fps)
        who = {(row["time_ms"], face["face_id"]): int(face["detection_score"]) for row in rows for face in row["faces"]}
        track_of: dict[int, list[tuple[int, int]]] = defaultdict(list)
        for track in tracker(rows, ("happy",), 0.0, fps):
            people = [who[place] for place in zip(track["times_ms"], track["face_ids"], strict=True)]
            totals["pure"] += Counter(people).most_common(1)[0][1]
            totals["switches"] += sum(one != other for one, other in pairwise(people))
            totals["tracks"] += 1
            for person, moment in zip(people, track["times_ms"], strict=True):
                track_of[person].append((moment, track["track_id"]))
        totals["seen"] += len(who)
        totals["people"] += len(track_of)
        for sightings in track_of.values():
            ordered = sorted(sightings)
            near = [(one[1], other[1]) for one, other in pairwise(ordered) if other[0] - one[0] <= 1000]
            totals["pairs"] += len(near)
            totals["joined"] += sum(one == other for one, other in near)
    return {
        "fps": fps, "sightings": totals["seen"], "joined": round(totals["joined"] / totals["pairs"], 3),
        "pure": round(totals["pure"] / totals["seen"], 3), "switches": round(100 * totals["switches"] / totals["seen"], 2),
        "tracks": round(totals["tracks"] / totals["people"], 1),
    }  # fmt: skip


def byte_tracks_of(rows: list[dict[str, Any]], classes: Any, uncertain_below: float, fps: float) -> Iterator[dict[str, Any]]:
    """Yield the tracks of a scene by ByteTrack; a face that it drops is a track of its own."""
    import supervision  # type: ignore[import-not-found]

    tracker = supervision.ByteTrack(0.25, lost_track_buffer=30, minimum_matching_threshold=0.9, frame_rate=int(fps))
    found: dict[Any, list[tuple[int, int]]] = defaultdict(list)
    for row in rows:
        boxes = np.array([[one["x"], one["y"], one["x"] + one["w"], one["y"] + one["h"]] for one in row["faces"]], np.float32)
        ids = np.array([one["face_id"] for one in row["faces"]], np.intp)
        faces = supervision.Detections(boxes.reshape(-1, 4), confidence=np.full(len(ids), 0.9), class_id=ids)
        kept = tracker.update_with_detections(faces)
        track_of = dict(zip(kept.class_id.tolist(), kept.tracker_id.tolist(), strict=True)) if len(kept) else {}
        for face_id in ids.tolist():
            found[track_of.get(face_id, (row["time_ms"], face_id))].append((row["time_ms"], face_id))
    for number, sightings in enumerate(found.values()):
        yield {"track_id": number, "times_ms": [one for one, _ in sightings], "face_ids": [one for _, one in sightings]}


def judged_labels(frames: int) -> dict[str, float]:
    """Return how often frames and tracks of clips with this number of frames are right."""
    from tests.benchmarks.quality import TO_MEASURE, labelled

    halves = [part for half in (0, 1) for part in labelled(half, {"clean": TO_MEASURE["clean"]})]
    chances, truth = (np.concatenate([part[index] for part in halves]) for index in (2, 3))
    classes, rng, found = read_bundle(EMBEDDED).card.label_space.classes, np.random.default_rng(0), []
    place: dict[str, Any] = {"uri": "", "member": None, "path": "", "folder": "", "phash": "00" * 32, "colours": "00" * 64}
    box = {"face_id": 0, "x": 10.0, "y": 10.0, "w": 50.0, "h": 60.0, "detection_score": 1.0}
    for label, number in product(range(len(classes)), range(300)):
        picked = rng.choice(np.flatnonzero(truth == label), frames)
        faces = [box | {"expression": classes[chances[one].argmax()], "probabilities": chances[one].tolist()} for one in picked]
        clip = [place | {"time_ms": 200 * step, "qualities": None, "faces": [face]} for step, face in enumerate(faces)]
        (track,) = tracks_of(clip, classes, 0.0, 5)
        right = chances[picked].argmax(1) == label
        found.append((right.mean(), track["expression"] == classes[label], track["confidence"], number))
    of_frames, of_tracks, confidence, _ = np.mean(found, axis=0).round(3).tolist()
    return {"frames": frames, "frames right": of_frames, "tracks right": of_tracks, "confidence of tracks": confidence}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=40)
    parser.add_argument("--bytetrack", action="store_true")
    parser.add_argument("--labels", action="store_true")
    options = parser.parse_args()
    if options.labels:
        for frames in (2, 5, 10):
            print(json.dumps(judged_labels(frames)))
        return
    for fps in (1, 2, 5, 10):
        print(json.dumps(judged(options.scenes, fps, byte_tracks_of if options.bytetrack else tracks_of)))


if __name__ == "__main__":
    main()
