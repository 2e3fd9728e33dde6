"""MTCNN (Zhang et al., 2016) from facenet-pytorch, whose wheel carries the weights: the detector that is always there."""

import cv2
import numpy as np
import torch
from facenet_pytorch import MTCNN

from fer_pipeline.stages.decode import Pixels
from fer_pipeline.stages.detections import Detections

MIN_FACE_PX = 40
"""Smallest face looked for, in the image at detection size; half of it takes about twice as long."""


class Mtcnn:
    """Finds faces in a BGR uint8 image (h, w, 3) at the size it has."""

    def __init__(self, threshold: float) -> None:
        torch.set_num_threads(1)
        self.threshold = threshold
        self.network = MTCNN(keep_all=True, min_face_size=MIN_FACE_PX, device="cpu").eval()

    def __call__(self, pixels: Pixels) -> Detections:
        nothing = Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros((0, 5, 2), np.float32))
        if min(pixels.shape[:2]) < MIN_FACE_PX:
            return nothing
        boxes, scores, landmarks = self.network.detect(cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB), landmarks=True)
        if boxes is None:
            return nothing
        order = [index for index in np.argsort(-scores, kind="stable") if scores[index] >= self.threshold]
        xyxy, points = boxes[order].astype(np.float32), landmarks[order].astype(np.float32)
        xywh = np.concatenate([xyxy[:, :2], xyxy[:, 2:] - xyxy[:, :2]], 1)
        return Detections(xywh, scores[order].astype(np.float32), points)
