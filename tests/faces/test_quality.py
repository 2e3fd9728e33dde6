from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import pytest

from fer_pipeline.faces.detectors import load_detector, resolve_detector
from fer_pipeline.faces.detectors.detections import Detections, Floats
from fer_pipeline.faces.pixels import Pixels
from fer_pipeline.faces.quality import HEAD_MM, QUALITY, FaceQuality, head_pose, measured, qualities_of

FULL = np.array([[2.57, 2.57, 42.86, 42.86]], np.float32)


def whole(box: np.ndarray = FULL) -> Detections:
    return Detections(box, np.ones(len(box), np.float32))


def rated(pixels: Pixels, faces: Detections, reduction: float = 1.0) -> list[FaceQuality]:
    return qualities_of([measured(pixels, faces.scaled(reduction), reduction)])[0]


def turned_head(roll: float, yaw: float, pitch: float) -> Floats:
    """Return the landmarks (1, 5, 2) of the head, far from the camera, first turned up, then right, then clockwise."""
    r, y, p = np.radians([roll, yaw, pitch])
    up = np.array([[1, 0, 0], [0, np.cos(p), np.sin(p)], [0, -np.sin(p), np.cos(p)]])
    right = np.array([[np.cos(y), 0, -np.sin(y)], [0, 1, 0], [np.sin(y), 0, np.cos(y)]])
    clockwise = np.array([[np.cos(r), -np.sin(r), 0], [np.sin(r), np.cos(r), 0], [0, 0, 1]])
    return np.asarray((3.7 * HEAD_MM @ (clockwise @ right @ up).T)[None, :, :2] + (200, 300), np.float32)


@pytest.mark.parametrize("pose", [(0, 0, 0), (30, 0, 0), (-80, 0, 0), (0, 40, 0), (0, -60, 0), (0, 0, 35), (0, 0, -50)])
def test_the_pose_of_the_model_is_found(pose: tuple[float, float, float]) -> None:
    assert head_pose(turned_head(*pose))[0] == pytest.approx(pose, abs=0.01)


def test_turns_are_found_together() -> None:
    found = head_pose(np.concatenate([turned_head(10, 20, 15), turned_head(-20, -30, -10)]))
    assert found == pytest.approx(np.array([[10, 20, 15], [-20, -30, -10]]), abs=0.01)


@pytest.mark.parametrize("angle", [-20, -10, 10, 20])
def test_roll_is_about_that_of_a_turned_photo(angle: int, hopper: Pixels) -> None:
    detect = load_detector(resolve_detector("mtcnn"), 640, 0.9)
    height, width = hopper.shape[:2]
    turn = cv2.getRotationMatrix2D((width / 2, height / 2), -angle, 0.8)
    turned = np.asarray(cv2.warpAffine(hopper, turn, (width, height)), np.uint8)
    before, after = (rated(image, detect(image))[0].roll_deg for image in (hopper, turned))
    assert before is not None and after is not None
    assert after - before == pytest.approx(angle, abs=3)  # what MTCNN's landmarks allow


@pytest.mark.parametrize(
    "points", [np.zeros((5, 2)), np.full((5, 2), np.nan), np.arange(10).reshape(5, 2) * 10.0, np.eye(5, 2) * 1e9]
)
def test_landmarks_that_are_no_head_have_no_pose(points: np.ndarray) -> None:
    found = rated(np.zeros((50, 50, 3), np.uint8), replace(whole(), attributes={"landmarks": points[None].astype(np.float32)}))
    assert (found[0].roll_deg, found[0].yaw_deg, found[0].pitch_deg) == (None, None, None)


def test_a_face_without_landmarks_has_no_pose_but_figures(hopper: Pixels) -> None:
    (found,) = rated(hopper, whole(np.array([[200, 120, 200, 240]], np.float32)), reduction=2)
    assert found.yaw_deg is None and found.side_px == pytest.approx(2 * np.sqrt(200 * 240)) and 0.8 < found.quality <= 1
    assert found.quality_reasons is None and found.occluded_by_frame == 0


def spoiled(hopper: Pixels, how: str) -> FaceQuality:
    face = np.asarray(cv2.resize(hopper[100:400, 150:450], (48, 48), interpolation=cv2.INTER_AREA), np.uint8)
    images: dict[str, Any] = {
        "good": face,
        "blurred": cv2.GaussianBlur(face, (0, 0), 4),
        "dark": face // 8,
        "bright": 255 - face // 12,
        "flat": face // 16 + 110,
        "small": cv2.resize(face, (12, 12), interpolation=cv2.INTER_AREA),
    }
    image = np.asarray(images[how], np.uint8)
    return rated(image, whole(FULL * np.float32(image.shape[0] / 48)))[0]


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("blurred", "LOW_SHARPNESS"),
        ("dark", "LOW_BRIGHTNESS"),
        ("bright", "HIGH_BRIGHTNESS"),
        ("flat", "LOW_CONTRAST"),
        ("small", "SMALL_BOUNDING_BOX"),
    ],
)
def test_a_poor_picture_has_a_lower_quality_and_the_reason(how: str, reason: str, hopper: Pixels) -> None:
    good, poor = spoiled(hopper, "good"), spoiled(hopper, how)
    assert good.quality_reasons is None and reason in (poor.quality_reasons or "").split(",")
    assert poor.quality < good.quality or how == "bright"


@pytest.mark.parametrize(
    ("pose", "is_extreme"), [((0, 35, 0), False), ((0, -45, 0), True), ((0, 0, 50), False), ((0, 0, 65), True)]
)
def test_a_face_that_looks_far_away_is_told(pose: tuple[float, float, float], is_extreme: bool, hopper: Pixels) -> None:
    box = np.array([[100, 100, 300, 350]], np.float32)
    (found,) = rated(hopper, replace(whole(box), attributes={"landmarks": turned_head(*pose)}))
    assert ("EXTREME_POSE" in (found.quality_reasons or "")) == is_extreme


def test_a_face_at_the_edge_is_partly_outside() -> None:
    boxes = np.array([[-20, 10, 40, 40], [80, 80, 40, 40], [10, 10, 40, 40], [300, 300, 10, 10], [5, 5, 0, 0]], np.float32)
    found = rated(np.zeros((100, 100, 3), np.uint8), whole(boxes))
    assert [round(one.occluded_by_frame, 2) for one in found] == [0.5, 0.75, 0, 1, 1]


def test_the_column_has_the_fields_of_a_quality() -> None:
    assert [field.name for field in QUALITY] == list(FaceQuality.__dataclass_fields__)
    assert rated(np.zeros((9, 9, 3), np.uint8), whole(np.zeros((0, 4), np.float32))) == []


def test_faces_of_many_images_are_rated_as_those_of_one(hopper: Pixels) -> None:
    detect = load_detector(resolve_detector("mtcnn"), 640, 0.9)
    empty, box = whole(np.zeros((0, 4), np.float32)), whole(np.array([[200, 120, 200, 240]], np.float32))
    images = [measured(hopper, faces) for faces in (detect(hopper), empty, box, detect(hopper))]
    assert qualities_of(images) == [qualities_of([one])[0] for one in images] and qualities_of([]) == []
