"""The model gets the dataset's framing: labelling cuts faces as training saw them."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from fer_pipeline.base.errors import UserError
from fer_pipeline.datasets.dataset import read_dataset
from fer_pipeline.datasets.training_data import SplitReader
from fer_pipeline.faces.align import align
from fer_pipeline.faces.decode import decode
from fer_pipeline.faces.detectors import DETECTORS, load_detector, resolve_detector
from fer_pipeline.jobs import ingest
from fer_pipeline.jobs.ingest import IngestConfig
from fer_pipeline.jobs.train.config import TrainConfig
from fer_pipeline.jobs.train.plan import make_plan
from fer_pipeline.models.bundle import EMBEDDED, read_bundle
from fer_pipeline.models.framing import FER2013_FRAMING, Framing
from fer_pipeline.models.network_config import NetworkConfig
from fer_pipeline.models.recipe import Recipe

SIDE = 64
NETWORKS = (NetworkConfig(image_px=SIDE), NetworkConfig(image_px=SIDE, channels=3, equalize=True))
WIDE = "cut = 'box'\nbox_scale = 1.8\n"


@pytest.fixture(scope="module")
def photos(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four portraits, small enough not to be shrunk for detection."""
    folder = tmp_path_factory.mktemp("photos")
    for index, name in enumerate(("hopper-480.jpg", "hopper-640.jpg", "astronaut-480.jpg", "astronaut-640.jpg")):
        pixels = decode(next(archive.rglob(name)).read_bytes(), 10**8).pixels
        path = folder / ("happy", "sad")[index % 2] / f"{name}.png"
        path.parent.mkdir(exist_ok=True)
        cv2.imwrite(str(path), pixels)
    return folder


def ingested(photos: Path, out: Path, **options: str) -> str:
    values = {"source": str(photos), "out": str(out), "detector": "mtcnn", "crop_px": SIDE} | options
    ingest.run(IngestConfig.model_validate(values))
    return str(out)


@pytest.mark.parametrize("mode", ["box", "align"])
@pytest.mark.parametrize("framing", ["fer2013", "wide"])
def test_training_and_labelling_see_the_same_pixels(
    mode: str, framing: str, photos: Path, tmp_path: Path, local_ray: None
) -> None:
    (tmp_path / "wide.toml").write_text(WIDE)
    named = str(tmp_path / "wide.toml") if framing == "wide" else framing
    data = ingested(photos, tmp_path / "data", faces=mode, framing=named)
    faces = read_dataset(data).faces
    assert (faces.mode, faces.crop_px, faces.framing.cut) == (mode, SIDE, "box" if mode == "box" else "landmarks")
    learned = [SplitReader(data, "train", network, tuple(range(7))).load() for network in NETWORKS]
    detect = load_detector(resolve_detector("mtcnn"), 640, DETECTORS["mtcnn"].threshold)
    for index, sample in enumerate(learned[0].ids):
        pixels = decode((photos / sample).read_bytes(), 10**8).pixels
        found = detect(pixels)
        largest = int(found.boxes_xywh[:, 2:].prod(1).argmax())
        for network, seen in zip(NETWORKS, learned, strict=True):
            assert np.array_equal(align(pixels, found, network, faces.framing)[largest], seen.images[index])


def test_crops_by_box_and_by_landmarks_differ(photos: Path, tmp_path: Path, local_ray: None) -> None:
    crops = [
        SplitReader(ingested(photos, tmp_path / mode, faces=mode), "train", NetworkConfig(image_px=SIDE), tuple(range(7))).load()
        for mode in ("box", "align")
    ]
    assert not np.array_equal(crops[0].images, crops[1].images)


def plan(data: str, framing: Framing | None = None, initial: str | None = None) -> Framing:
    """Return the framing of a model trained on the dataset."""
    recipe = Recipe(name="mine", framing=framing, validation_split="train", network=read_bundle(EMBEDDED).card.network)
    config = TrainConfig(recipe="mine", data=data, out="m", allow_missing_classes=True)
    return make_plan(config, recipe, read_dataset(data), data, read_bundle(initial) if initial else None).framing


def test_a_model_gets_the_framing_of_its_dataset(photos: Path, tmp_path: Path, local_ray: None) -> None:
    (tmp_path / "wide.toml").write_text(WIDE)
    whole = ingested(photos, tmp_path / "whole")
    declared = ingested(photos, tmp_path / "declared", framing=str(tmp_path / "wide.toml"))
    assert plan(whole) == plan(whole, FER2013_FRAMING) == plan(whole, None, EMBEDDED) == FER2013_FRAMING
    assert plan(declared) == Framing(cut="box", box_scale=1.8)
    boxes = ingested(photos, tmp_path / "boxes", faces="box")
    assert plan(boxes) == FER2013_FRAMING.model_copy(update={"cut": "box"})
    with pytest.raises(UserError, match="The recipe 'mine' has another framing"):
        plan(boxes, FER2013_FRAMING)
    with pytest.raises(UserError, match="learned from faces of another framing"):
        plan(boxes, None, EMBEDDED)


def test_faces_are_cut_as_those_of_another_dataset(dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its folder; a known name of a framing is not a folder of that name."""
    (tmp_path / "wide.toml").write_text('cut = "box"\nbox_scale = 1.6\n')
    tree = str(dataset.parent / "tree")
    wide = ingest.run(IngestConfig(source=tree, out=str(tmp_path / "fer2013"), framing=str(tmp_path / "wide.toml")))
    like = ingest.run(IngestConfig(source=tree, out=str(tmp_path / "like"), framing=str(tmp_path / "fer2013")))
    assert like.faces.framing == wide.faces.framing
    monkeypatch.chdir(tmp_path)
    named = ingest.run(IngestConfig(source=tree, out=str(tmp_path / "named"), framing="fer2013"))
    assert named.faces.framing != wide.faces.framing
