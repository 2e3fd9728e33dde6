"""Cuts every face in the same way as the model's training crops."""

import math

import cv2
import numpy as np
from numpy.typing import NDArray

from fer_pipeline.faces.detectors.detections import Detections
from fer_pipeline.faces.pixels import Pixels
from fer_pipeline.models.framing import Framing
from fer_pipeline.models.network_config import NetworkConfig

Matrix = NDArray[np.float64]


def similarity(source: NDArray[np.floating], target: NDArray[np.floating]) -> Matrix:
    """Return the least-squares 2 x 3 similarity transform from `source` points (n, 2) to `target` (Umeyama, 1991)."""
    points = list(zip(np.asarray(source, np.float64).tolist(), np.asarray(target, np.float64).tolist(), strict=True))
    count = len(points)
    from_x, from_y = (sum(one[axis] for one, _ in points) / count for axis in (0, 1))
    to_x, to_y = (sum(one[axis] for _, one in points) / count for axis in (0, 1))
    spread = dot = cross = 0.0
    for (x, y), (u, v) in points:
        x, y, u, v = x - from_x, y - from_y, u - to_x, v - to_y
        spread, dot, cross = spread + x * x + y * y, dot + x * u + y * v, cross + x * v - y * u
    cos, sin = dot / max(spread, 1e-9), cross / max(spread, 1e-9)
    return np.array([[cos, -sin, to_x - cos * from_x + sin * from_y], [sin, cos, to_y - sin * from_x - cos * from_y]])


def box_transform(box_xywh: NDArray[np.floating], box_scale: float, side_px: int) -> Matrix:
    """Return the 2 x 3 matrix that maps a square (side `box_scale * sqrt(w * h)`) around the box's centre onto the crop."""
    x, y, width, height = (float(value) for value in box_xywh)
    scale = side_px / max(box_scale * np.sqrt(width * height), 1e-6)
    return np.array([[scale, 0, side_px / 2 - scale * (x + width / 2)], [0, scale, side_px / 2 - scale * (y + height / 2)]])


def warp_crop(pixels: Pixels, matrix: Matrix, side_px: int) -> Pixels:
    """Apply a 2 x 3 transform from image to crop pixels and return the crop (side_px, side_px, 3).

    If the face is far larger than the crop, its region is first shrunk by area averaging, because a warp alone would alias.
    """
    height, width = pixels.shape[:2]
    (a, b, x), (c, d, y) = matrix.tolist()  # plain floats: these lines run for every face, and tiny arrays are slow
    determinant = a * d - b * c
    corners = [(u - x, v - y) for u in (0, side_px) for v in (0, side_px)]
    xs = [(d * u - b * v) / determinant for u, v in corners]
    ys = [(a * v - c * u) / determinant for u, v in corners]
    left, top = _clamp(math.floor(min(xs)) - 2, 0, width - 1), _clamp(math.floor(min(ys)) - 2, 0, height - 1)
    right, bottom = _clamp(math.ceil(max(xs)) + 3, left + 1, width), _clamp(math.ceil(max(ys)) + 3, top + 1, height)
    region = pixels[top:bottom, left:right]
    scale = math.sqrt(abs(determinant))
    zoom_x = zoom_y = 1.0
    if scale < 0.5:
        full_x, full_y = right - left, bottom - top
        shrunk = max(1, round(full_x * 1.5 * scale)), max(1, round(full_y * 1.5 * scale))
        region = np.asarray(cv2.resize(region, shrunk, interpolation=cv2.INTER_AREA), np.uint8)
        zoom_x, zoom_y = shrunk[0] / full_x, shrunk[1] / full_y
    linear = ((a / zoom_x, b / zoom_y), (c / zoom_x, d / zoom_y))
    half_x, half_y = (zoom_x - 1) / 2, (zoom_y - 1) / 2  # coordinates refer to pixel centres, not corners
    shift_x = x + a * left + b * top - linear[0][0] * half_x - linear[0][1] * half_y
    shift_y = y + c * left + d * top - linear[1][0] * half_x - linear[1][1] * half_y
    affine = np.array([[*linear[0], shift_x], [*linear[1], shift_y]])
    crop = cv2.warpAffine(region, affine, (side_px, side_px), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(crop, np.uint8)


def _clamp(value: int, least: int, most: int) -> int:
    return max(least, min(value, most))


def crop_transform(faces: Detections, index: int, framing: Framing, side_px: int) -> Matrix:
    """Return the 2 x 3 transform of a face onto its crop, by landmarks or box as the framing says.

    Without landmarks, or if they coincide, the face is cut by its box.
    """
    if framing.cut == "landmarks" and faces.landmarks is not None:
        matrix = similarity(faces.landmarks[index], np.array(framing.landmarks) * side_px)
        if matrix[0, 0] ** 2 + matrix[1, 0] ** 2 > 1e-9:  # the determinant, which is 0 if the landmarks coincide
            return matrix
    return box_transform(faces.boxes_xywh[index], framing.box_scale, side_px)


def cut_face(pixels: Pixels, faces: Detections, index: int, framing: Framing, side_px: int) -> Pixels:
    """Return the crop of one face, BGR uint8 (side_px, side_px, 3). All crops of faces come from this function."""
    return warp_crop(pixels, crop_transform(faces, index, framing, side_px), side_px)


def align(pixels: Pixels, faces: Detections, network: NetworkConfig, framing: Framing) -> Pixels:
    """Return the crops of all faces as network inputs, uint8 (n, channels, side, side)."""
    crops = empty_inputs(len(faces), network)
    for index in range(len(faces)):
        crops[index] = network_input(cut_face(pixels, faces, index, framing, network.image_px), network)
    return crops


def resize_whole(pixels: Pixels, network: NetworkConfig) -> Pixels:
    """Return an image that already is a face crop as a network input, uint8 (channels, side, side)."""
    side = network.image_px
    if pixels.shape[:2] != (side, side):
        interpolation = cv2.INTER_AREA if max(pixels.shape[:2]) > side else cv2.INTER_LINEAR
        pixels = np.asarray(cv2.resize(pixels, (side, side), interpolation=interpolation), np.uint8)
    return network_input(pixels, network)


def empty_inputs(count: int, network: NetworkConfig) -> Pixels:
    """Return an uninitialised array for `count` network inputs, uint8 (count, channels, side, side)."""
    return np.empty((count, network.channels, network.image_px, network.image_px), np.uint8)


def network_input(crop: Pixels, network: NetworkConfig) -> Pixels:
    """Return a BGR crop (side, side, 3) as a network input (channels, side, side), grey or RGB."""
    if network.channels == 1:
        grey = cv2.cvtColor(crop, cv2.COLOR_BGR2GRAY)
        return np.asarray(cv2.equalizeHist(grey) if network.equalize else grey, np.uint8)[None]
    return (_equalized(crop) if network.equalize else crop)[:, :, ::-1].transpose(2, 0, 1)


def _equalized(crop: Pixels) -> Pixels:
    """Return a colour crop with an equalised histogram of brightness."""
    luma_chroma = cv2.cvtColor(crop, cv2.COLOR_BGR2YCrCb)
    luma_chroma[:, :, 0] = cv2.equalizeHist(luma_chroma[:, :, 0])
    return np.asarray(cv2.cvtColor(luma_chroma, cv2.COLOR_YCrCb2BGR), np.uint8)
