"""Files with another schema version are rejected with a message that says what to do."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import fer_pipeline
from fer_pipeline.base.errors import UserError
from fer_pipeline.base.identity import Identity
from fer_pipeline.datasets import dataset
from fer_pipeline.datasets.dataset import read_dataset
from fer_pipeline.labelling import run
from fer_pipeline.labelling.run import RunFolder, RunRecord
from fer_pipeline.models import bundle, card
from fer_pipeline.models.bundle import EMBEDDED, read_bundle

HOME = Path(fer_pipeline.__file__).parent / "models" / EMBEDDED


def changed(path: Path, **facts: Any) -> None:
    """Change keys of a JSON file; None deletes a key."""
    kept = json.loads(path.read_text()) | facts
    path.write_text(json.dumps({key: value for key, value in kept.items() if value is not None}))


@pytest.fixture
def begun(tmp_path: Path) -> Path:
    """A run folder in which a driver has started a run."""
    identity = Identity(name="x", digest="0")
    record = RunRecord(run_id="r", created_at="2026-01-01", source="/photos", settings={}, model=identity, detector=identity)
    RunFolder(str(tmp_path / "run")).begin(record)
    return tmp_path / "run"


def test_a_run_of_an_earlier_version_is_not_continued(begun: Path) -> None:
    changed(begun / "run.json", schema_version=None, version="0.1.0")
    with pytest.raises(UserError, match=r"written by fer-pipeline 0.1.0 \(schema 1\) .* finish it with that version"):
        RunFolder(str(begun)).load()


def test_a_run_of_a_later_version_is_not_continued(begun: Path) -> None:
    changed(begun / "run.json", schema_version=run.SCHEMA_VERSION + 1, version="9.0.0")
    with pytest.raises(UserError, match=r"written by fer-pipeline 9\.0\.0"):
        RunFolder(str(begun)).load()


def test_a_patch_release_continues_a_run(begun: Path) -> None:
    changed(begun / "run.json", version="0.2.7")
    record = RunFolder(str(begun)).load()
    assert record is not None and record.version == "0.2.7"


def test_a_dataset_of_an_earlier_version_is_refused_with_the_command_that_makes_it_anew(tmp_path: Path) -> None:
    facts = {"source": "/fer.csv", "layout": "fer2013-csv", "label_space": {"name": "fer7", "classes": []}, "samples": 1}
    (tmp_path / "dataset.json").write_text(json.dumps(facts))
    command = "fer-pipeline ingest /fer.csv --layout fer2013-csv --label-space fer7 --out NEW"
    with pytest.raises(UserError, match=rf"fer-pipeline 0.1.0 \(schema 1\) .* ingest it again into a new folder: {command}"):
        read_dataset(str(tmp_path))
    (tmp_path / "dataset.json").write_text("[]")
    with pytest.raises(UserError, match="cannot be used"):
        read_dataset(str(tmp_path))
    assert dataset.SCHEMA_VERSION == 2


def test_a_bundle_of_the_first_version_is_read_and_cuts_faces_as_it_did(tmp_path: Path) -> None:
    shutil.copytree(HOME, tmp_path / "m")
    found = json.loads((HOME / "model.json").read_text())["framing"] | {"cut": None}
    del found["cut"]
    changed(tmp_path / "m" / "model.json", schema_version=None, version=None, framing=found)
    assert read_bundle(str(tmp_path / "m")).card.framing.cut == "landmarks"
    changed(tmp_path / "m" / "model.json", schema_version=card.SCHEMA_VERSION + 1, version="9.0.0")
    with pytest.raises(UserError, match=r"written by fer-pipeline 9.0.0 .* train or export it again"):
        bundle.read_bundle(str(tmp_path / "m"))
