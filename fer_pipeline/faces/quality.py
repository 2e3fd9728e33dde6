"""How good the picture of a face is, and which way the face looks: from its pixels, box and landmarks alone."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import cv2
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from fer_pipeline.faces.align import cut_face
from fer_pipeline.faces.detectors.detections import Detections, Floats
from fer_pipeline.faces.pixels import Pixels
from fer_pipeline.models.framing import FER2013_FRAMING, Framing
from fer_pipeline.models.network_config import NetworkConfig

SIDE_PX = 48
"""Side of the aligned crop that is measured: that of the embedded network's input, so that there is nothing more to cut."""
Figures = tuple[float, float, float]
"""Sharpness, brightness and contrast."""
GOOD = (0.35, 0.35, 0.3)
"""Sharpness, brightness and contrast that a good picture has."""
LOGIT, WEIGHTS = 0.76, (1.56, 0.81, 0.35)
"""Log odds of a right label on a good picture, and what each full lack takes from them: a logistic regression on half of FER-2013
PublicTest under corruptions, labelled by the embedded model (`tests/benchmarks/quality.py`). The size of the face adds nothing to
sharpness, which falls with it."""
SMALL_PX, LOW_SHARPNESS, LOW_BRIGHTNESS, HIGH_BRIGHTNESS, LOW_CONTRAST, LOW_QUALITY = 24, 0.17, 0.15, 0.85, 0.12, 0.75
"""Limits of `quality_reasons`."""
EXTREME_YAW_DEG, EXTREME_PITCH_DEG = 40, 60
"""The landmarks of detectors tell yaw better than pitch."""


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


@dataclass(frozen=True)
class Measured:
    """The faces of one image, in its full size, and the `pixel_figures` of each."""

    faces: Detections
    width: int
    height: int
    figures: list[Figures]


def measured(pixels: Pixels, faces: Detections, reduction: float = 1.0, crops: Pixels | None = None) -> Measured:
    """Measure faces of an image, in its full size. `pixels`: the image, BGR (h, w, 3), at 1 / `reduction` of that size.

    `crops`: their `measured_crop`s (n, side, side), if they are known.
    """
    placed = faces.scaled(1 / reduction)
    found = (measured_crop(pixels, placed, index) for index in range(len(faces))) if crops is None else crops
    height, width = (round(side * reduction) for side in pixels.shape[:2])
    return Measured(faces, width, height, [pixel_figures(crop) for crop in found])


def qualities_of(images: Sequence[Measured], pitch_gain: float = 1.0) -> list[list[FaceQuality]]:
    """Return the quality of each face of each image; many images at once cost less.

    `pitch_gain`: `DetectorSpec.pitch_gain` of the detector that found the faces.
    """
    unknown = np.full((5, 2), np.nan)
    points = [np.full((len(one.faces), 5, 2), unknown) if one.faces.landmarks is None else one.faces.landmarks for one in images]
    poses = head_pose(np.concatenate([np.zeros((0, 5, 2)), *points])) * (1, 1, pitch_gain)
    turns = iter(np.clip(poses, (-180, -180, -90), (180, 180, 90)).tolist())
    return [
        [
            _quality(box, (one.width, one.height), figures, next(turns))
            for box, figures in zip(one.faces.boxes_xywh.tolist(), one.figures, strict=True)
        ]
        for one in images
    ]


def measured_crop(pixels: Pixels, faces: Detections, index: int) -> Pixels:
    """Return a face as it is measured: grey (side, side), aligned as FER-2013 is."""
    crop = cut_face(pixels, faces, index, FER2013_FRAMING, SIDE_PX)
    return np.asarray(cv2.cvtColor(crop, cv2.COLOR_BGR2GRAY), np.uint8)


def is_measured(network: NetworkConfig, framing: Framing) -> bool:
    """Return whether the inputs of a network are the crops that are measured."""
    return (network.channels, network.image_px, network.equalize) == (1, SIDE_PX, False) and framing == FER2013_FRAMING


def pixel_figures(grey: Pixels) -> Figures:
    """Return sharpness, brightness and contrast of a `measured_crop`, 0 to 1 each.

    Sharpness is the share of the crop's deviation (standard, of grey levels) that a Gaussian blur of two pixels removes; noise
    counts as sharpness. Brightness is the mean grey level. Contrast is the standard deviation over half of the range.
    """
    mean, deviation = (float(one[0, 0]) for one in cv2.meanStdDev(grey))
    detail = cv2.subtract(grey, cv2.GaussianBlur(grey, (9, 9), 2.0), dtype=cv2.CV_16S)
    removed = float(cv2.meanStdDev(detail)[1][0, 0])
    return min(1.0, removed / max(deviation, 1.0)), mean / 255, min(1.0, deviation / 127.5)


def lacks_of(sharpness: float, brightness: float, contrast: float) -> list[float]:
    """Return what a picture lacks in sharpness, brightness and contrast, from 0 (nothing) to 1."""
    found = zip((sharpness, brightness, contrast), GOOD, strict=True)
    return [max(0.0, 1 - value / good) for value, good in found]


def quality_of(figures: Figures) -> float:
    """Return the quality of a picture from its sharpness, brightness and contrast."""
    lacking = sum(weight * lack for weight, lack in zip(WEIGHTS, lacks_of(*figures), strict=True))
    return _logistic(LOGIT - lacking) / _logistic(LOGIT)


def input_quality(image: Pixels) -> float:
    """Return the quality of the input of a network, uint8 (channels, side, side) in grey or RGB, that shows a face.

    It is that of the face in its image if the network takes `measured_crop`s, else about that.
    """
    grey = image[0] if len(image) == 1 else cv2.cvtColor(np.ascontiguousarray(image.transpose(1, 2, 0)), cv2.COLOR_RGB2GRAY)
    if grey.shape[0] != SIDE_PX:
        grey = cv2.resize(grey, (SIDE_PX, SIDE_PX), interpolation=cv2.INTER_AREA if grey.shape[0] > SIDE_PX else cv2.INTER_LINEAR)
    return quality_of(pixel_figures(np.asarray(grey, np.uint8)))


def _quality(box: Sequence[float], size: tuple[int, int], figures: Figures, pose: Sequence[float]) -> FaceQuality:
    (x, y, w, h), (width, height) = box, size
    seen = max(0.0, min(x + w, width) - max(x, 0.0)) * max(0.0, min(y + h, height) - max(y, 0.0))
    side_px, occluded = math.sqrt(max(0.0, w * h)), 1 - seen / max(w * h, 1e-9)
    sharpness, brightness, contrast = figures
    quality = quality_of(figures)
    roll, yaw, pitch = (None if math.isnan(angle) else angle for angle in pose)
    poor = {
        "SMALL_BOUNDING_BOX": side_px < SMALL_PX,
        "LOW_SHARPNESS": sharpness < LOW_SHARPNESS,
        "LOW_BRIGHTNESS": brightness < LOW_BRIGHTNESS,
        "HIGH_BRIGHTNESS": brightness > HIGH_BRIGHTNESS,
        "LOW_CONTRAST": contrast < LOW_CONTRAST,
        "EXTREME_POSE": abs(yaw or 0.0) > EXTREME_YAW_DEG or abs(pitch or 0.0) > EXTREME_PITCH_DEG,
        "LOW_FACE_QUALITY": quality < LOW_QUALITY,
    }
    reasons = ",".join(reason for reason, is_poor in poor.items() if is_poor)
    return FaceQuality(side_px, *figures, roll, yaw, pitch, occluded, quality, reasons or None)


def _logistic(value: float) -> float:
    return 1 / (1 + math.exp(-value))
