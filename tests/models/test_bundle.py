import json
import shutil
import subprocess
import sys
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import torch

from fer_pipeline.base.errors import UserError
from fer_pipeline.faces.classify import Classifier
from fer_pipeline.models.bundle import CARD_MARKDOWN, EMBEDDED, MODEL_FILE, WEIGHTS_FILE, read_bundle, save_bundle
from fer_pipeline.models.card import ModelCard
from fer_pipeline.models.figures import SplitFigures
from fer_pipeline.models.label_space import FER7
from fer_pipeline.models.network_config import NetworkConfig
from fer_pipeline.models.networks import build
from fer_pipeline.models.training.trainer import predict
from fer_pipeline.models.weights import load_network, pack
from fer_pipeline.report.card import card_markdown

HOME = Path(str(resources.files("fer_pipeline"))) / "models" / "embedded"


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(HOME, tmp_path / "bundle"))


def test_a_bundle_gives_back_the_network_that_was_saved(tmp_path: Path) -> None:
    config = NetworkConfig(width=4)
    network = build(config, 7).eval()
    save_bundle(str(tmp_path), pack(network, ModelCard(name="small", network=config, label_space=FER7)))
    images = torch.randint(0, 256, (3, 1, 48, 48), dtype=torch.uint8)
    loaded = load_network(read_bundle(str(tmp_path)))
    assert torch.equal(predict(loaded, images), predict(network, images))
    assert {path.name for path in tmp_path.iterdir()} == {MODEL_FILE, WEIGHTS_FILE}


def test_a_torchvision_network_is_built_by_name() -> None:
    network = build(NetworkConfig(architecture="resnet18", channels=3, image_px=64), 8).eval()
    assert predict(network, torch.zeros(2, 3, 64, 64, dtype=torch.uint8)).shape == (2, 8)


@pytest.mark.parametrize(("architecture", "complaint"), [("resnet18", "channels = 3"), ("resnet5000", "There is no network")])
def test_a_network_that_cannot_be_built_is_the_users_to_mend(architecture: str, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        build(NetworkConfig(architecture=architecture), 7)


def test_weights_that_do_not_fit_the_card_are_refused(copy: Path) -> None:
    card = json.loads((copy / MODEL_FILE).read_text())
    card["network"]["width"] = 16
    (copy / MODEL_FILE).write_text(json.dumps(card))
    with pytest.raises(UserError, match="do not fit its card"):
        load_network(read_bundle(str(copy)))


def test_a_damaged_bundle_is_refused(copy: Path) -> None:
    (copy / WEIGHTS_FILE).write_bytes((copy / WEIGHTS_FILE).read_bytes()[:1000])
    with pytest.raises(UserError, match="do not fit its card"):
        load_network(read_bundle(str(copy)))
    (copy / WEIGHTS_FILE).unlink()
    with pytest.raises(UserError, match="no model bundle"):
        read_bundle(str(copy))
    (copy / MODEL_FILE).write_text('{"name": "x"}')
    with pytest.raises(UserError, match="'network' is missing"):
        read_bundle(str(copy))


def test_the_embedded_model_is_small_and_says_what_it_is() -> None:
    assert sum(path.stat().st_size for path in HOME.iterdir()) <= 8_000_000
    card = read_bundle(EMBEDDED).card
    assert "research" in card.data.terms
    assert card.metrics.validation is not None and card.metrics.validation.selected_on_this_split
    assert 0 < card.calibration.uncertain_below < 1 and card.calibration.temperature > 0
    assert "not what a person feels" in card.intended_use


@pytest.fixture(scope="module")
def public_test_accuracy(shared: Path) -> float:
    """Accuracy of the embedded model on all of FER-2013 PublicTest, one view, fp32."""
    import cv2
    import pyarrow.parquet as pq

    bundle = read_bundle(EMBEDDED)
    table = pq.read_table(shared / "data" / "fer2013" / "public_test.parquet", columns=["emotion", "png"])
    images = [
        np.asarray(cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_GRAYSCALE), np.uint8) for png in table["png"].to_pylist()
    ]
    torch.set_num_threads(2)
    logits = predict(load_network(bundle), torch.from_numpy(np.stack(images)[:, None]))
    return float((logits.argmax(1) == torch.tensor(table["emotion"].to_pylist())).float().mean())


def published() -> SplitFigures:
    """Return the figures of the embedded model's card."""
    figures = read_bundle(EMBEDDED).card.metrics.validation
    assert figures is not None
    return figures


def test_the_embedded_model_is_as_accurate_as_its_card_says(public_test_accuracy: float) -> None:
    assert public_test_accuracy == pytest.approx(published().accuracy, abs=0.001)


def test_the_embedded_model_reaches_the_floor_that_was_asked_for(public_test_accuracy: float) -> None:
    assert public_test_accuracy >= 0.69


def test_its_form_in_8_bits_is_as_accurate_as_its_card_says(shared: Path) -> None:
    import cv2
    import pyarrow.parquet as pq

    table = pq.read_table(shared / "data" / "fer2013" / "public_test.parquet", columns=["emotion", "png"])
    images = [cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_GRAYSCALE) for png in table["png"].to_pylist()]
    crops = np.stack([np.asarray(image, np.uint8) for image in images])[:, None]
    found = Classifier(read_bundle(EMBEDDED), "int8").logits(crops).argmax(1)
    accuracy = float((found == table["emotion"].to_numpy()).mean())
    form = read_bundle(EMBEDDED).card.int8
    assert form is not None and form.validation is not None and accuracy == pytest.approx(form.validation.accuracy, abs=0.002)
    assert accuracy >= published().accuracy - 0.003


def test_labelling_on_cpus_does_not_import_torch() -> None:
    code = (
        "import sys, numpy as np, fer_pipeline.cli, fer_pipeline.jobs.label.job; from fer_pipeline.models.bundle import *;"
        "from fer_pipeline.faces.classify import Classifier; from fer_pipeline.labelling.labeller import Labeller;"
        "Classifier(read_bundle('embedded'), 'int8')(np.zeros((1, 1, 48, 48), np.uint8)); print('torch' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "False"


def test_the_card_of_the_embedded_model_is_that_of_its_files() -> None:
    bundle = read_bundle(EMBEDDED)
    assert (HOME / CARD_MARKDOWN).read_text() == card_markdown(bundle.card, bundle.digest)


def test_the_embedded_model_is_calibrated() -> None:
    calibration = published().calibration
    assert calibration is not None and calibration.cross_fitted.ece <= 0.03


@pytest.mark.xfail(strict=True, reason="its macro-F1 is .028 below its accuracy: fear and sad have F1 of .53 and .58")
def test_the_embedded_model_is_nearly_as_good_at_rare_classes() -> None:
    assert published().accuracy - published().macro_f1 <= 0.02


@pytest.mark.xfail(strict=True, reason="the shipped model has .695 with one view of each face")
def test_the_embedded_model_reaches_the_target_that_was_set_for_cpus(public_test_accuracy: float) -> None:
    assert public_test_accuracy >= 0.71
