import hashlib
import inspect
import pickle
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from fer_pipeline.base.errors import UserError
from fer_pipeline.faces.detectors import load_detector, mtcnn, resolve_detector, spec, yunet
from fer_pipeline.faces.detectors.detections import Detections, Detector, Floats, no_faces
from fer_pipeline.faces.detectors.views import View, merged, views_of
from fer_pipeline.faces.pixels import Pixels
from fer_pipeline.faces.shapes import seen_px

YUNET_FILE, YUNET_SHA256 = yunet.WEIGHTS.name, yunet.WEIGHTS.sha256


@pytest.fixture(params=["mtcnn", "yunet"])
def detector(request: pytest.FixtureRequest) -> Detector:
    if request.param == "mtcnn":
        return load_detector(resolve_detector("mtcnn"), 640, 0.9)
    file = request.getfixturevalue("shared") / "models" / YUNET_FILE
    return load_detector(resolve_detector("yunet", str(file)), 640, 0.6)


@pytest.fixture
def nothing_to_find(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No weights in the environment, an empty cache, and a URL that does not answer."""
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
    with pytest.raises(UserError, match="weights of 'yunet' are not available"):
        resolve_detector("yunet")


def test_a_network_that_swallows_everything_costs_seconds_only(nothing_to_find: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts connections and never answers
        monkeypatch.setattr(yunet.WEIGHTS, "url", f"http://127.0.0.1:{silent.getsockname()[1]}/yunet.onnx")
        monkeypatch.setattr(spec, "DOWNLOAD_TIMEOUT_S", 0.5)
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
    from fer_pipeline.faces.decode import decode

    detect = load_detector(resolve_detector("yunet", str(shared / "models" / YUNET_FILE)), 640, 0.6)
    photos = sorted((shared / "data" / "expressions").glob("*.jpg"))
    assert [len(detect(decode(photo.read_bytes(), 10**8, 640).pixels)) for photo in photos] == [1] * 7


def test_tiles_cover_an_extreme_shape_and_one_face_is_found_once() -> None:
    """Every tile is as long as the short side or smaller, and a face in two tiles, or cut by an edge, stays one."""
    for height, width in ((1200, 8000), (8000, 1200), (5000, 19_000), (300, 2600), (40, 50_000)):
        pixels = np.zeros((height, width, 3), np.uint8)
        views = views_of(pixels, 1.0, 640)
        side = seen_px(width, height, 640)
        seen = np.zeros((height, width), bool)
        for view in views[1:]:
            seen[view.y : view.y + side, view.x : view.x + side] = True
            assert max(view.pixels.shape[:2]) <= 640 and view.factor <= 6.01
        assert seen.all() and len(views) < 150
    assert len(views_of(np.zeros((3000, 4000, 3), np.uint8), 1.0, 640)) == 1
    assert len(views_of(np.zeros((500, 1500, 3), np.uint8), 1.0, 640)) == 1, "its faces are large enough"
    assert len(views_of(np.zeros((300, 2000, 3), np.uint8), 4.0, 640)) > 2, "a reduced JPEG is as large as it was"
    views = views_of(np.zeros((1200, 3600, 3), np.uint8), 1.0, 640)
    found = [_face_in(view, np.array([700, 300, 200, 260], np.float32), side=1200) for view in views]
    assert sum(len(one) for one in found) >= 3, "the face is in several views"
    faces = merged(views, found)
    assert len(faces) == 1 and np.allclose(faces.boxes_xywh, [[700, 300, 200, 260]], atol=1)
    assert faces.landmarks is not None and np.allclose(faces.landmarks, 800, atol=1)


def _face_in(view: View, box: Floats, side: int) -> Detections:
    """Return the part of a face's box that a view shows, in pixels of the view."""
    height, width = view.pixels.shape[0] * view.factor, view.pixels.shape[1] * view.factor
    low = np.maximum(box[:2], (view.x, view.y))
    high = np.minimum(box[:2] + box[2:], (view.x + width, view.y + height))
    if (high - low).min() <= 20:
        return no_faces()
    shown = np.concatenate([low - (view.x, view.y), high - low]) / view.factor
    points = (np.full((1, 5, 2), 800.0) - (view.x, view.y)) / view.factor
    whole = np.allclose(high - low, box[2:])
    return Detections(
        np.asarray(shown[None], np.float32),
        np.array([0.8 if whole else 0.9], np.float32),
        {"landmarks": points.astype(np.float32)},
    )


@pytest.fixture(scope="module")
def facenet() -> Any:
    """The MTCNN of facenet-pytorch, whose cascade and weights ours has."""
    import facenet_pytorch
    import torch

    torch.set_num_threads(1)

    return facenet_pytorch.MTCNN(keep_all=True, min_face_size=mtcnn.MIN_FACE_PX, device="cpu").eval()


def test_mtcnn_has_the_weights_of_facenet(facenet: Any) -> None:
    """Bit for bit, so rows of that package's detector are rows of ours: `mtcnn.DIGEST` is the sha256 of its files."""
    files = Path(inspect.getfile(type(facenet))).parents[1] / "data"
    assert hashlib.sha256(b"".join((files / f"{net}net.pt").read_bytes() for net in "pro")).hexdigest() == mtcnn.DIGEST
    for network, (name, data) in zip((facenet.pnet, facenet.rnet, facenet.onet), mtcnn._files().items(), strict=True):
        theirs = sorted(value.numpy().ravel().tobytes() for value in network.state_dict().values())
        ours = sorted(_in_torchs_order(array).tobytes() for array in mtcnn._arrays(data))
        assert ours == theirs, name


def _in_torchs_order(array: Floats) -> Floats:
    return np.ascontiguousarray(array.transpose((3, 2, 0, 1) if array.ndim == 4 else None) if array.ndim != 3 else array)


def test_mtcnn_finds_what_facenet_finds(facenet: Any, archive: Path, hopper: Pixels) -> None:
    """The same faces, to a hundredth of a pixel: at many sizes, in groups, at edges, turned, and in noise."""
    detect = mtcnn.Mtcnn(b"", 0.9)
    photos = [photo for file in sorted(archive.rglob("*-[346]??.jpg")) if (photo := cv2.imread(str(file))) is not None]
    group = np.tile(hopper[::2, ::2], (2, 3, 1))
    noise = np.random.default_rng(0).integers(0, 256, (300, 400, 3), np.uint8)
    cut = [photo[: photo.shape[0] // 2, photo.shape[1] // 3 :] for photo in photos]
    found = 0
    for pixels in [*photos, *cut, group, noise, np.zeros((40, 900, 3), np.uint8), photos[0][:41, :40]]:
        pixels = np.ascontiguousarray(pixels, np.uint8)
        faces = detect(pixels)
        boxes, scores, landmarks = facenet.detect(pixels[:, :, ::-1].copy(), landmarks=True)
        kept = [] if boxes is None else [index for index in np.argsort(-scores, kind="stable") if scores[index] >= 0.9]
        assert len(faces) == len(kept)
        found += len(kept)
        if kept:
            boxes, landmarks = boxes[kept].astype(float), landmarks[kept].astype(float)
            xywh = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1)
            assert np.abs(faces.boxes_xywh - xywh).max() < 0.01
            assert faces.landmarks is not None and np.abs(faces.landmarks - landmarks).max() < 0.01
            assert np.abs(faces.scores - scores[kept].astype(float)).max() < 1e-4
    assert found > 15


def test_weights_of_another_mtcnn_are_refused_and_not_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = tmp_path / "mtcnn" / "assets" / "weights"
    weights.mkdir(parents=True)
    (weights.parents[1] / "__init__.py").touch()
    for name in mtcnn.NETWORKS:
        (weights / name).write_bytes(pickle.dumps(pytest.fail))
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UserError, match=r"'.*pnet.lz4' is not the file of mtcnn 1.0"):
        resolve_detector("mtcnn")
    with pytest.raises(UserError, match="is not the file of"):
        mtcnn.Mtcnn(b"", 0.9)
