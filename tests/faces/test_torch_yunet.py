"""YuNet in torch, compared with the official file on ONNX Runtime."""

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from fer_pipeline.faces.decode import decode
from fer_pipeline.faces.detectors.torch_yunet import TorchYuNet, YuNetGraph
from fer_pipeline.faces.detectors.views import shrink
from fer_pipeline.faces.detectors.yunet import WEIGHTS, YuNet, any_size
from fer_pipeline.faces.pixels import Pixels

THRESHOLD = 0.6


@pytest.fixture(scope="module")
def weights(shared: Path) -> bytes:
    return (shared / "models" / WEIGHTS.name).read_bytes()


@pytest.fixture(scope="module")
def scenes(shared: Path) -> list[Pixels]:
    files = sorted((shared / "data" / "scenes" / "images").iterdir())[:100]
    return [shrink(decode(file.read_bytes(), 10**8, 640).pixels, 640)[0] for file in files]


@pytest.mark.parametrize(("count", "height", "width"), [(1, 32, 32), (3, 96, 160), (2, 640, 480), (5, 224, 224)])
def test_the_networks_answers_are_those_of_onnx_runtime_at_any_batch_and_size(
    weights: bytes, count: int, height: int, width: int
) -> None:
    images = np.random.default_rng(0).integers(0, 256, (count, 3, height, width)).astype(np.float32)
    session = onnxruntime.InferenceSession(any_size(weights), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    with torch.inference_mode():
        found = YuNetGraph(weights)(torch.from_numpy(images))
    for index in range(count):  # one at a time: the official file's reshape treats a batch as more anchors
        expected = session.run(None, {"input": images[index : index + 1]})
        for name, values in zip(names, expected, strict=True):
            assert np.allclose(found[name][index].numpy(), values[0], rtol=1e-5, atol=1e-5), name


def test_it_finds_the_same_faces_in_a_hundred_scenes(weights: bytes, scenes: list[Pixels]) -> None:
    detect = YuNet(weights, THRESHOLD)
    found = TorchYuNet(weights, THRESHOLD, "cpu", "fp32")(scenes)
    assert sum(map(len, found)) > 500
    for faces, pixels in zip(found, scenes, strict=True):
        expected = detect(pixels)
        assert len(faces) == len(expected)
        assert np.allclose(faces.scores, expected.scores, atol=1e-5)
        assert np.allclose(faces.boxes_xywh, expected.boxes_xywh, atol=1e-2)
        if len(faces):
            assert faces.landmarks is not None and expected.landmarks is not None
            assert np.allclose(faces.landmarks, expected.landmarks, atol=1e-2)


def test_in_bf16_it_finds_all_but_a_few_of_them(weights: bytes, scenes: list[Pixels]) -> None:
    exact, fast = (TorchYuNet(weights, THRESHOLD, "cpu", precision)(scenes[:20]) for precision in ("fp32", "bf16"))
    assert abs(sum(map(len, fast)) - sum(map(len, exact))) <= 0.03 * sum(map(len, exact))


def test_no_images_have_no_faces(weights: bytes) -> None:
    assert TorchYuNet(weights, THRESHOLD, "cpu", "fp32")([]) == []
