"""YuNet in torch, for batches on a GPU. It runs the graph of the official file layer by layer."""

from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from onnx import NodeProto, numpy_helper
from torch import Tensor, nn

from fer_pipeline.faces.batches import Batches
from fer_pipeline.faces.detectors.detections import Detections
from fer_pipeline.faces.detectors.yunet_answers import STRIDES, decode_anchors, pad, suppress_overlaps
from fer_pipeline.faces.pixels import Pixels


class YuNetGraph(nn.Module):
    """The network: float images (n, 3, h, w), with sides that are multiples of 32, to twelve outputs (n, anchors, values)."""

    def __init__(self, weights: bytes) -> None:
        super().__init__()
        graph = onnx.load_from_string(weights).graph
        self.nodes, self.outputs = list(graph.node), [output.name for output in graph.output]
        for tensor in graph.initializer:
            self.register_buffer(f"w{tensor.name.replace('.', '_')}", torch.from_numpy(numpy_helper.to_array(tensor).copy()))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        values = {"input": images}
        for node in self.nodes:
            values[node.output[0]] = self._layer(node, values)
        return {name: values[name] for name in self.outputs}

    def _layer(self, node: NodeProto, values: dict[str, Tensor]) -> Tensor:
        first = values[node.input[0]]
        match node.op_type:
            case "Conv":
                settings: dict[str, Any] = {one.name: onnx.helper.get_attribute_value(one) for one in node.attribute}
                weight, bias = (self.get_buffer(f"w{name.replace('.', '_')}") for name in node.input[1:3])
                return F.conv2d(first, weight, bias, settings["strides"], settings["pads"][:2], groups=settings["group"])
            case "Relu":
                return F.relu(first)
            case "MaxPool":
                return F.max_pool2d(first, 2)
            case "Resize":
                return F.interpolate(first, scale_factor=2.0)
            case "Add":
                return first + values[node.input[1]]
            case "Transpose":
                return first.permute(0, 2, 3, 1)
            case "Reshape":
                return first.flatten(1, 2)
            case "Sigmoid":
                return first.float().sigmoid()
        raise ValueError(f"YuNet's file has a layer '{node.op_type}', which is not supported")


class TorchYuNet:
    """Finds faces in BGR uint8 images (h, w, 3). Images that have one size after padding form a batch."""

    def __init__(self, weights: bytes, threshold: float, device: str, precision: str) -> None:
        self.threshold, self.device, self.precision = threshold, device, precision
        self.network = YuNetGraph(weights).to(device).to(memory_format=torch.channels_last)
        self.batches = Batches(64)  # an image of 640 px takes about 100 MB of the device's memory in fp32, half of that in bf16

    def __call__(self, images: Sequence[Pixels]) -> list[Detections]:
        padded = [pad(pixels) for pixels in images]
        found: dict[int, Detections] = {}
        for shape in {one.shape for one in padded}:
            alike = [index for index, one in enumerate(padded) if one.shape == shape]
            batches = self.batches(self._detect, [padded[index] for index in alike])
            found |= zip(alike, chain.from_iterable(batches), strict=True)
        return [found[index] for index in range(len(images))]

    @torch.inference_mode()
    def _detect(self, images: list[Pixels]) -> list[Detections]:
        """Return the faces in images of one size, with one copy to the device and one back."""
        batch = torch.from_numpy(np.stack(images)).to(self.device).permute(0, 3, 1, 2)  # channels last in memory
        with torch.autocast(self.device, dtype=torch.bfloat16, enabled=self.precision == "bf16"):
            out = self.network(batch.float())
        rows = torch.cat([self._above_threshold(out, stride) for stride in STRIDES]).cpu().numpy()
        columns = images[0].shape[1]
        parts = []
        for stride in STRIDES:
            level = rows[rows[:, 0] == stride]
            cells, products, box, points = level[:, 2].astype(np.int64), level[:, 3], level[:, 4:8], level[:, 8:]
            parts.append((level[:, 1], *decode_anchors(cells, columns // stride, stride, products, box, points)))
        image, boxes, scores, landmarks = (np.concatenate(part) for part in zip(*parts, strict=True))
        chosen = [image == index for index in range(len(images))]
        return [suppress_overlaps(boxes[mask], scores[mask], landmarks[mask], self.threshold) for mask in chosen]

    def _above_threshold(self, out: dict[str, Tensor], stride: int) -> Tensor:
        """Return a float32 row for each anchor of a stride that passes: stride, image, cell, product, box and points."""
        products = (out[f"cls_{stride}"] * out[f"obj_{stride}"]).squeeze(2)
        image, cell = (products > self.threshold**2).nonzero(as_tuple=True)
        where = torch.stack([torch.full_like(image, stride), image, cell, products[image, cell]], 1)
        return torch.cat([where, out[f"bbox_{stride}"][image, cell], out[f"kps_{stride}"][image, cell]], 1).float()
