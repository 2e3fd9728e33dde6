import numpy as np
import pytest

from fer_pipeline.faces.align import align, box_transform, resize_whole, similarity, warp_crop
from fer_pipeline.faces.detectors.detections import Detections
from fer_pipeline.faces.pixels import Pixels
from fer_pipeline.models.framing import Framing
from fer_pipeline.models.network_config import NetworkConfig

POINTS = np.array(Framing().landmarks)


def test_a_turned_scaled_and_shifted_face_comes_back_into_the_frame() -> None:
    angle, scale, shift = np.deg2rad(25), 3.7, np.array([120.0, -40.0])
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = similarity(POINTS @ turn.T + shift, POINTS)
    back = (POINTS @ turn.T + shift) @ matrix[:, :2].T + matrix[:, 2]
    assert back == pytest.approx(POINTS, abs=1e-9)


def test_the_box_rule_puts_the_box_in_the_middle() -> None:
    matrix = box_transform(np.array([100, 50, 80, 80]), 1.25, 50)
    corners = np.array([[100, 50], [180, 130]]) @ matrix[:, :2].T + matrix[:, 2]
    assert corners.ravel() == pytest.approx([5, 5, 45, 45])


@pytest.mark.parametrize("scale", [2.0, 1.0, 0.6, 0.3, 0.1])
def test_a_cut_shows_what_it_should_whatever_the_scale(scale: float) -> None:
    side = round(48 / scale)
    ramp = np.tile(np.linspace(0, 255, side * 2), (side * 2, 1)).astype(np.uint8)
    pixels = np.repeat(ramp[:, :, None], 3, axis=2)
    matrix = np.array([[scale, 0, -scale * side / 2], [0, scale, -scale * side / 2]])  # the centre of the image
    crop = warp_crop(pixels, matrix, 48)[:, :, 0].astype(int)
    expected = np.linspace(64, 191, 48)
    assert np.abs(crop - expected).max() < 6


def test_a_face_partly_outside_is_filled_up_not_lost(hopper: Pixels) -> None:
    crop = warp_crop(hopper, box_transform(np.array([-60, -60, 120, 120]), 1.1, 48), 48)
    assert crop.shape == (48, 48, 3)


def test_fine_stripes_do_not_alias() -> None:
    stripes = np.zeros((960, 960, 3), np.uint8)
    stripes[:, ::2] = 255
    crop = warp_crop(stripes, np.array([[0.05, 0, 0], [0, 0.05, 0]]), 48)
    assert np.abs(crop[2:-2, 2:-2].astype(int) - 127).max() < 8


def test_landmarks_that_fall_together_give_way_to_the_box(hopper: Pixels) -> None:
    boxes = np.array([[100, 100, 200, 200]], np.float32)
    network, framing = NetworkConfig(), Framing()
    degenerate = Detections(boxes, np.ones(1, np.float32), {"landmarks": np.full((1, 5, 2), 200, np.float32)})
    boxed = Detections(boxes, np.ones(1, np.float32))
    assert np.array_equal(align(hopper, degenerate, network, framing), align(hopper, boxed, network, framing))


def test_crops_have_the_channels_that_the_network_takes(hopper: Pixels) -> None:
    grey = resize_whole(hopper, NetworkConfig(image_px=48))
    colour = resize_whole(hopper, NetworkConfig(image_px=224, channels=3))
    assert (grey.shape, colour.shape) == ((1, 48, 48), (3, 224, 224))
    assert np.abs(colour.mean((1, 2)) - hopper.mean((0, 1))[::-1]).max() < 3  # RGB
