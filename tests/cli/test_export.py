from pathlib import Path

import pytest

from fer_pipeline.base.errors import UserError
from fer_pipeline.cli import export, models
from fer_pipeline.cli.export import ExportConfig
from fer_pipeline.cli.models import CardConfig
from fer_pipeline.models.bundle import EMBEDDED, read_bundle


def test_int8_is_measured_on_the_split_beside_the_bundle(dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--data"):
        export.run(ExportConfig(model=EMBEDDED, out=str(tmp_path / "m"), int8=True))
    for name in ("split", "calibration_split"):
        config = ExportConfig(model=EMBEDDED, out=str(tmp_path / "m"), int8=True, data=str(dataset))
        with pytest.raises(UserError, match="has no split 'test'"):
            export.run(config.model_copy(update={name: "test"}))
    assert not (tmp_path / "m").exists()
    result = export.run(ExportConfig(model=EMBEDDED, out=str(tmp_path / "m"), int8=True, data=str(dataset)))
    assert result.images == 64 and result.parity_images == "validation"
    assert result.accuracy is not None and set(result.accuracy) == {"bundle", "fp32", "int8"}
    card = read_bundle(str(tmp_path / "m")).card
    assert card.metrics.export is not None and card.metrics.export.precision == "int8"
    models.card(CardConfig(model=str(tmp_path / "m"), out=str(tmp_path / "card")))
    text = (tmp_path / "card" / "MODEL_CARD.md").read_text()
    assert "Exported to ONNX in int8" in text and text == (tmp_path / "m" / "MODEL_CARD.md").read_text()
    assert card.metrics.validation is None  # those are the bundle's in fp32


def test_a_folder_that_holds_something_is_not_exported_into(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="not empty"):
        export.run(ExportConfig(model=EMBEDDED, out=str(tmp_path)))
