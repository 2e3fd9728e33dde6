"""Errors of roll, yaw and pitch on pictures whose angles are known. Prints JSON lines.

    python -m tests.benchmarks.pose [--detector yunet|mtcnn] [--pictures FOLDER]

Roll: portraits turned in the plane. Yaw and pitch: each portrait is laid as a height field on a head of another shape than the
estimator's (an ellipsoid 150 mm wide, 220 high and 190 deep, with a smooth nose of 22 mm), turned and drawn with a camera 1.2 m
away; the detector finds the landmarks. A portrait's own pose is not known: errors are those of the difference from its drawing at
0.
"""

import argparse
import json
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from fer_pipeline.faces.detectors import DETECTORS, load_detector, resolve_detector
from fer_pipeline.faces.detectors.detections import Detector, Floats
from fer_pipeline.faces.pixels import Pixels
from fer_pipeline.faces.quality import head_pose
from fer_pipeline.models.framing import FER2013_FRAMING

SIDE, ROLLS, TURNS = 480, range(-60, 61, 15), range(-45, 46, 15)
EYES_MM = 63.0
CAMERA_MM = 1200.0


def landmarks_of(detect: Detector, pixels: Pixels) -> Floats | None:
    """Return the landmarks (5, 2) of the best face of an image."""
    found = detect(pixels)
    return found.landmarks[0] if len(found) and found.landmarks is not None else None


def portraits(folder: Path, detect: Detector) -> list[tuple[Pixels, Floats]]:
    """Return pictures of one upright face each, 480 px with its surroundings, and their landmarks."""
    found = []
    for path in sorted(folder.rglob("*")):
        image = cv2.imread(str(path))
        points = None if image is None else landmarks_of(detect, np.asarray(image, np.uint8))
        if image is None or points is None:
            continue
        eyes = float(np.linalg.norm(points[1] - points[0]))
        if eyes < 40 or abs(head_pose(points[None])[0]).max() > 25:
            continue
        scale = SIDE * 0.18 / eyes
        x, y = points.mean(0)
        turn = np.array([[scale, 0, SIDE / 2 - scale * x], [0, scale, SIDE / 2 - scale * y]])
        picture = np.asarray(
            cv2.warpAffine(image, turn, (SIDE, SIDE), flags=cv2.INTER_AREA, borderValue=(128, 128, 128)), np.uint8
        )
        again = landmarks_of(detect, picture)
        if again is not None:
            found.append((picture, again))
    return found


def drawn(picture: Pixels, points: Floats, yaw_deg: float, pitch_deg: float) -> Pixels:
    """Return the portrait on a head that is turned to the right of the image and upwards."""
    mm = EYES_MM / float(np.linalg.norm(points[1] - points[0]))
    eyes, (nose_x, nose_y) = points[:2].mean(0), points[2]
    step = 0.4
    columns, rows = np.meshgrid(np.arange(0, SIDE, step), np.arange(0, SIDE, step))
    x, y = (columns - nose_x) * mm, (rows - float(eyes[1])) * mm - 20  # the head's centre is 20 mm below the eyes
    inside = 1 - (x / 75) ** 2 - (y / 110) ** 2
    on_head = inside > 0.02
    z = -95 * np.sqrt(np.maximum(inside, 0))  # towards the camera is negative
    nose = np.exp(-(x**2) / (2 * 9.0**2) - ((rows - nose_y) * mm + 8) ** 2 / (2 * 14.0**2))
    z = z - 22 * nose
    head = np.stack([x[on_head], y[on_head], z[on_head]], 1)
    yaw, pitch = np.radians(yaw_deg), np.radians(pitch_deg)
    up = np.array([[1, 0, 0], [0, np.cos(pitch), np.sin(pitch)], [0, -np.sin(pitch), np.cos(pitch)]])
    right = np.array([[np.cos(yaw), 0, -np.sin(yaw)], [0, 1, 0], [np.sin(yaw), 0, np.cos(yaw)]])
    turned = head @ (right @ up).T
    depth = turned[:, 2] + CAMERA_MM
    u = np.rint(turned[:, 0] / depth * CAMERA_MM / mm + SIDE / 2).astype(int)
    v = np.rint(turned[:, 1] / depth * CAMERA_MM / mm + SIDE / 2).astype(int)
    colours = picture[np.clip(rows[on_head].astype(int), 0, SIDE - 1), np.clip(columns[on_head].astype(int), 0, SIDE - 1)]
    order = np.argsort(-depth)
    order = order[(u[order] >= 0) & (u[order] < SIDE) & (v[order] >= 0) & (v[order] < SIDE)]
    canvas = np.full((SIDE, SIDE, 3), 128, np.uint8)
    canvas[v[order], u[order]] = colours[order]  # the nearest is written last
    return np.asarray(cv2.medianBlur(canvas, 3), np.uint8)


def errors(known: list[float], found: list[float]) -> dict[str, float]:
    """Return the mean error, its mean size and the largest, in degrees."""
    apart: NDArray[np.float64] = np.array(found) - np.array(known)
    return {"faces": len(apart), "bias": round(float(apart.mean()), 1), "mean": round(float(abs(apart).mean()), 1),
            "most": round(float(abs(apart).max()), 1)}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--detector", default="yunet")
    parser.add_argument("--pictures", type=Path, default=Path(__file__).resolve().parents[3] / "shared/data/photos")
    parser.add_argument("--out", type=Path, help="folder for the drawings")
    options = parser.parse_args()
    detect, gain = load_detector(resolve_detector(options.detector), 640, 0.6), DETECTORS[options.detector].pitch_gain
    faces = portraits(options.pictures, detect)
    print(json.dumps({"portraits": len(faces), "detector": options.detector, "framing": FER2013_FRAMING.cut}))
    for roll in ROLLS:
        known, found = [], []
        for picture, points in faces:
            turn = cv2.getRotationMatrix2D((SIDE / 2, SIDE / 2), -roll, 1.0)
            turned = landmarks_of(
                detect, np.asarray(cv2.warpAffine(picture, turn, (SIDE, SIDE), borderValue=(128, 128, 128)), np.uint8)
            )
            if turned is not None:
                known.append(roll + head_pose(points[None])[0, 0])
                found.append(head_pose(turned[None])[0, 0])
        print(json.dumps({"roll_deg": roll} | errors(known, found)))
    straight = [landmarks_of(detect, drawn(picture, points, 0, 0)) for picture, points in faces]
    for name, axis in (("yaw_deg", 1), ("pitch_deg", 2)):
        for angle in TURNS:
            known, found, lost = [], [], 0
            for number, ((picture, points), front) in enumerate(zip(faces, straight, strict=True)):
                image = drawn(picture, points, angle if axis == 1 else 0, angle if axis == 2 else 0)
                if options.out:
                    options.out.mkdir(parents=True, exist_ok=True)
                    cv2.imwrite(str(options.out / f"{number:02d}-{name}-{angle}.jpg"), image)
                turned = landmarks_of(detect, image)
                poses = [head_pose(one[None])[0, axis] for one in (turned, front) if one is not None]
                if len(poses) < 2 or np.isnan(poses).any():
                    lost += 1
                    continue
                known.append(float(angle))
                found.append(float(poses[0] - poses[1]) * (gain if axis == 2 else 1))
            print(json.dumps({name: angle, "lost": lost} | (errors(known, found) if known else {})))


if __name__ == "__main__":
    main()
