"""Export: a bundle's network as ONNX, in fp32 or int8. The input is pixels, so the network contains the normalisation."""

import io
import json
import tempfile
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from fer_pipeline.base.errors import UserError
from fer_pipeline.models.bundle import Bundle
from fer_pipeline.models.weights import load_network


def to_onnx(bundle: Bundle) -> bytes:
    """Return the network as ONNX: `images` uint8 (n, channels, side, side) to `logits` float32 (n, classes), any n.

    The file's metadata holds the classes, the temperature and the intended use. Raise UserError for an ONNX bundle.
    """
    if bundle.card.format == "onnx":
        raise UserError(f"The model '{bundle.card.name}' is already an ONNX network: use its model.onnx.")
    network, config = load_network(bundle), bundle.card.network
    images = torch.zeros((2, config.channels, config.image_px, config.image_px), dtype=torch.uint8)
    shapes = ({0: torch.export.Dim("n", min=1)},)
    program = torch.onnx.export(
        network, (images,), dynamo=True, input_names=["images"], output_names=["logits"], dynamic_shapes=shapes, verbose=False
    )
    model: Any = program.model_proto if program else None
    card = bundle.card
    for key, value in (
        ("classes", json.dumps(card.label_space.classes)),
        ("temperature", str(card.calibration.temperature)),
        ("intended_use", card.intended_use),
    ):
        model.metadata_props.add(key=key, value=value)
    return bytes(model.SerializeToString())


def to_int8(model: bytes, images: NDArray[np.uint8]) -> bytes:
    """Return an fp32 ONNX network of `to_onnx` with int8 weights and activations, with ranges measured on `images`.

    Weights have 7 bits. With 8, processors without VNNI saturate and others do not, so labels would depend on the machine.
    """
    with tempfile.TemporaryDirectory() as folder:
        exported, prepared, quantized = (Path(folder) / f"{name}.onnx" for name in ("fp32", "prepared", "int8"))
        exported.write_bytes(model)
        with redirect_stdout(io.StringIO()):  # says what it does, in the midst of a command's results
            quant_pre_process(exported, prepared, skip_symbolic_shape=True)
            # Outliers cost accuracy, and percentiles ignore them, but need all activations in memory: up to 96 px they fit.
            method = CalibrationMethod.Percentile if images.shape[2] <= 96 else CalibrationMethod.MinMax
            quantize_static(
                prepared,
                quantized,
                _CalibrationImages(images),
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                calibrate_method=method,
                reduce_range=True,
                op_types_to_quantize=["Conv", "Gemm", "MatMul", "Add", "Relu"],
            )
        return quantized.read_bytes()


class _CalibrationImages(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, images: NDArray[np.uint8]) -> None:
        size = min(64, len(images))  # the same for all batches, because percentiles combine them
        starts = range(0, len(images) - size + 1, size)
        self._batches = iter([{"images": images[start : start + size]} for start in starts])

    def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
        return next(self._batches, None)
