"""The whole GPU way, on the CPU as its device, against the CPU way."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from fer_pipeline.core.manifest import read_shards, split_into_shards, write_manifest
from fer_pipeline.models.bundle import EMBEDDED, read_bundle
from fer_pipeline.sources.files import Selection
from fer_pipeline.sources.listing import Listing
from fer_pipeline.stages import device_label, label
from fer_pipeline.stages.align import resize_whole
from fer_pipeline.stages.decode import Pixels
from fer_pipeline.stages.detectors import resolve_detector
from fer_pipeline.stages.detectors.detections import Detections
from fer_pipeline.stages.detectors.spec import ResolvedDetector
from fer_pipeline.stages.device_label import DeviceLabeller
from fer_pipeline.stages.label import Labeller
from tests.stages.test_label import SETTINGS, labelled, manifest_of

AT_PX = replace(SETTINGS, threshold=0.6)


@pytest.fixture(scope="module")
def yunet(shared: Path) -> ResolvedDetector:
    return resolve_detector("yunet", str(shared / "models" / "face_detection_yunet_2023mar.onnx"))


def both(detector: ResolvedDetector, manifest: pa.Table) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the rows by the device, and by cores."""
    bundle = read_bundle(EMBEDDED)
    device = DeviceLabeller(detector, bundle, AT_PX, "cpu", 2)
    return device(manifest).to_pylist(), labelled(Labeller(detector, bundle, AT_PX), manifest).to_pylist()


@pytest.mark.parametrize("source", ["scenes/images", "expressions", "oddities", "videos"])
def test_every_record_has_the_status_and_the_faces_that_cores_give_it(
    source: str, yunet: ResolvedDetector, shared: Path, tmp_path: Path
) -> None:
    write_manifest(str(tmp_path / "m-"), split_into_shards(Listing(str(shared / "data" / source), Selection(fps=1)), 100, 10**12))
    ((_, manifest),) = read_shards(str(tmp_path / "m-"), [0])
    by_device, by_cores = both(yunet, manifest)
    assert len(by_device) == len(manifest)
    for row, expected in zip(by_device, by_cores, strict=True):
        faces, wanted = row.pop("faces"), expected.pop("faces")
        assert row == expected and len(faces) == len(wanted)
        for face, one in zip(faces, wanted, strict=True):
            assert abs(face["x"] - one["x"]) < 0.1 and abs(face["detection_score"] - one["detection_score"]) < 1e-4
            assert np.allclose(face["probabilities"], one["probabilities"], atol=0.02)


@pytest.mark.parametrize("detector", ["none", "mtcnn"])
def test_a_detector_without_a_form_for_devices_gives_equal_rows(detector: str, archive: Path, tmp_path: Path) -> None:
    by_device, by_cores = both(resolve_detector(detector), manifest_of(archive, tmp_path))
    for row in (*by_device, *by_cores):
        for face in row["faces"]:
            face["probabilities"] = [round(value, 3) for value in face["probabilities"]]  # batches of other sizes
            face["confidence"] = round(face["confidence"], 3)
    assert by_device == by_cores


def test_photos_that_fill_the_memory_are_looked_at_in_groups(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest, bundle = manifest_of(archive, tmp_path), read_bundle(EMBEDDED)
    labeller = DeviceLabeller(resolve_detector("none"), bundle, AT_PX, "cpu", 2)
    whole, detect, groups = labeller(manifest), labeller.detect, list[int]()
    monkeypatch.setattr(device_label, "MOST_BYTES", 3 * 10**6)

    def counted(images: Sequence[Pixels]) -> list[Detections]:
        groups.append(len(images))
        return detect(images)

    monkeypatch.setattr(labeller, "detect", counted)
    assert labeller(manifest).equals(whole)
    assert len(groups) > 3 and sum(groups) == whole["status"].to_pylist().count("ok")


def test_a_fault_of_the_cut_is_the_records_own(archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = manifest_of(archive, tmp_path)
    labeller = DeviceLabeller(resolve_detector("none"), read_bundle(EMBEDDED), AT_PX, "cpu", 2)
    calls = iter(range(1000))

    def fails_once(*arguments: Any) -> Any:
        return resize_whole(*arguments) if next(calls) else 1 / 0

    whole = labeller(manifest)["status"].to_pylist()
    monkeypatch.setattr(label, "resize_whole", fails_once)
    found = labeller(manifest)["status"].to_pylist()
    assert found.count("ok") == whole.count("ok") - 1 and found.count("undecodable") == whole.count("undecodable") + 1
