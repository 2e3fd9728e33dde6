import shutil
from pathlib import Path

import pytest

from fer_pipeline.base.errors import UserError
from fer_pipeline.cli import models, quantize
from fer_pipeline.cli.models import PullConfig, PushConfig
from fer_pipeline.cli.quantize import QuantizeConfig
from fer_pipeline.models.bundle import EMBEDDED, INT8_FILE, MODEL_FILE, read_bundle
from fer_pipeline.report.card import card_markdown


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """The embedded model in a folder of its own, without its int8 form."""
    models.pull(PullConfig(model=EMBEDDED, out=str(tmp_path / "model")))
    card = read_bundle(EMBEDDED).card.model_copy(update={"int8": None})
    (tmp_path / "model" / MODEL_FILE).write_text(card.model_dump_json())
    (tmp_path / "model" / INT8_FILE).unlink()
    return tmp_path / "model"


def test_a_bundle_gets_an_int8_form_with_a_calibration_and_figures_of_its_own(model: Path, dataset: Path) -> None:
    before = read_bundle(str(model))
    with pytest.raises(UserError, match="has no int8 form"):
        before.computing_in("int8")
    result = quantize.run(QuantizeConfig(model=str(model), data=str(dataset)))
    after = read_bundle(str(model))
    assert after.digest == result.digest != before.digest and after.weights == before.weights
    form = after.card.int8
    assert form is not None and form.validation is not None and form.validation.precision == "int8"
    assert result.images == 64 and form.validation.accuracy == result.accuracy and result.same_label > 0.8
    assert after.computing_in("int8").card.calibration == form.calibration and after.computing_in("bf16") == after
    assert (model / "MODEL_CARD.md").read_text() == card_markdown(after.card, after.digest)


def test_a_registry_keeps_the_int8_form_with_its_bundle(tmp_path: Path) -> None:
    models.push(PushConfig(model=EMBEDDED, name="faces", registry=str(tmp_path / "registry")))
    pushed = read_bundle(f"{tmp_path}/registry/faces@1")
    assert pushed.int8 == read_bundle(EMBEDDED).int8 is not None


def test_an_int8_form_of_another_training_is_refused(model: Path, dataset: Path, tmp_path: Path) -> None:
    quantize.run(QuantizeConfig(model=str(model), data=str(dataset)))
    shutil.copytree(model, tmp_path / "other")
    (tmp_path / "other" / INT8_FILE).write_bytes(b"another")
    with pytest.raises(UserError, match="does not match its card"):
        read_bundle(str(tmp_path / "other"))


@pytest.mark.parametrize("name", [EMBEDDED, "registry/faces@1"])
def test_what_does_not_change_is_not_quantized(name: str, dataset: Path) -> None:
    with pytest.raises(UserError, match="name the folder of a bundle, then push it"):
        quantize.run(QuantizeConfig(model=name, data=str(dataset)))
