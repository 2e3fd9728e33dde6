"""Classify: face crops to calibrated probabilities."""

import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fer_pipeline.base.errors import OutageError, UserError, needs_package
from fer_pipeline.base.isolated import IsolatedProcess
from fer_pipeline.base.memory import MEMORY_BYTES, lift_memory_limit, limit_memory
from fer_pipeline.faces.align import empty_inputs
from fer_pipeline.faces.batches import Batches
from fer_pipeline.faces.pixels import Pixels
from fer_pipeline.models.bundle import EMBEDDED, Bundle, read_bundle, save_bundle
from fer_pipeline.models.metrics import softmax
from fer_pipeline.models.onnx import OnnxNetwork

Precision = Literal["fp32", "bf16", "int8"]

TRIAL_S = 120.0
"""Time limit for an untrusted network to load and classify two crops."""


def auto_precision(bundle: Bundle, on_gpu: bool, has_bf16: bool) -> Precision:
    """Return the default precision for labelling with a model.

    `has_bf16`: whether the processors that label multiply bf16 natively.
    """
    if bundle.int8 is not None and not on_gpu:
        return "int8"
    own = bundle.card.format == "safetensors"  # an ONNX network computes as it was exported
    return "bf16" if own and has_bf16 else "fp32"


@dataclass(frozen=True)
class Answers:
    """What a model says of n faces."""

    probabilities: NDArray[np.float32]
    """(n, classes)"""
    further: NDArray[np.float32] | None
    """(n, further): values of the card's `further`; None if it declares none."""


class Classifier:
    """A bundle's network on one core or one GPU. Raise UserError if the bundle's files do not fit together.

    `int8` selects the bundle's int8 form. An ONNX network computes as exported, whatever the `precision`. Neither of them needs
    torch, which takes seconds to import.
    """

    def __init__(self, bundle: Bundle, precision: Precision, device: str = "cpu", batch_size: int | None = None) -> None:
        bundle = bundle.computing_in(precision)
        self.card, self.device = bundle.card, device
        self.batches = Batches(batch_size or (64 if device == "cpu" else 1024))
        if bundle.card.format == "onnx":
            self._forward: Any = OnnxNetwork(bundle, device, further=True)
        else:
            try:
                from fer_pipeline.faces.torch_network import TorchNetwork
            except ImportError as error:
                what = f"The model '{self.card.name}', which has no ONNX form at {precision},"
                raise needs_package(what, error) from error
            self._forward = TorchNetwork(bundle, precision, device)
        probe = np.zeros((1, *empty_inputs(0, bundle.card.network).shape[1:]), np.uint8)
        if not all(np.isfinite(found).all() for found in self._outputs(np.concatenate([probe, probe + 128]))):
            raise UserError(f"The model '{self.card.name}' returns values that are not finite for blank crops: train it again.")

    def logits(self, crops: Pixels) -> NDArray[np.float32]:
        """Return logits (n, classes), before temperature scaling, for uint8 crops (n, channels, side, side)."""
        return self._outputs(crops)[0]

    def _outputs(self, crops: Pixels) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return the logits (n, classes) and the further outputs (n, further) that the card declares."""
        count = len(self.card.label_space.classes)
        empty = np.zeros((0, count + len(self.card.further)), np.float32)
        found = np.concatenate([empty, *self.batches(self._forward, crops)])
        return found[:, :count], found[:, count:]

    def label(self, crops: Pixels) -> Answers:
        """Return what the model says of uint8 crops (n, channels, side, side)."""
        logits, further = self._outputs(crops)
        return Answers(softmax(logits, self.card.calibration.temperature), further if self.card.further else None)

    def __call__(self, crops: Pixels) -> NDArray[np.float32]:
        """Return probabilities (n, classes) for uint8 crops (n, channels, side, side)."""
        return softmax(self.logits(crops), self.card.calibration.temperature)


def read_tried(url: str, *precisions: Precision) -> Bundle:
    """Return the bundle at a URL, as `read_bundle` does, after a trial of its network in another process.

    The trial covers the given precisions that the bundle has, by default the one for labelling on CPUs. An untrusted network may
    use up all memory or never finish. Raise UserError if it does, or if it does not fit its card.
    """
    bundle = read_bundle(url)
    forms = precisions or (auto_precision(bundle, on_gpu=False, has_bf16=False),)
    if url != EMBEDDED:
        try_bundle(bundle, tuple(form for form in forms if form != "int8" or bundle.int8 is not None))
    return bundle


_trials = IsolatedProcess()
"""It is kept for the next model, because importing torch takes longer than a trial."""


def try_bundle(bundle: Bundle, precisions: tuple[Precision, ...]) -> None:
    """Raise UserError unless a bundle's network loads and runs in another process, within limits of memory and time."""
    name = bundle.card.name
    with tempfile.TemporaryDirectory() as folder:
        save_bundle(folder, bundle)
        try:
            faults = list(_trials.call(f"{__name__}:{faults_of.__name__}", folder, precisions, timeout_s=TRIAL_S))
        except OutageError as error:
            raise UserError(f"The trial of the model '{name}' failed: {error}.") from error
        except ValueError as error:
            raise UserError(f"The model '{name}' cannot be used: {error}.") from error
    if faults:
        raise UserError(faults[0].replace(folder, name))


def faults_of(folder: str, precisions: list[Precision]) -> Iterator[str]:
    """Yield the reason if the network of the bundle in a folder cannot be used. It runs in the other process."""
    try:
        bundle = read_bundle(folder)
        lift_memory_limit()
        if bundle.card.format != "onnx" and set(precisions) != {"int8"}:
            with suppress(ImportError):  # `Classifier` says so
                import torch  # noqa: F401 (its libraries need address space, which must not count)
        limit_memory(MEMORY_BYTES + 6 * len(bundle.weights))  # loading takes up to 6 bytes per byte of the file
        for precision in precisions:
            Classifier(bundle, precision)
    except UserError as error:
        yield str(error)
