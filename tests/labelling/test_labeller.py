from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import cv2
import numpy as np
import pyarrow as pa
import pytest

from fer_pipeline.archive.files import Selection
from fer_pipeline.archive.listing import Listing
from fer_pipeline.archive.record import split_into_shards
from fer_pipeline.base.storage import parquet
from fer_pipeline.faces.detectors import resolve_detector
from fer_pipeline.faces.detectors.detections import Detections
from fer_pipeline.faces.pixels import Pixels
from fer_pipeline.labelling import labeller as label
from fer_pipeline.labelling.labeller import Labeller, LabelSettings
from fer_pipeline.labelling.manifest import read_shards, write_manifest
from fer_pipeline.labelling.schemas import FACE_PLACES, LABELLED
from fer_pipeline.models.bundle import EMBEDDED, read_bundle
from fer_pipeline.table.reuse import read_faces

SETTINGS = LabelSettings(detect_px=640, threshold=0.9, max_pixels=10**8, max_bytes=10**8, precision="fp32", uncertain_below=0.5)


def manifest_of(source: Path, folder: Path) -> pa.Table:
    write_manifest(str(folder / "m-"), split_into_shards(Listing(str(source)), 10**6, 10**12))
    return next(read_shards(str(folder / "m-"), [0]))[1]


def labelled(labeller: Labeller, manifest: pa.Table) -> pa.Table:
    (table,) = labeller([manifest])
    return table


@pytest.fixture(scope="module")
def labeller() -> Labeller:
    return Labeller(resolve_detector("mtcnn"), read_bundle(EMBEDDED), SETTINGS)


@pytest.fixture(scope="module")
def images(labeller: Labeller, archive: Path, tmp_path_factory: pytest.TempPathFactory) -> pa.Table:
    return labelled(labeller, manifest_of(archive, tmp_path_factory.mktemp("manifest")))


def test_there_is_one_row_for_every_record_in_the_pinned_schema(images: pa.Table) -> None:
    assert images.schema.equals(LABELLED)
    assert images["record_id"].to_pylist() == list(range(36))
    assert sorted(set(images["status"].to_pylist())) == ["no_face", "ok", "undecodable"]


def test_each_picture_has_the_faces_that_it_shows(images: pa.Table) -> None:
    shows = {"hopper": 1, "astronaut": 1, "orientation": 1, "group-2": 2, "group-3": 3, "group-6": 6}
    for row in images.to_pylist():
        name = row["member"] or Path(row["uri"]).name
        expected = next((count for start, count in shows.items() if name.startswith(start)), 0)
        assert len(row["faces"]) == expected, name
        assert (row["status"] == "ok") == (expected > 0) and (row["error"] is None) == (row["status"] != "undecodable")


def test_each_face_has_the_quality_of_its_picture(images: pa.Table) -> None:
    for row in images.to_pylist():
        assert len(row["qualities"]) == len(row["faces"])
        for face, quality in zip(row["faces"], row["qualities"], strict=True):
            assert quality["side_px"] == pytest.approx((face["w"] * face["h"]) ** 0.5, rel=1e-5)
            assert 0 < quality["quality"] <= 1 and abs(quality["yaw_deg"]) < 45


def test_known_faces_are_not_detected_unless_bytes_or_pixels_are_others(
    images: pa.Table, labeller: Labeller, archive: Path, tmp_path: Path
) -> None:
    detected = list[int]()

    def detect(pixels: Pixels) -> Detections:
        detected.append(1)
        return labeller.faces.detect(pixels)

    manifest = manifest_of(archive, tmp_path)
    identity = {"detector_digest": "d", "settings_digest": "s"}
    rows = images
    for name, value in identity.items():
        rows = rows.append_column(name, pa.array([value] * len(images)))
    parquet.write_table(str(tmp_path / "images" / "000000.parquet"), rows)
    places = pa.table([["images/000000.parquet"] * len(images), list(range(len(images)))], schema=FACE_PLACES)
    found = read_faces(str(tmp_path), parquet.joined(manifest, places), identity)
    assert not any(read_faces(str(tmp_path), parquet.joined(manifest, places), identity | {"settings_digest": "other"}))
    ok = [one if one and row["status"] != "undecodable" else None for one, row in zip(found, images.to_pylist(), strict=True)]
    bytes_changed, pixels_changed = (
        [one and replace(one, **change) for one in ok] for change in ({"content_sha256": "0"}, {"size_px": (1, 1)})
    )
    for known, detects in ((ok, False), (bytes_changed, True), (pixels_changed, True)):
        other = Labeller(resolve_detector("mtcnn"), read_bundle(EMBEDDED), SETTINGS)
        other.faces_of = Mock(return_value=known)
        other.faces.detect = detect
        detected.clear()
        assert labelled(other, manifest).equals(images)
        assert bool(detected) == detects


def test_an_image_whose_faces_cannot_be_cut_has_failed(
    labeller: Labeller, hopper: Pixels, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(label, "align", Mock(side_effect=cv2.error("no")))
    outcome, crops = labeller.faces.extract(cv2.imencode(".png", hopper)[1].tobytes())
    assert (outcome.status, len(crops)) == ("undecodable", 0)


def test_labels_of_poor_pictures_are_uncertain_if_that_is_asked_for(labeller: Labeller, hopper: Pixels, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for name, pixels in (("good.png", hopper), ("poor.png", cv2.GaussianBlur(hopper, (0, 0), 10))):
        cv2.imwrite(str(tmp_path / "photos" / name), pixels)
    manifest = manifest_of(tmp_path / "photos", tmp_path)
    strict = Labeller(resolve_detector("mtcnn"), read_bundle(EMBEDDED), replace(SETTINGS, min_quality=0.9, uncertain_below=0.0))
    good, poor = labelled(strict, manifest).to_pylist()
    assert poor["qualities"][0]["quality"] < 0.9 < good["qualities"][0]["quality"]
    assert poor["faces"][0]["uncertain"] and not good["faces"][0]["uncertain"]
    for row, before in zip((good, poor), labelled(labeller, manifest).to_pylist(), strict=True):
        assert row["faces"][0] | {"uncertain": None} == before["faces"][0] | {"uncertain": None}


def test_faces_are_in_the_upright_full_size_image(images: pa.Table) -> None:
    for row in images.to_pylist():
        for face in row["faces"]:
            assert -0.1 * row["width"] < face["x"] and face["x"] + face["w"] < 1.1 * row["width"]
            assert -0.1 * row["height"] < face["y"] and face["y"] + face["h"] < 1.1 * row["height"]
            assert face["h"] > 0.1 * row["height"]
            assert face["landmarks"][1] < face["landmarks"][7]  # eyes above the mouth, also in photos stored sideways


def test_labels_follow_from_the_probabilities(images: pa.Table) -> None:
    classes = read_bundle(EMBEDDED).card.label_space.classes
    for row in images.to_pylist():
        for face in row["faces"]:
            assert sum(face["probabilities"]) == pytest.approx(1, abs=1e-5)
            assert face["confidence"] == max(face["probabilities"])
            assert face["expression"] == classes[int(np.argmax(face["probabilities"]))]
            assert face["uncertain"] == (face["confidence"] < 0.5)


def test_an_astronauts_smile_is_happy(images: pa.Table) -> None:
    smiles = [row["faces"][0]["expression"] for row in images.to_pylist() if Path(row["uri"]).name.startswith("astronaut")]
    assert smiles == ["happy"] * len(smiles)


def test_crops_are_labelled_whole_without_a_detector(archive: Path, tmp_path: Path) -> None:
    crops = Labeller(resolve_detector("none"), read_bundle(EMBEDDED), SETTINGS)
    rows = labelled(crops, manifest_of(archive, tmp_path)).to_pylist()
    assert {len(row["faces"]) for row in rows if row["status"] == "ok"} == {1}
    face = next(row for row in rows if row["uri"].endswith("hopper-320.jpg"))["faces"][0]
    assert (face["x"], face["y"], face["landmarks"]) == (0, 0, None) and max(face["w"], face["h"]) == 320


def test_limits_are_kept(archive: Path, tmp_path: Path) -> None:
    small = LabelSettings(**{**vars(SETTINGS), "max_pixels": 400_000, "max_bytes": 100_000})
    crops = Labeller(resolve_detector("none"), read_bundle(EMBEDDED), small)
    rows = labelled(crops, manifest_of(archive, tmp_path)).to_pylist()
    large = [row for row in rows if row["status"] == "too_large"]
    assert {"pixels" in row["error"] for row in large} == {True, False}
    assert all(row["size_bytes"] <= 100_000 and row["width"] * row["height"] <= 400_000 for row in rows if row["status"] == "ok")


def test_oddities_get_a_row_each(shared: Path, tmp_path: Path) -> None:
    crops = Labeller(resolve_detector("none"), read_bundle(EMBEDDED), SETTINGS)
    rows = labelled(crops, manifest_of(shared / "data" / "oddities", tmp_path)).to_pylist()
    assert len(rows) == 26
    assert sum(row["status"] == "ok" for row in rows) == 20
    assert {Path(row["uri"]).name for row in rows if row["note"]} == {"truncated_jpeg.jpg"}  # of its last scan


def test_videos_get_a_row_for_every_sampled_frame(shared: Path, tmp_path: Path) -> None:
    write_manifest(
        str(tmp_path / "m-"), split_into_shards(Listing(str(shared / "data" / "videos"), Selection(fps=1)), 64, 10**12)
    )
    manifests = [table for _, table in read_shards(str(tmp_path / "m-"), range(3))]
    weights = str(shared / "models" / "face_detection_yunet_2023mar.onnx")
    settings = LabelSettings(**{**vars(SETTINGS), "threshold": 0.6})
    labeller = Labeller(resolve_detector("yunet", weights), read_bundle(EMBEDDED), settings)
    rows = pa.concat_tables(labeller(manifests)).to_pylist()
    by_video: dict[str, list[int]] = {}
    for row in rows:
        by_video.setdefault(Path(row["uri"]).stem, []).append(len(row["faces"]))
    assert {row["status"] for row in rows} == {"ok", "no_face"}
    assert len(by_video["one-by-one-person-detection"]) == 140
    assert set(by_video["no_face"]) == {0} and by_video["single_face"] == [1, 1, 1]
    assert [row["time_ms"] for row in rows if row["uri"].endswith("single_face.mp4")] == [0, 1000, 2000]
