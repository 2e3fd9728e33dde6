"""Draw boxes and labels of faces into a picture."""

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np

from fer_pipeline.faces.pixels import Pixels


def annotate(pixels: Pixels, faces: Sequence[dict[str, Any]]) -> Pixels:
    """Return a copy of a BGR image with a box around each face and its label above: orange if it is uncertain, else green."""
    picture = pixels.copy()
    thickness = max(1, round(max(pixels.shape[:2]) / 400))
    white = (255, 255, 255)
    for face in faces:
        color = (0, 150, 230) if face["uncertain"] else (70, 170, 60)  # BGR
        left, top = round(face["x"]), round(face["y"])
        cv2.rectangle(picture, (left, top), (round(face["x"] + face["w"]), round(face["y"] + face["h"])), color, thickness)
        text = f"{face['expression']} {face['confidence']:.0%}"
        scale = float(np.clip(face["w"] / 140, 0.4, 3))
        stroke = max(1, round(scale * 1.5))
        (width, height), below = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, stroke)
        left = max(0, min(left, pixels.shape[1] - width))
        bottom = max(top, height + below)
        cv2.rectangle(picture, (left, bottom - height - below), (left + width, bottom), color, cv2.FILLED)
        cv2.putText(picture, text, (left, bottom - below // 2), cv2.FONT_HERSHEY_SIMPLEX, scale, white, stroke, cv2.LINE_AA)
    return picture
