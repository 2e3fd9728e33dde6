"""MTCNN (Zhang et al., 2016) on ONNX Runtime. The package `mtcnn` contains the weights, so MTCNN is always available.

The cascade is that of facenet-pytorch 2.5.3, which has the same weights: it finds the same faces.
"""

import hashlib
import importlib.util
import io
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from fer_pipeline.base.errors import UserError
from fer_pipeline.faces.detectors.detections import Detections, Floats, no_faces
from fer_pipeline.faces.detectors.spec import DetectorSpec, ResolvedDetector
from fer_pipeline.faces.pixels import Pixels

MIN_FACE_PX = 40
"""Smallest face to find, in the shrunk image. Half of this takes about twice as long."""
CELL_PX, STRIDE = 12, 2
"""Side and distance of the squares that the first network judges."""
SHRINK = 0.709
"""Ratio of successive sizes of the image in which the first network searches."""
PROPOSED, REFINED, FOUND = 0.6, 0.7, 0.7
"""Minimum scores of the three networks."""
AT_ONCE = 128
"""Number of squares in one call of a network."""
DIGEST = "743721dfef3c9612636462a252c4e3d23c1fab4031274a9692fe3c587dbf1fe5"
"""sha256 of the weights as facenet-pytorch packs them. It identifies the detector of rows, also of rows from that package."""
NETWORKS = {
    "pnet.lz4": ("ea6b0c3e685ebee3165326ad6484acc95f2ef78f1c94fbf40a55704fa989f7b5", "conv pool2 conv conv"),
    "rnet.lz4": ("cb00e6460f3c98b0bfafaba3c0a0ded4bdf6e62cee7174d969e8670d7e757fee", "conv pool3 conv pool3 conv dense"),
    "onet.lz4": (
        "94f6ea2f4cf985275ee958cdd762d17b6009348a4fb9d8c6be39ba73ffd22ca3",
        "conv pool3 conv pool3 conv pool2 conv dense",
    ),
}
"""The files of the package's weights: sha256, and the layers before the outputs."""

Squares = Floats
"""Boxes (n, 5): left, top, right, bottom in pixels, and a score."""


class Mtcnn:
    """Finds faces in a BGR uint8 image (h, w, 3) at its given size."""

    def __init__(self, weights: bytes, threshold: float) -> None:
        from fer_pipeline.models.onnx import open_session

        self.threshold = threshold
        self.propose, self.refine, self.find = (
            open_session(_graph(NETWORKS[name][1], _arrays(data)), ["CPUExecutionProvider"]) for name, data in _files().items()
        )

    def __call__(self, pixels: Pixels) -> Detections:
        if min(pixels.shape[:2]) < MIN_FACE_PX:
            return no_faces()
        image = _Image(np.asarray(cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB), np.uint8))
        squares = _square(self._proposed(image))
        squares, (moves,) = _judged(self.refine, image, squares, 24, REFINED)
        kept = _without_overlaps(squares, 0.7)
        squares = _square(_moved(squares[kept], moves[kept]))
        squares, (moves, points) = _judged(self.find, image, squares, 48, FOUND)
        size = squares[:, 2:4] - squares[:, :2] + 1
        landmarks = points.reshape(-1, 2, 5).transpose(0, 2, 1) * size[:, None] + squares[:, None, :2] - 1
        boxes = _moved(squares, moves)
        kept = [index for index in _without_overlaps(boxes, 0.7, of_smaller=True) if boxes[index, 4] >= self.threshold]
        xywh = np.concatenate([boxes[kept, :2], boxes[kept, 2:4] - boxes[kept, :2]], 1)
        return Detections(xywh, boxes[kept, 4], {"landmarks": landmarks[kept]})

    def _proposed(self, image: "_Image") -> Squares:
        """Return squares that may contain a face, found in the image at many sizes."""
        height, width = image.shape
        scale, found = CELL_PX / MIN_FACE_PX, [np.zeros((0, 9), np.float32)]
        while min(height, width) * scale >= CELL_PX:
            moves, scores = self.propose.run(None, {"pixels": image.shrunk(int(height * scale + 1), int(width * scale + 1))})
            rows, columns = np.nonzero(scores[0, 1] >= PROPOSED)
            cells = np.stack([columns, rows], 1).astype(np.float32) * STRIDE + 1
            corners = [np.floor(cells / scale), np.floor((cells + CELL_PX - 1) / scale)]
            squares = np.concatenate([*corners, scores[0, 1][rows, columns, None], moves[0][:, rows, columns].T], 1)
            found.append(squares[_without_overlaps(squares, 0.5)])
            scale *= SHRINK
        squares = np.concatenate(found)
        squares = squares[_without_overlaps(squares, 0.7)]
        size = (squares[:, 2:4] - squares[:, :2])[:, [0, 1, 0, 1]]
        return np.concatenate([squares[:, :4] + squares[:, 5:] * size, squares[:, 4:5]], 1)


class _Image:
    """An image whose parts are shrunk by the mean of the pixels below each new one, as PyTorch's adaptive pooling does.

    The sums over all rectangles from the upper left corner make the sum over any rectangle a matter of four look-ups.
    """

    def __init__(self, pixels: Pixels) -> None:
        self.shape = pixels.shape[:2]
        self.sums = cv2.integral(pixels, sdepth=cv2.CV_64F)

    def shrunk(self, height: int, width: int) -> Floats:
        """Return the whole image, (1, 3, height, width)."""
        whole = np.array([[0, 0, self.shape[1], self.shape[0]]])
        return self._means(whole, height, width)

    def crops(self, windows: NDArray[np.int64], side: int) -> Floats:
        """Return parts of the image, (n, 3, side, side); windows (n, 4): left, top, right, bottom."""
        return self._means(windows, side, side)

    def _means(self, windows: NDArray[np.int64], height: int, width: int) -> Floats:
        left, right = _bins(windows[:, 0], windows[:, 2], width)
        top, bottom = _bins(windows[:, 1], windows[:, 3], height)
        sums, stride = self.sums.reshape(-1, 3), self.shape[1] + 1
        below, above = bottom[:, :, None] * stride, top[:, :, None] * stride
        left, right = left[:, None], right[:, None]
        total = sums[below + right] - sums[above + right] - sums[below + left] + sums[above + left]
        area = (bottom - top)[:, :, None] * (right - left)
        return np.ascontiguousarray((total / area[..., None]).transpose(0, 3, 1, 2), np.float32)


def _bins(start: NDArray[np.int64], end: NDArray[np.int64], number: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the starts and ends (n, number) of the pixels below each of `number` new ones."""
    steps, length, start = np.arange(number), (end - start)[:, None], start[:, None]
    return start + steps * length // number, start - (-(steps + 1) * length // number)


def _judged(network: Any, image: _Image, squares: Squares, side: int, passes: float) -> tuple[Squares, list[Floats]]:
    """Return the squares in which a network sees a face, with its scores, and its other outputs for them."""
    corners = squares[:, :4].astype(np.int64)
    low, high = np.maximum(corners[:, :2], 1) - 1, np.minimum(corners[:, 2:], image.shape[::-1])
    inside = (high > low).all(1)
    squares, windows = squares[inside], np.concatenate([low, high], 1)[inside]
    parts = [windows[start : start + AT_ONCE] for start in range(0, max(1, len(windows)), AT_ONCE)]
    answers = [network.run(None, {"pixels": image.crops(part, side)}) for part in parts]
    *others, scores = (np.concatenate(outputs) for outputs in zip(*answers, strict=True))
    chosen = scores[:, 1] > passes
    return np.concatenate([squares[chosen, :4], scores[chosen, 1:]], 1), [output[chosen] for output in others]


def _square(boxes: Squares) -> Squares:
    """Return squares around the same centres, as large as the longer sides."""
    size = boxes[:, 2:4] - boxes[:, :2]
    longer = size.max(1, keepdims=True)
    low = boxes[:, :2] + size * 0.5 - longer * 0.5
    return np.concatenate([low, low + longer, boxes[:, 4:]], 1)


def _moved(boxes: Squares, moves: Floats) -> Squares:
    """Return boxes with their sides moved by shares of their size."""
    size = (boxes[:, 2:4] - boxes[:, :2] + 1)[:, [0, 1, 0, 1]]
    return np.concatenate([boxes[:, :4] + moves * size, boxes[:, 4:]], 1)


def _without_overlaps(boxes: Squares, limit: float, of_smaller: bool = False) -> list[int]:
    """Return the boxes, highest score first, that share with no better one more than `limit` of their union, or, in whole pixels,
    of the smaller one."""
    edge = int(of_smaller)
    order, kept = np.argsort(-boxes[:, 4], kind="stable"), list[int]()
    area = np.prod(boxes[:, 2:4] - boxes[:, :2] + edge, 1)
    while len(order):
        best, order = order[0], order[1:]
        kept.append(int(best))
        low, high = np.maximum(boxes[best, :2], boxes[order, :2]), np.minimum(boxes[best, 2:4], boxes[order, 2:4])
        shared = np.prod(np.maximum(high - low + edge, 0), 1)
        whole = np.minimum(area[best], area[order]) if of_smaller else area[best] + area[order] - shared
        order = order[shared / whole <= limit]
    return kept


def _graph(trunk: str, arrays: list[Floats]) -> bytes:
    """Return an ONNX network of pixels (n, 3, h, w): the layers of `trunk`, and its outputs, of which the last are probabilities.

    The weights come in Keras's order and shapes: (h, w, in, out) or (in, out), biases, and slopes after the layers of the trunk.
    """
    from onnx import TensorProto, helper, numpy_helper

    nodes, constants, last = list[Any](), list[Any](), "pixels"
    left = iter(arrays)

    def add(operator: str, *values: Floats, **attributes: Any) -> str:
        names = [f"v{len(constants) + place}" for place in range(len(values))]
        constants.extend(numpy_helper.from_array(value, name) for value, name in zip(values, names, strict=True))
        nodes.append(helper.make_node(operator, [last, *names], [f"n{len(nodes)}"], **attributes))
        return f"n{len(nodes) - 1}"

    def weigh() -> str:
        weights, bias = next(left), next(left)
        return add("Gemm", weights, bias) if weights.ndim == 2 else add("Conv", weights.transpose(3, 2, 0, 1).copy(), bias)

    last = add("Sub", np.array(127.5, np.float32))
    last = add("Mul", np.array(1 / 128, np.float32))
    for layer in trunk.split():
        if layer.startswith("pool"):
            last = add("MaxPool", kernel_shape=[int(layer[-1])] * 2, strides=[2, 2], ceil_mode=1)
            continue
        if layer == "dense":
            last = add("Transpose", perm=[0, 3, 2, 1])
            last = add("Flatten")
        last = weigh()
        slopes = next(left).ravel()
        last = add("PRelu", slopes if layer == "dense" else slopes.reshape(-1, 1, 1))
    outputs = [weigh() for _ in range((len(arrays) - sum(3 for layer in trunk.split() if "pool" not in layer)) // 2)]
    last = outputs[-1]
    outputs[-1] = add("Softmax", axis=1)
    shape, free = [None, 3, None, None], TensorProto.FLOAT
    ends = [helper.make_tensor_value_info(name, free, None) for name in outputs]
    graph = helper.make_graph(nodes, "mtcnn", [helper.make_tensor_value_info("pixels", free, shape)], ends, constants)
    return bytes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString())


def _files() -> dict[str, bytes]:
    """Return the package's files of weights. Raise UserError if they are missing or others."""
    spec = importlib.util.find_spec("mtcnn")  # does not import it: that would need TensorFlow
    if spec is None or not spec.submodule_search_locations:
        raise UserError("The detector 'mtcnn' needs the package mtcnn: install it, or use --detector yunet.")
    folder = Path(spec.submodule_search_locations[0]) / "assets" / "weights"
    try:
        files = {name: (folder / name).read_bytes() for name in NETWORKS}
    except OSError as error:
        raise UserError(f"The weights of the package mtcnn cannot be read: {error}. Install mtcnn 1.0.") from error
    for name, data in files.items():
        if hashlib.sha256(data).hexdigest() != NETWORKS[name][0]:
            raise UserError(f"'{folder / name}' is not the file of mtcnn 1.0: install that version, or use --detector yunet.")
    return files


def _arrays(file: bytes) -> list[Floats]:
    """Return the arrays in a file of `NETWORKS`. Its digest is checked, because a pickle of any other origin may run code."""
    import joblib

    arrays: list[Floats] = joblib.load(io.BytesIO(file))
    return arrays


def _resolve(weights: str | None) -> ResolvedDetector:
    if weights:
        raise UserError("The weights of 'mtcnn' come with its package: leave out --detector-weights.")
    _files()
    return ResolvedDetector("mtcnn", DIGEST, origin="the package mtcnn")


MTCNN = DetectorSpec(
    name="mtcnn",
    help="MTCNN on ONNX Runtime, always available",
    threshold=0.9,
    resolve=_resolve,
    load=Mtcnn,
)
