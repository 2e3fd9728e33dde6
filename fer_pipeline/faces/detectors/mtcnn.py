"""MTCNN (Zhang et al., 2016) from facenet-pytorch. The package contains the weights, so MTCNN is always available."""

import hashlib
import importlib.util
from pathlib import Path

import cv2
import numpy as np

from fer_pipeline.base.errors import UserError
from fer_pipeline.faces.detectors.detections import Detections, no_faces
from fer_pipeline.faces.detectors.spec import DetectorSpec, ResolvedDetector
from fer_pipeline.faces.pixels import Pixels

MIN_FACE_PX = 40
"""Smallest face to find, in the shrunk image. Half of this takes about twice as long."""


class Mtcnn:
    """Finds faces in a BGR uint8 image (h, w, 3) at its given size."""

    def __init__(self, weights: bytes, threshold: float) -> None:
        import facenet_pytorch
        import torch

        torch.set_num_threads(1)
        self.threshold = threshold
        self.network = facenet_pytorch.MTCNN(keep_all=True, min_face_size=MIN_FACE_PX, device="cpu").eval()

    def __call__(self, pixels: Pixels) -> Detections:
        if min(pixels.shape[:2]) < MIN_FACE_PX:
            return no_faces()
        boxes, scores, landmarks = self.network.detect(cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB), landmarks=True)
        if boxes is None:
            return no_faces()
        order = [index for index in np.argsort(-scores, kind="stable") if scores[index] >= self.threshold]
        xyxy, points = boxes[order].astype(np.float32), landmarks[order].astype(np.float32)
        xywh = np.concatenate([xyxy[:, :2], xyxy[:, 2:] - xyxy[:, :2]], 1)
        return Detections(xywh, scores[order].astype(np.float32), {"landmarks": points})


def _resolve(weights: str | None) -> ResolvedDetector:
    if weights:
        raise UserError("The weights of 'mtcnn' come with its package: leave out --detector-weights.")
    spec = importlib.util.find_spec("facenet_pytorch")  # does not import it: only workers need torch
    if spec is None or not spec.submodule_search_locations:
        raise UserError("The detector 'mtcnn' needs the package facenet-pytorch: install it, or use --detector yunet.")
    folder = Path(spec.submodule_search_locations[0]) / "data"
    digest = hashlib.sha256(b"".join((folder / f"{net}net.pt").read_bytes() for net in "pro")).hexdigest()
    return ResolvedDetector("mtcnn", digest, origin="the package facenet-pytorch")


MTCNN = DetectorSpec(
    name="mtcnn",
    help="MTCNN from facenet-pytorch, always available",
    threshold=0.9,
    resolve=_resolve,
    load=Mtcnn,
)
