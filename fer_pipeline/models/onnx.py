"""ONNX networks of any origin: their input is prepared as the card says, and their output must fit its classes."""

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnxruntime.capi.onnxruntime_pybind11_state import (
    Fail,
    InvalidArgument,
    InvalidGraph,
    InvalidProtobuf,
    NotImplemented,
    RuntimeException,
)

from fer_pipeline.base.errors import UserError
from fer_pipeline.models.bundle import ONNX_FILE, Bundle
from fer_pipeline.models.card import FurtherOutput

ONNX_ERRORS = (Fail, InvalidArgument, InvalidGraph, InvalidProtobuf, NotImplemented, RuntimeException)
CROP_TIMEOUT_S = 30.0
"""Time limit for one crop."""


def open_session(model: bytes, providers: Sequence[str], threads: int = 1) -> Any:
    """Return an ONNX Runtime session of a network, which reads no other file. Raise one of `ONNX_ERRORS` if it does not load.

    `bundle.require_single_file` rejects networks of several files. As a second guard, this session looks for further files below
    a folder that cannot exist, and not below the current folder.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads, options.log_severity_level = threads, 1, 3
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", "/dev/null/none")
    options.add_session_config_entry("session.load_model_format", "ONNX")  # the format that was checked, and no other
    return onnxruntime.InferenceSession(model, options, providers=list(providers))


class OnnxNetwork:
    """The network of a bundle of format `onnx`: crops uint8 (n, channels, side, side) to float32 logits (n, classes).

    With `further`, behind the logits, columns for what the card declares besides the classes.

    The file has one input, (n, channels, side, side) or (n, side, side, channels), with any n or a fixed one. A uint8 input takes
    pixels; a float input takes pixels scaled to 0..1 and normalised by the card's `mean` and `std`. Colours are RGB.
    Raise UserError if the file does not load or does not fit the card.
    """

    def __init__(self, bundle: Bundle, device: str = "cpu", threads: int = 1, further: bool = False) -> None:
        self.card, self.further = bundle.card, bundle.card.further if further else ()
        card = self.card
        providers = ["CPUExecutionProvider"] if device == "cpu" else ["CUDAExecutionProvider", "CPUExecutionProvider"]
        try:
            self.session = open_session(bundle.weights, providers, threads)
        except ONNX_ERRORS as error:
            raise UserError(f"The {ONNX_FILE} of the model '{card.name}' cannot be loaded: {_one_line(error)}.") from error
        inputs = self.session.get_inputs()
        if len(inputs) != 1 or len(inputs[0].shape) != 4:
            raise UserError(f"The {ONNX_FILE} of the model '{card.name}' must have one input, images in four dimensions.")
        self.input = inputs[0]
        names = [one.name for one in self.session.get_outputs()]
        self.outputs = list(dict.fromkeys([names[0], *(one.output or names[0] for one in self.further)]))
        if unknown := set(self.outputs) - set(names):
            raise UserError(
                f"The {ONNX_FILE} of the model '{card.name}' has no output '{min(unknown)}': it has {', '.join(names)}."
            )
        network = card.network
        self.channels_last = network.channels not in self.input.shape[1:2] and self.input.shape[3] == network.channels
        self.batch = self.input.shape[0] if isinstance(self.input.shape[0], int) else None
        self.type = {"tensor(uint8)": np.uint8, "tensor(float16)": np.float16}.get(self.input.type, np.float32)
        shape = (1, 1, network.channels) if self.channels_last else (network.channels, 1, 1)
        mean, std = (np.broadcast_to(np.array(value, np.float32), network.channels) for value in (network.mean, network.std))
        self.scale, self.offset = (1 / (255 * std)).reshape(shape), (mean / std).reshape(shape)
        self._check()

    def __call__(self, crops: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return logits (n, classes + further), float32, for uint8 crops (n, channels, side, side)."""
        if self.batch is None:
            return self._run(crops)
        chunks = [self._run_padded(crops[start : start + self.batch]) for start in range(0, len(crops), self.batch)]
        return np.concatenate(chunks)

    def _run_padded(self, crops: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Run a batch of fixed size, padded with black crops."""
        missing = (self.batch or 0) - len(crops)
        return self._run(np.pad(crops, ((0, missing), (0, 0), (0, 0), (0, 0))))[: len(crops)]

    def _run(self, crops: NDArray[np.uint8]) -> NDArray[np.float32]:
        images: Any = crops.transpose(0, 2, 3, 1) if self.channels_last else crops
        if self.type is not np.uint8:
            images = (images * self.scale - self.offset).astype(self.type)
        limits = onnxruntime.RunOptions()
        timer = threading.Timer(CROP_TIMEOUT_S * len(crops), setattr, (limits, "terminate", True))
        timer.start()  # an untrusted network may loop forever
        try:
            found = self.session.run(self.outputs, {self.input.name: np.ascontiguousarray(images)}, limits)
        finally:
            timer.cancel()
        outputs = dict(zip(self.outputs, found, strict=True))
        for name, output in outputs.items():
            if output.ndim != 2 or len(output) != len(crops):
                raise UserError(
                    f"The {ONNX_FILE} of the model '{self.card.name}' answers {len(crops)} crops by an output '{name}' of shape "
                    f"{output.shape}: it must be (crops, values)."
                )
        logits = self._classes(outputs[self.outputs[0]].astype(np.float32))
        return np.concatenate([logits, *(self._values(outputs[one.output or self.outputs[0]], one) for one in self.further)], 1)

    def _classes(self, output: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the logits (n, classes) in the first output (n, values). Raise UserError if it has another number of values."""
        start, count, own = self.card.classes_at, len(self.card.label_space.classes), [self.outputs[0], None]
        places = [*range(start, start + count), *(one.index for one in self.card.further if one.output in own)]
        if output.shape[1] != max(places) + 1:
            raise UserError(
                f"The {ONNX_FILE} of the model '{self.card.name}' has an output of shape {output.shape}, but its card names "
                f"{count} classes{f' and values up to {max(places)}' if self.card.further or start else ''}: the shape must be "
                f"(n, {'classes' if max(places) + 1 == count else max(places) + 1})."
            )
        logits = output[:, start : start + count]
        return np.log(np.maximum(logits, 1e-12)) if self.card.outputs == "probabilities" else logits

    def _values(self, output: NDArray[np.floating], one: FurtherOutput) -> NDArray[np.float32]:
        """Return a further value of each face (n, 1). Raise UserError if the output does not hold it."""
        if output.shape[1] <= one.index:
            raise UserError(
                f"The card of the model '{self.card.name}' takes '{one.column}' from place {one.index} of an output of shape "
                f"{output.shape}: name a place within it."
            )
        return np.clip(output[:, one.index : one.index + 1].astype(np.float32), one.low, one.high)

    def _check(self) -> None:
        """Run one black crop, so that a misfit shows before any work."""
        card, side = self.card, self.card.network.image_px
        try:
            found = self(np.zeros((1, card.network.channels, side, side), np.uint8))
        except UserError:
            raise
        except Exception as error:
            raise UserError(
                f"The {ONNX_FILE} of the model '{card.name}' does not accept the input that its card describes, crops of "
                f"{card.network.channels} channels and {side} px: {_one_line(error)}."
            ) from error
        if not np.isfinite(found).all():
            raise UserError(f"The {ONNX_FILE} of the model '{card.name}' returns values that are not finite for a black crop.")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300].rstrip(".")
