from pathlib import Path

import numpy as np
import pytest

from fer_pipeline.core.errors import UserError
from fer_pipeline.stages.decode import Pixels
from fer_pipeline.stages.detectors import load_detector, resolve_detector, spec, yunet
from fer_pipeline.stages.detectors.detections import Detector

YUNET_FILE, YUNET_SHA256 = yunet.WEIGHTS.name, yunet.WEIGHTS.sha256


@pytest.fixture(params=["mtcnn", "yunet"])
def detector(request: pytest.FixtureRequest) -> Detector:
    if request.param == "mtcnn":
        return load_detector(resolve_detector("mtcnn"), 640, 0.9)
    file = request.getfixturevalue("shared") / "models" / YUNET_FILE
    return load_detector(resolve_detector("yunet", str(file)), 640, 0.6)


@pytest.fixture
def nothing_to_find(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No weights in the environment, an empty cache, and an address at which nothing answers."""
    monkeypatch.delenv("FER_PIPELINE_MODELS", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(yunet.WEIGHTS, "url", "http://127.0.0.1:9/yunet.onnx")
    return tmp_path


def test_a_portrait_has_one_face_with_its_landmarks_in_place(detector: Detector, hopper: Pixels) -> None:
    faces = detector(hopper)
    assert len(faces) == 1
    x, y, w, h = faces.boxes_xywh[0]
    assert faces.landmarks is not None
    points = (faces.landmarks[0] - [x, y]) / [w, h]
    assert ((points > 0) & (points < 1)).all()
    right_eye, left_eye, nose, right_mouth, left_mouth = points
    assert right_eye[0] < nose[0] < left_eye[0] and right_mouth[0] < left_mouth[0]
    assert max(right_eye[1], left_eye[1]) < nose[1] < min(right_mouth[1], left_mouth[1])


def test_boxes_are_in_pixels_of_the_image_given_whatever_its_size(detector: Detector, hopper: Pixels) -> None:
    large = np.repeat(np.repeat(hopper, 3, axis=0), 3, axis=1)
    small, big = detector(hopper).boxes_xywh[0], detector(large).boxes_xywh[0]
    assert np.abs(big / 3 - small).max() < 0.06 * small[2]


@pytest.mark.parametrize("shape", [(1, 1), (3, 2000), (64, 64), (640, 639)])
def test_an_image_without_a_face_has_none_whatever_its_shape(detector: Detector, shape: tuple[int, int]) -> None:
    assert len(detector(np.full((*shape, 3), 127, np.uint8))) == 0


def test_auto_takes_mtcnn_where_yunet_cannot_be_had(nothing_to_find: Path, caplog: pytest.LogCaptureFixture) -> None:
    resolved = resolve_detector("auto")
    assert resolved.name == "mtcnn" and len(resolved.digest) == 64
    assert "FER_PIPELINE_MODELS" in caplog.text
    with pytest.raises(UserError, match="weights of 'yunet' cannot be had"):
        resolve_detector("yunet")


def test_a_network_that_swallows_everything_costs_seconds_only(nothing_to_find: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts, and never answers
        monkeypatch.setattr(yunet.WEIGHTS, "url", f"http://127.0.0.1:{silent.getsockname()[1]}/yunet.onnx")
        monkeypatch.setattr(spec, "PATIENCE_S", 0.5)
        assert resolve_detector("auto").name == "mtcnn"


def test_weights_are_looked_for_in_order(nothing_to_find: Path, shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = (shared / "models" / YUNET_FILE).read_bytes()
    cache, folder = nothing_to_find / "cache" / "fer-pipeline", nothing_to_find / "models"
    for place in (cache, folder):
        place.mkdir(parents=True)
        (place / YUNET_FILE).write_bytes(real)
    assert resolve_detector("auto").origin == "the cache"
    monkeypatch.setenv("FER_PIPELINE_MODELS", str(folder))
    assert resolve_detector("auto").origin == "$FER_PIPELINE_MODELS"
    assert resolve_detector("auto", str(folder / YUNET_FILE)).origin == "--detector-weights"
    assert resolve_detector("auto").digest == YUNET_SHA256


def test_other_weights_are_refused(nothing_to_find: Path) -> None:
    other = nothing_to_find / YUNET_FILE
    other.write_bytes(b"something else")
    with pytest.raises(UserError, match="sha256"):
        resolve_detector("auto", str(other))


def test_the_seven_expression_photos_have_a_face_each(shared: Path) -> None:
    from fer_pipeline.stages.decode import decode

    detect = load_detector(resolve_detector("yunet", str(shared / "models" / YUNET_FILE)), 640, 0.6)
    photos = sorted((shared / "data" / "expressions").glob("*.jpg"))
    assert [len(detect(decode(photo.read_bytes(), 10**8, 640).pixels)) for photo in photos] == [1] * 7
