import cv2
import numpy as np
import pytest
import torch

from fer_pipeline.faces.pixels import Pixels
from fer_pipeline.models import corruption
from fer_pipeline.models.corruption import CORRUPTIONS, corrupt


@pytest.fixture
def faces(hopper: Pixels) -> torch.Tensor:
    """Crops of a real photo, float (4, 1, 48, 48)."""
    grey = cv2.resize(cv2.cvtColor(hopper, cv2.COLOR_BGR2GRAY), (96, 96), interpolation=cv2.INTER_AREA)
    corners = [grey[:48, :48], grey[:48, 48:], grey[48:, :48], grey[48:, 48:]]
    return torch.from_numpy(np.stack(corners)[:, None]).float()


@pytest.mark.parametrize("number", range(len(CORRUPTIONS)))
def test_every_corruption_changes_a_photo_more_the_stronger_it_is_and_leaves_it_recognisable(
    number: int, faces: torch.Tensor
) -> None:
    def changed(strength: float) -> float:
        strengths = torch.full((len(faces), 1, 1, 1), strength)
        spoiled = CORRUPTIONS[number](faces, strengths, torch.Generator().manual_seed(1)).clamp(0, 255)
        assert spoiled.shape == faces.shape and bool(torch.isfinite(spoiled).all())
        assert float(torch.corrcoef(torch.stack([spoiled.flatten(), faces.flatten()]))[0, 1]) > 0.5
        return float((spoiled - faces).abs().mean())

    by_size = number == CORRUPTIONS.index(corruption._shrink)  # draws one size for all
    assert changed(1.0) > (0.5 if by_size else max(0.5, changed(0.6)))


def test_blocks_are_rounded_as_jpeg_does(faces: torch.Tensor) -> None:
    strength = torch.zeros(len(faces), 1, 1, 1)  # quality 40
    ours = corruption._compress(faces, strength, torch.Generator()).clamp(0, 255).round()
    for one, face in zip(ours, faces, strict=True):
        _, encoded = cv2.imencode(".jpg", face[0].numpy().astype(np.uint8), [cv2.IMWRITE_JPEG_QUALITY, 40])
        theirs = cv2.imdecode(encoded, cv2.IMREAD_GRAYSCALE)
        assert theirs is not None
        assert np.abs(one[0].numpy() - theirs.astype(np.float32)).mean() < 1.5


def test_a_share_of_the_images_is_corrupted_and_the_seed_decides_which() -> None:
    images = torch.randint(0, 256, (400, 1, 48, 48), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    first, again = (corrupt(images, 0.5, torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(first, again) and first.dtype == torch.uint8
    touched = (first != images).any((1, 2, 3)).float().mean()
    assert 0.4 < float(touched) < 0.6
