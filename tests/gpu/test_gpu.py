"""What runs on a GPU, against the same on a CPU. Needs no Ray: `make test-gpu` on any machine with a CUDA device."""

from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from fer_pipeline.archive.record import Record
from fer_pipeline.faces.classify import Classifier
from fer_pipeline.faces.decode import decode
from fer_pipeline.faces.detectors import resolve_detector
from fer_pipeline.faces.detectors.torch_yunet import TorchYuNet, YuNetGraph
from fer_pipeline.faces.detectors.views import shrink
from fer_pipeline.faces.detectors.yunet import WEIGHTS
from fer_pipeline.faces.pixels import Pixels
from fer_pipeline.labelling.device_labeller import DeviceLabeller
from fer_pipeline.labelling.labeller import LabelSettings
from fer_pipeline.labelling.schemas import MANIFEST
from fer_pipeline.models.bundle import EMBEDDED, read_bundle

SHARED = Path(__file__).resolve().parents[3] / "shared"
SETTINGS = LabelSettings(640, 0.6, 10**8, 10**9, "fp32", 0.5)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device on this machine"),
    pytest.mark.skipif(not SHARED.is_dir(), reason="needs the real data in ../shared"),
]


@pytest.fixture(scope="module")
def weights() -> bytes:
    return (SHARED / "models" / WEIGHTS.name).read_bytes()


@pytest.fixture(scope="module")
def scenes() -> list[Path]:
    return sorted((SHARED / "data" / "scenes" / "images").iterdir())[:100]


@pytest.fixture(scope="module")
def images(scenes: list[Path]) -> list[Pixels]:
    return [shrink(decode(file.read_bytes(), 10**8, 640).pixels, 640)[0] for file in scenes]


def faces(found: list[dict[str, list[dict[str, float]]]]) -> list[dict[str, float]]:
    return [face for row in found for face in row["faces"]]


def test_the_detectors_answers_in_fp32_are_those_of_a_cpu(weights: bytes) -> None:
    batch = torch.randint(0, 256, (4, 3, 480, 640)).float()
    network = YuNetGraph(weights)
    with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        expected = network(batch)
        found = network.to("cuda")(batch.to("cuda"))
    for name, values in expected.items():
        assert torch.allclose(found[name].cpu(), values, rtol=1e-3, atol=1e-3), name


def test_in_bf16_it_finds_all_but_a_few_faces_of_a_hundred_scenes(weights: bytes, images: list[Pixels]) -> None:
    exact, fast = TorchYuNet(weights, 0.6, "cpu", "fp32")(images), TorchYuNet(weights, 0.6, "cuda", "bf16")(images)
    assert abs(sum(map(len, fast)) - sum(map(len, exact))) <= 0.03 * sum(map(len, exact))


@pytest.mark.parametrize(("precision", "most"), [("fp32", 0.002), ("bf16", 0.02)])
def test_the_classifiers_labels_are_those_of_a_cpu(precision: str, most: float) -> None:
    crops = np.random.default_rng(0).integers(0, 256, (2000, 1, 48, 48), np.uint8)
    bundle = read_bundle(EMBEDDED)
    expected, found = Classifier(bundle, "fp32")(crops), Classifier(bundle, precision, "cuda")(crops)  # type: ignore[arg-type]
    assert (expected.argmax(1) != found.argmax(1)).mean() <= most


@pytest.mark.parametrize(("precision", "changed"), [("fp32", 0.005), ("bf16", 0.03)])
def test_a_shard_has_the_statuses_of_a_cpu_and_nearly_all_its_labels(
    precision: str, changed: float, weights: bytes, scenes: list[Path]
) -> None:
    blank = dict.fromkeys(MANIFEST.names)
    rows = [blank | asdict(Record(str(file))) | {"record_id": index, "shard": 0} for index, file in enumerate(scenes)]
    manifest = pa.Table.from_pylist(rows, schema=MANIFEST)
    detector, bundle = resolve_detector("yunet", str(SHARED / "models" / WEIGHTS.name)), read_bundle(EMBEDDED)
    settings = replace(SETTINGS, precision=precision)  # type: ignore[arg-type]
    by_cpu = DeviceLabeller(detector, bundle, SETTINGS, "cpu", 4)(manifest).to_pylist()
    by_gpu = DeviceLabeller(detector, bundle, settings, "cuda", 4)(manifest).to_pylist()
    assert [row["status"] for row in by_gpu].count("ok") == pytest.approx([row["status"] for row in by_cpu].count("ok"), abs=2)
    alike = [
        (one, other)
        for ours, theirs in zip(by_gpu, by_cpu, strict=True)
        for one in ours["faces"]
        for other in theirs["faces"]
        if abs(one["x"] - other["x"]) + abs(one["y"] - other["y"]) < 0.1 * other["w"]
    ]
    assert len(alike) >= 0.97 * len(faces(by_cpu))
    different = sum(one["expression"] != other["expression"] for one, other in alike)
    print(f"{precision}: {different} of {len(alike)} faces change class")
    assert different <= changed * len(alike)


def test_a_gpu_that_is_too_small_for_the_batch_takes_smaller_ones(weights: bytes, images: list[Pixels]) -> None:
    expected = [len(found) for found in TorchYuNet(weights, 0.6, "cuda", "fp32")(images)]
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, 1.5e9 / total))
    try:
        detect = TorchYuNet(weights, 0.6, "cuda", "fp32")
        detect.batches.size = 512
        small = [image for image in images for _ in range(6)]
        assert [len(found) for found in detect(small)][::6] == expected
        assert detect.batches.size < 512
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
