import cv2
import numpy as np
import pytest

from fer_pipeline.datasets.crops import Cropper, NoCropError
from fer_pipeline.datasets.layouts.layout import AnnotatedFace
from fer_pipeline.faces.detectors.detections import Detections
from fer_pipeline.faces.detectors.whole_image import WholeImage
from fer_pipeline.faces.phash import perceptual_hash
from fer_pipeline.faces.pixels import Pixels
from fer_pipeline.models.framing import Framing

BY_BOX, BY_LANDMARKS = Framing(cut="box"), Framing(cut="landmarks")


def apart(one: bytes, other: bytes) -> int:
    return (int.from_bytes(one, "big") ^ int.from_bytes(other, "big")).bit_count()


def test_near_copies_have_near_hashes_and_other_faces_do_not(hopper: Pixels) -> None:
    grey = np.asarray(cv2.cvtColor(hopper, cv2.COLOR_BGR2GRAY), np.uint8)
    small = np.asarray(cv2.resize(grey, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA), np.uint8)
    jpeg = np.asarray(cv2.imdecode(cv2.imencode(".jpg", grey, [cv2.IMWRITE_JPEG_QUALITY, 60])[1], 0), np.uint8)
    own = perceptual_hash(grey)
    assert apart(own, perceptual_hash(small)) <= 12
    assert apart(own, perceptual_hash(jpeg)) <= 12
    assert apart(own, perceptual_hash(np.ascontiguousarray(grey[:, ::-1]))) > 60


def test_a_marked_face_is_cut_and_aligned() -> None:
    image = np.zeros((100, 200, 3), np.uint8)
    cv2.circle(image, (150, 40), 4, (255, 255, 255), -1)
    face = AnnotatedFace((130, 20, 40, 40), ((140, 35), (160, 35), (150, 40), (143, 50), (157, 50)))
    for framing in (BY_BOX, BY_LANDMARKS):
        crop = Cropper(framing, 64, WholeImage())(image, face)
        assert crop.shape == (64, 64, 3)
        bright = np.argwhere(crop[:, :, 0] > 128).mean(0)
        assert (abs(bright - 32) < 8).all()


@pytest.mark.parametrize("box", [(300, 10, 20, 20), (10, 10, 0, 20), (-50, 10, 20, 20)])
def test_a_box_outside_the_image_is_a_wrong_label(box: tuple[float, float, float, float]) -> None:
    with pytest.raises(NoCropError, match="is outside the image of 200 x 100 pixels") as caught:
        Cropper(BY_BOX, 64, WholeImage())(np.zeros((100, 200, 3), np.uint8), AnnotatedFace(box))
    assert caught.value.kind == "mislabelled"


def test_the_largest_face_is_taken_and_an_image_without_one_is_dropped() -> None:
    def two(pixels: Pixels) -> Detections:
        return Detections(np.array([[0, 0, 10, 10], [100, 50, 40, 40]], np.float32), np.array([0.9, 0.8], np.float32))

    image = np.zeros((100, 200, 3), np.uint8)
    image[60:80, 110:130] = 255
    assert Cropper(BY_BOX, 32, two)(image, None)[16, 16, 0] == 255

    def none(pixels: Pixels) -> Detections:
        return Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.float32))

    with pytest.raises(NoCropError, match="no face found") as caught:
        Cropper(BY_LANDMARKS, 32, none)(image, None)
    assert caught.value.kind == "dropped"
