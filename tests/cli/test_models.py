import json
from pathlib import Path

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest

from fer_pipeline.base.errors import UserError
from fer_pipeline.cli import export, models
from fer_pipeline.cli.export import ExportConfig
from fer_pipeline.cli.models import AliasConfig, CardConfig, ListConfig, PullConfig, PushConfig
from fer_pipeline.jobs.label import job as label
from fer_pipeline.jobs.label.config import LabelConfig
from fer_pipeline.models.bundle import EMBEDDED, read_bundle
from fer_pipeline.models.registry import ENVIRONMENT
from tests.models.test_onnx import foreign


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(ENVIRONMENT, str(tmp_path / "registry"))
    return tmp_path / "registry"


@pytest.fixture
def crops(tmp_path: Path) -> Path:
    folder, rng = tmp_path / "crops", np.random.default_rng(0)
    folder.mkdir()
    for number in range(12):
        cv2.imwrite(str(folder / f"{number}.png"), cv2.GaussianBlur(rng.integers(0, 256, (64, 64, 3), np.uint8), (9, 9), 0))
    return folder


def test_a_model_is_pushed_listed_moved_and_pulled(registry: Path, tmp_path: Path) -> None:
    models.push(PushConfig(model=EMBEDDED, name="face", alias=("production",)))
    assert models.push(PushConfig(model="face@production", name="face")).version == "1", "the same bundle became another version"
    assert models.push(PushConfig(model="face@production", name="face", version="2")).version == "2"
    (listed,) = models.list_models(ListConfig()).models
    assert [one.version for one in listed.versions] == ["1", "2"] and listed.aliases == {"production": "1"}
    models.alias(AliasConfig(name="face", alias="production", version="2"))
    assert models.list_models(ListConfig()).models[0].aliases == {"production": "2"}
    assert listed.versions[0].digest == read_bundle(EMBEDDED).digest, "rows name another digest than the registry"
    models.pull(PullConfig(model="face@production", out=str(tmp_path / "copy")))
    assert read_bundle(str(tmp_path / "copy")) == read_bundle(EMBEDDED)


def test_a_bundle_that_does_not_fit_together_or_a_bad_alias_is_not_pushed(registry: Path, tmp_path: Path) -> None:
    models.pull(PullConfig(model=EMBEDDED, out=str(tmp_path / "m")))
    with pytest.raises(UserError, match="cannot be an alias"):
        models.push(PushConfig(model=EMBEDDED, name="face", alias=("1",)))
    (tmp_path / "m" / "model.safetensors").write_bytes(b"short")
    with pytest.raises(UserError, match="do not fit its card"):
        models.push(PushConfig(model=str(tmp_path / "m"), name="face"))
    assert not registry.exists()


def test_an_archive_is_labelled_by_an_alias_and_by_an_exported_network_alike(
    registry: Path, crops: Path, tmp_path: Path, local_ray: None
) -> None:
    exported = export.run(ExportConfig(model=EMBEDDED, out=str(tmp_path / "onnx")))
    assert exported.parity_max_difference < 1e-4 and exported.parity_images == "noise"
    models.push(PushConfig(model=str(tmp_path / "onnx"), name="face", alias=("production",)))
    found = {}
    for model in (EMBEDDED, "face@production"):
        run = tmp_path / model
        label.run(LabelConfig(source=str(crops), out=str(run), model=model, detector="none", precision="fp32", thumbnails=False))
        (faces,) = (run / "faces").glob("*.parquet")
        found[model] = pq.read_table(faces).sort_by("uri").to_pydict()
    ours, theirs = found.values()
    assert ours["expression"] == theirs["expression"] and len(ours["expression"]) == 12
    assert np.array(ours["probabilities"]) == pytest.approx(np.array(theirs["probabilities"]), abs=1e-4)
    record = json.loads((tmp_path / "face@production" / "run.json").read_text())
    assert record["model"]["digest"] == read_bundle("face@production").digest
    models.push(PushConfig(model=EMBEDDED, name="face", alias=("production",)))
    with pytest.raises(UserError, match="begun with another model"):
        label.run(LabelConfig(source=str(crops), out=str(tmp_path / "face@production"), model="face@production", detector="none"))


def test_an_archive_is_labelled_by_anothers_network_with_a_card_written_by_hand(
    crops: Path, tmp_path: Path, local_ray: None
) -> None:
    weight = np.zeros((48, 2))
    weight[:16, 0] = weight[32:, 1] = 1  # red against blue
    card = {
        "name": "theirs",
        "format": "onnx",
        "network": {"image_px": 4, "channels": 3},
        "label_space": {"name": "two", "classes": ["red", "blue"]},
    }
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "model.json").write_text(json.dumps(card))
    (tmp_path / "theirs" / "model.onnx").write_bytes(foreign(["n", 3, 4, 4], weight))
    for number, color in enumerate([(0, 0, 255), (255, 0, 0)]):  # BGR
        cv2.imwrite(str(crops / f"color{number}.png"), np.full((32, 32, 3), color, np.uint8))
    config = LabelConfig(source=str(crops), out=str(tmp_path / "run"), model=str(tmp_path / "theirs"), detector="none")
    label.run(config)
    (faces,) = (tmp_path / "run" / "faces").glob("*.parquet")
    rows = pq.read_table(faces).to_pylist()
    assert {Path(row["uri"]).name: row["expression"] for row in rows if "color" in row["uri"]} == {
        "color0.png": "red",
        "color1.png": "blue",
    }
    card["label_space"] = {"name": "three", "classes": ["red", "green", "blue"]}
    (tmp_path / "theirs" / "model.json").write_text(json.dumps(card))
    with pytest.raises(UserError, match="its card names 3 classes"):
        label.run(config.model_copy(update={"out": str(tmp_path / "other")}))
    assert not (tmp_path / "other").exists()


def test_a_card_says_what_the_model_must_not_be_used_for(tmp_path: Path) -> None:
    models.card(CardConfig(model=EMBEDDED, out=str(tmp_path)))
    for name in ("MODEL_CARD.md", "model_card.html"):
        text = " ".join((tmp_path / name).read_text().split())
        assert "Art. 5(1)(f)" in text and "work or in education" in text
        assert "research data, not for commercial use" in text and "3,589" in text and "disgust" in text


def test_a_card_without_figures_says_so(tmp_path: Path) -> None:
    models.pull(PullConfig(model=EMBEDDED, out=str(tmp_path / "m")))
    card = json.loads((tmp_path / "m" / "model.json").read_text())
    bare = {key: card[key] for key in ("name", "network", "label_space")} | {
        "limits": ["Tried on adults only."],
        "data": {"terms": "Theirs."},
        "metrics": {"validation": 0.7, "export": {"precision": "fp16"}},
        "recipe": {"description": "from elsewhere"},
    }
    (tmp_path / "m" / "model.json").write_text(json.dumps(bare))
    models.card(CardConfig(model=str(tmp_path / "m"), out=str(tmp_path / "card")))
    text = (tmp_path / "card" / "MODEL_CARD.md").read_text()
    assert "was not evaluated" in text and "Tried on adults only." in text and "Theirs." in text and "Not known" in text
