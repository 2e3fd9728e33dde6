"""The whole GPU path, with the CPU as its device, gives the same results as the CPU path."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from fer_pipeline.archive.files import Selection
from fer_pipeline.archive.listing import Listing
from fer_pipeline.archive.record import split_into_shards
from fer_pipeline.faces.align import resize_whole
from fer_pipeline.faces.detectors import resolve_detector
from fer_pipeline.faces.detectors.detections import Detections
from fer_pipeline.faces.detectors.spec import ResolvedDetector
from fer_pipeline.faces.pixels import Pixels
from fer_pipeline.labelling import device_labeller as device_label
from fer_pipeline.labelling import labeller as label
from fer_pipeline.labelling.device_labeller import DeviceLabeller
from fer_pipeline.labelling.labeller import Labeller
from fer_pipeline.labelling.manifest import read_shards, write_manifest
from fer_pipeline.models.bundle import EMBEDDED, read_bundle
from tests.labelling.test_labeller import SETTINGS, labelled, manifest_of

AT_PX = replace(SETTINGS, threshold=0.6)


@pytest.fixture(scope="module")
def yunet(shared: Path) -> ResolvedDetector:
    return resolve_detector("yunet", str(shared / "models" / "face_detection_yunet_2023mar.onnx"))


def both(detector: ResolvedDetector, manifest: pa.Table) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the rows from the device, and from cores."""
    bundle = read_bundle(EMBEDDED)
    device = DeviceLabeller(detector, bundle, AT_PX, "cpu", 2)
    return device(manifest).to_pylist(), labelled(Labeller(detector, bundle, AT_PX), manifest).to_pylist()


@pytest.mark.parametrize("source", ["scenes/images", "expressions", "oddities", "videos", "field"])
def test_every_record_has_the_status_and_the_faces_that_cores_give_it(
    source: str, yunet: ResolvedDetector, shared: Path, tmp_path: Path
) -> None:
    chosen = ("*pano*.jpg",) if source == "field" else ()
    listing = Listing(str(shared / "data" / source), Selection(include=chosen, fps=1))
    write_manifest(str(tmp_path / "m-"), split_into_shards(listing, 100, 10**12))
    ((_, manifest),) = read_shards(str(tmp_path / "m-"), [0])
    by_device, by_cores = both(yunet, manifest)
    assert len(by_device) == len(manifest)
    for row, expected in zip(by_device, by_cores, strict=True):
        faces, wanted = row.pop("faces"), expected.pop("faces")
        for ours, theirs in zip(row.pop("qualities"), expected.pop("qualities"), strict=True):
            for name, value in theirs.items():
                within = 0.5 if name.endswith("_deg") else 0.02
                same = ours[name] == value or ours[name] == pytest.approx(value, abs=within, rel=1e-2)
                assert same, (name, ours[name], value)
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
