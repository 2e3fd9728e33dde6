"""How good the picture of a face is, and which way the face looks: from its pixels, box and landmarks alone."""

import math
from dataclasses import dataclass, fields

import cv2
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from fer_pipeline.faces.align import crop_transform, warp_crop
from fer_pipeline.faces.detectors.detections import Detections, Floats
from fer_pipeline.faces.pixels import Pixels
from fer_pipeline.models.framing import FER2013_FRAMING

SIDE_PX = 64
"""Side of the aligned crop that is measured: more than networks of our recipes see, and cheap."""
GOOD = (0.25, 0.35, 0.3)
"""Sharpness, brightness and contrast that a good picture has."""
LOGIT, WEIGHTS = 0.76, (1.47, 0.83, 0.33)
"""Log odds of a right label on a good picture, and what each full lack takes from them: a logistic regression on half of FER-2013
PublicTest under corruptions, labelled by the embedded model (`tests/benchmarks/quality.py`). The size of the face adds nothing to
sharpness, which falls with it."""
SMALL_PX, LOW_SHARPNESS, LOW_BRIGHTNESS, HIGH_BRIGHTNESS, LOW_CONTRAST, LOW_QUALITY = 24, 0.12, 0.15, 0.85, 0.12, 0.75
"""Limits of `quality_reasons`."""
EXTREME_DEG = 40


@dataclass(frozen=True)
class FaceQuality:
    """What is known of the picture of a face; `labelling/schemas.py` says what each value is."""

    side_px: float
    sharpness: float
    brightness: float
    contrast: float
    roll_deg: float | None
    yaw_deg: float | None
    pitch_deg: float | None
    occluded_by_frame: float
    quality: float
    quality_reasons: str | None


QUALITY = pa.struct(
    [pa.field(one.name, pa.string() if one.name == "quality_reasons" else pa.float32()) for one in fields(FaceQuality)]
)
"""The same as a column."""

HEAD_MM = np.array(
    [[-31.5, -37.5, 28.0], [31.5, -37.5, 28.0], [0.0, 0.0, 0.0], [-24.5, 25.5, 25.0], [24.5, 25.5, 25.0]], np.float64
)
"""x to the right, y down and z away from the camera, of each of `framing.LANDMARKS`, in mm from the nose of a face that looks
into the camera. x and y are the mean landmarks of FER-2013 (`framing.FER2013_FRAMING`) for pupils 63 mm apart; the tip of the
nose is 28 mm in front of the eyes and 25 mm in front of the corners of the mouth."""
_CENTRED = HEAD_MM - HEAD_MM.mean(0)
_FIT = np.linalg.pinv(_CENTRED)
"""(3, 5): from centred image points of a head to the first two rows of its scaled rotation."""
MOST_MISFIT = 0.3
"""Landmarks whose mean distance from the fitted head is above this share of the head's size do not tell a pose."""


def head_pose(landmarks: Floats) -> NDArray[np.float64]:
    """Return roll, yaw and pitch (n, 3) in degrees from landmarks (n, 5, 2); NaN where they do not fit a head.

    A rigid head under a camera far away (scaled orthography; the linear step of DeMenthon and Davis, 1995): least squares give
    the first two rows of a scaled rotation, of which the nearest true one is taken. Roll is the angle of the line between the
    eyes, positive when it turns clockwise in the image. With the roll undone, yaw is positive when the face turns to the right of
    the image, and pitch when it looks up.
    """
    points = np.asarray(landmarks, np.float64)
    centred = points - points.mean(1, keepdims=True)
    rows = centred.transpose(0, 2, 1) @ _FIT.T  # (n, 2, 3)
    with np.errstate(all="ignore"):
        left, sizes, right = np.linalg.svd(np.nan_to_num(rows), full_matrices=False)
        rotation, scale = left @ right, sizes.mean(1)
        first, second = rotation[:, 0], rotation[:, 1]
        depth = np.cross(first, second)
        roll = np.arctan2(second[:, 0], first[:, 0])
        yaw = np.arctan2(-np.cos(roll) * first[:, 2] - np.sin(roll) * second[:, 2], depth[:, 2])
        pitch = np.arcsin(np.clip(np.cos(roll) * second[:, 2] - np.sin(roll) * first[:, 2], -1, 1))
        misfit = centred - scale[:, None, None] * (_CENTRED @ rotation.transpose(0, 2, 1))
        relative = np.linalg.norm(misfit, axis=2).mean(1) / (scale * np.linalg.norm(_CENTRED, axis=1).mean())
        known = np.isfinite(relative) & (relative <= MOST_MISFIT)
    return np.where(known[:, None], np.degrees(np.stack([roll, yaw, pitch], 1)), np.nan)


def qualities_of(pixels: Pixels, faces: Detections, reduction: float = 1.0, pitch_gain: float = 1.0) -> list[FaceQuality]:
    """Return the quality of each face in a BGR image (h, w, 3), which is the original at 1 / `reduction` of its size.

    `pitch_gain`: `DetectorSpec.pitch_gain` of the detector that found them.
    """
    if not len(faces):
        return []
    height, width = pixels.shape[:2]
    boxes = np.asarray(faces.boxes_xywh, np.float64)
    sides = np.sqrt(np.maximum(boxes[:, 2] * boxes[:, 3], 0)) * reduction
    seen = np.clip(boxes[:, :2] + boxes[:, 2:], 0, (width, height)) - np.clip(boxes[:, :2], 0, (width, height))
    hidden = 1 - seen.prod(1) / np.maximum(boxes[:, 2] * boxes[:, 3], 1e-9)
    poses = np.full((len(faces), 3), np.nan)
    if faces.landmarks is not None:
        poses = np.clip(head_pose(faces.landmarks) * (1, 1, pitch_gain), (-180, -180, -90), (180, 180, 90))
    return [
        _quality(float(sides[index]), pixel_figures(pixels, faces, index), poses[index].tolist(), float(hidden[index]))
        for index in range(len(faces))
    ]


def pixel_figures(pixels: Pixels, faces: Detections, index: int) -> tuple[float, float, float]:
    """Return sharpness, brightness and contrast of one face, 0 to 1 each, as an aligned crop of `SIDE_PX` shows it in green.

    Green alone, which is most of luma, costs half. Sharpness is the share of the crop's deviation (standard, of grey levels) that
    a Gaussian blur of two pixels removes; noise counts as sharpness. Brightness is the mean grey level. Contrast is the standard
    deviation over half of the range.
    """
    grey = warp_crop(pixels[:, :, 1], crop_transform(faces, index, FER2013_FRAMING, SIDE_PX), SIDE_PX)
    mean, deviation = (float(one[0, 0]) for one in cv2.meanStdDev(grey))
    detail = cv2.subtract(grey, cv2.GaussianBlur(grey, (9, 9), 2.0), dtype=cv2.CV_16S)
    removed = float(cv2.meanStdDev(detail)[1][0, 0])
    return min(1.0, removed / max(deviation, 1.0)), mean / 255, min(1.0, deviation / 127.5)


def lacks_of(sharpness: float, brightness: float, contrast: float) -> list[float]:
    """Return what a picture lacks in sharpness, brightness and contrast, from 0 (nothing) to 1."""
    found = zip((sharpness, brightness, contrast), GOOD, strict=True)
    return [max(0.0, 1 - value / good) for value, good in found]


def _quality(side_px: float, figures: tuple[float, float, float], pose: list[float], occluded: float) -> FaceQuality:
    sharpness, brightness, contrast = figures
    lacking = sum(weight * lack for weight, lack in zip(WEIGHTS, lacks_of(*figures), strict=True))
    quality = _logistic(LOGIT - lacking) / _logistic(LOGIT)
    roll, yaw, pitch = (None if math.isnan(angle) else angle for angle in pose)
    poor = {
        "SMALL_BOUNDING_BOX": side_px < SMALL_PX,
        "LOW_SHARPNESS": sharpness < LOW_SHARPNESS,
        "LOW_BRIGHTNESS": brightness < LOW_BRIGHTNESS,
        "HIGH_BRIGHTNESS": brightness > HIGH_BRIGHTNESS,
        "LOW_CONTRAST": contrast < LOW_CONTRAST,
        "EXTREME_POSE": max(abs(yaw or 0.0), abs(pitch or 0.0)) > EXTREME_DEG,
        "LOW_FACE_QUALITY": quality < LOW_QUALITY,
    }
    reasons = ",".join(reason for reason, is_poor in poor.items() if is_poor)
    return FaceQuality(side_px, *figures, roll, yaw, pitch, occluded, quality, reasons or None)


def _logistic(value: float) -> float:
    return 1 / (1 + math.exp(-value))
