"""YuNet (Wu et al., 2023) on ONNX Runtime, the default detector."""

import numpy as np

from fer_pipeline.faces.detectors.detections import BatchDetector, Detections, Floats
from fer_pipeline.faces.detectors.spec import DetectorSpec, WeightsFile
from fer_pipeline.faces.detectors.yunet_answers import STRIDES, decode_anchors, pad, suppress_overlaps
from fer_pipeline.faces.pixels import Pixels

WEIGHTS = WeightsFile(
    detector="yunet",
    name="face_detection_yunet_2023mar.onnx",
    sha256="8f2383e4dd3cfbb4553ea8718107fc0423210dc964f9f4280604804ed2552fa4",
    url="https://media.githubusercontent.com/media/opencv/opencv_zoo/main/models/face_detection_yunet/"
    "face_detection_yunet_2023mar.onnx",
)
"""OpenCV's model zoo; MIT licence."""


def any_size(weights: bytes) -> bytes:
    """Return the official file, which has a fixed input of 640 x 640, changed to accept any multiples of 32."""
    import onnx

    model = onnx.load_from_string(weights)
    shape = model.graph.input[0].type.tensor_type.shape.dim
    for dimension, name in ((shape[0], "n"), (shape[2], "h"), (shape[3], "w")):
        dimension.dim_param = name
    for output in model.graph.output:
        for place, dimension in enumerate(output.type.tensor_type.shape.dim[:2]):
            dimension.dim_param = f"{output.name}_{place}"
    del model.graph.value_info[:]
    return bytes(model.SerializeToString())


class YuNet:
    """Finds faces in a BGR uint8 image (h, w, 3) at its given size."""

    def __init__(self, weights: bytes, threshold: float) -> None:
        from fer_pipeline.models.onnx import open_session

        self.threshold = threshold
        self.session = open_session(any_size(weights), ["CPUExecutionProvider"])
        self.outputs = [output.name for output in self.session.get_outputs()]

    def __call__(self, pixels: Pixels) -> Detections:
        padded = pad(pixels)
        blob = padded.transpose(2, 0, 1)[None].astype(np.float32)
        out = dict(zip(self.outputs, self.session.run(None, {"input": blob}), strict=True))
        levels = [self._level(out, stride, padded.shape[1] // stride) for stride in STRIDES]
        boxes, scores, landmarks = (np.concatenate(parts) for parts in zip(*levels, strict=True))
        return suppress_overlaps(boxes, scores, landmarks, self.threshold)

    def _level(self, out: dict[str, Floats], stride: int, columns: int) -> tuple[Floats, Floats, Floats]:
        """Return the result of `decode_anchors` for the anchors of one stride that pass the threshold."""
        products = (out[f"cls_{stride}"] * out[f"obj_{stride}"]).ravel()  # of two sigmoids, so from 0 to 1
        chosen = np.flatnonzero(products > self.threshold**2)
        box, points = out[f"bbox_{stride}"].reshape(-1, 4)[chosen], out[f"kps_{stride}"].reshape(-1, 10)[chosen]
        return decode_anchors(chosen, columns, stride, products[chosen], box, points)


def _load_for_device(weights: bytes, threshold: float, device: str, precision: str) -> BatchDetector:
    from fer_pipeline.faces.detectors.torch_yunet import TorchYuNet

    return TorchYuNet(weights, threshold, device, precision)


YUNET = DetectorSpec(
    name="yunet",
    help="OpenCV's YuNet on ONNX Runtime, the fastest",
    threshold=0.6,
    resolve=WEIGHTS.resolve,
    load=YuNet,
    load_for_device=_load_for_device,
    pitch_gain=2.5,  # its nose follows the pitch of a head only in part; tests/benchmarks/pose.py
)
