"""What commit 04c3eb5 left on a disk is read by today's code, which goes on with it: runs, a table, a dataset, models.

`write.py` says how it was made. It names absolute paths, so each test gets it afresh in the one folder where it was written.
"""

import fcntl
import json
import math
import os
import shutil
import tarfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fer_pipeline.base.errors import UserError
from fer_pipeline.cli import explain, models, report
from fer_pipeline.cli import table as upkeep
from fer_pipeline.cli.explain import ExplainConfig
from fer_pipeline.cli.models import AliasConfig, ListConfig, PullConfig, PushConfig
from fer_pipeline.cli.report import ReportConfig
from fer_pipeline.cli.table import RestoreConfig, TableConfig
from fer_pipeline.datasets.dataset import read_dataset
from fer_pipeline.faces.decoding_version import DECODING
from fer_pipeline.jobs import evaluate, ingest, nightly, publish
from fer_pipeline.jobs.evaluate import EvaluateConfig
from fer_pipeline.jobs.ingest import IngestConfig
from fer_pipeline.jobs.label import job as label
from fer_pipeline.jobs.label.config import LabelConfig
from fer_pipeline.jobs.nightly import NightlyConfig
from fer_pipeline.jobs.publish import PublishConfig
from fer_pipeline.jobs.train import job as train
from fer_pipeline.jobs.train.config import TrainConfig
from fer_pipeline.jobs.train.plan import facts_of, identity_of, make_plan
from fer_pipeline.labelling.schemas import ADDED
from fer_pipeline.models.bundle import read_bundle
from fer_pipeline.models.recipe import load_recipe
from tests.compat.write import PLACE
from tests.table.runs import rows_of_table

ARCHIVE = Path(__file__).with_name("04c3eb5.tar.xz")
OWN = ["run_id", "labelled_at"]
"""Columns that say which run made a row, and when."""

Row = dict[str, Any]


def lock_on(place: Path) -> int:
    """Return the lock on a folder, which is made where it is missing, and again where its last user has just removed it."""
    while True:
        with suppress(FileNotFoundError):
            place.mkdir(mode=0o700, exist_ok=True)
            lock = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            if os.fstat(lock).st_uid != os.getuid():
                raise PermissionError(f"'{place}' is another user's")
            fcntl.flock(lock, fcntl.LOCK_EX)
            if place.stat().st_ino == os.fstat(lock).st_ino:
                return lock
            os.close(lock)


@pytest.fixture(scope="module")
def place(local_ray: None) -> Iterator[Path]:
    """The folder that the archive's files name, for this module alone."""
    try:
        lock = lock_on(PLACE)
    except OSError as error:
        pytest.skip(f"needs the folder {PLACE} for itself: {error}")
    yield PLACE
    shutil.rmtree(PLACE)
    os.close(lock)


@pytest.fixture
def left(place: Path, caplog: pytest.LogCaptureFixture) -> Path:
    """The folder with what was left, as it was left."""
    for path in place.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    with tarfile.open(ARCHIVE) as tar:
        tar.extractall(place, filter="data")
    caplog.set_level("INFO", "fer_pipeline")
    return place


def photos(out: Path) -> LabelConfig:
    """Return how the photos were labelled."""
    return LabelConfig(
        source=str(PLACE / "photos"), out=str(out), detector="mtcnn", precision="fp32", shard_records=3, thumbnails=False
    )


def by_model(model: str | Path, out: Path, precision: str) -> LabelConfig:
    """Return how the crops were labelled by the model."""
    options = {"source": str(PLACE / "nights"), "out": str(out), "model": str(model), "precision": precision}
    return LabelConfig.model_validate(options | {"detector": "none", "thumbnails": False})


def night(out: str, budget: int | None = 0) -> NightlyConfig:
    """Return how the nights went; `budget`: rows of an earlier decoding that may be labelled again."""
    places = {name: str(PLACE / name) for name in ("table", "page")} | {"source": str(PLACE / "nights"), "out": str(PLACE / out)}
    return NightlyConfig.model_validate(
        places | {"detector": "none", "precision": "fp32", "accept": ("failed",), "relabel_budget": budget}
    )


def training(out: Path) -> TrainConfig:
    """Return how the model was trained."""
    recipe, data = str(PLACE / "stripes.toml"), str(PLACE / "dataset")
    return TrainConfig(recipe=recipe, data=data, out=str(out), allow_missing_classes=True)


def rows(run: Path, table: str = "images") -> list[Row]:
    found: list[Row] = pq.read_table(run / table).sort_by("record_id").to_pylist()
    return found


def others(table: list[Row]) -> list[Row]:
    """Return rows without the columns that say which run made them."""
    return [{name: value for name, value in row.items() if name not in OWN} for row in as_then(table)]


def as_then(table: list[Row]) -> list[Row]:
    """Return rows without the columns that there were not."""
    return [{name: value for name, value in row.items() if name not in ADDED} for row in table]


def is_same(one: Any, other: Any, within: float = 1e-3) -> bool:
    """Tell whether values are the same, but for what the arithmetic of another processor changes."""
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=within, abs_tol=within)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(is_same(*pair, within) for pair in zip(one, other, strict=True))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(is_same(one[name], other[name], within) for name in one)
    return bool(one == other)


def files_of(folder: Path) -> dict[Path, tuple[int, bytes]]:
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.rglob("*") if path.is_file()}


def keyed(table: Path) -> dict[tuple[str, str | None], Row]:
    return {(Path(row["uri"]).name, row["member"]): row for row in rows_of_table(table)}


def run_id(run: Path) -> str:
    return str(json.loads((run / "run.json").read_text())["run_id"])


def losses(bundle: Path) -> list[float]:
    return [epoch["train_loss"] for epoch in json.loads((bundle / "history.json").read_text())]


def draw(path: Path) -> None:
    """Write another picture than any of those that were left."""
    cv2.imwrite(str(path), np.tile(np.arange(48, dtype=np.uint8) * 5, (48, 1)))


def test_a_finished_run_leaves_nothing_to_do(left: Path, caplog: pytest.LogCaptureFixture) -> None:
    before = files_of(left)
    record = label.run(photos(left / "run"))
    assert record.result and record.result.counts == {"no_face": 3, "ok": 9, "undecodable": 2}
    assert "This run is finished, there is nothing to do" in caplog.text and files_of(left) == before


def test_a_finished_run_is_shown_and_explained(left: Path, tmp_path: Path) -> None:
    run = str(left / "run")
    report.run(ReportConfig(run=run, source=str(left / "photos")))
    assert (left / "run/report.html").read_text().count("data:image/jpeg") == 9
    result = report.run(ReportConfig(run=run, prior="em"))
    assert result.corrected and len(rows(left / "run", "faces_prior_em")) == len(rows(left / "run", "faces"))
    asked = ExplainConfig(run=run, uri="three.tar", member="./hopper-320.jpg")
    told = explain.run(asked.model_copy(update={"source": str(left / "photos"), "out": str(tmp_path / "marked.jpg")}))
    assert told.row["faces"][0]["expression"] == "neutral" and told.run["version"] == "0.2.0"
    assert told.picture and cv2.imread(told.picture) is not None
    assert explain.run(ExplainConfig(run=run, uri="empty.jpg")).row["error"] == "the file is empty"


@pytest.mark.slow
def test_what_was_labelled_then_is_labelled_alike_now(left: Path, tmp_path: Path) -> None:
    label.run(photos(tmp_path / "run"))
    for table in ("images", "faces"):
        found, expected = rows(tmp_path / "run", table), rows(left / "run", table)
        assert is_same(others(found), others(expected))
        now, then = (pq.read_schema(next((folder / "run" / table).iterdir())) for folder in (tmp_path, left))
        same = pa.schema([field for field in now if field.name not in ADDED], now.metadata)
        assert same.equals(then, check_metadata=True)


def test_a_run_that_was_cut_off_is_continued(left: Path) -> None:
    kept = files_of(left / "half/images")
    record = label.run(photos(left / "half"))
    assert record.result and (record.result.labelled_now, record.result.lost) == (8, 0)
    assert kept.items() <= files_of(left / "half/images").items()
    for table in ("images", "faces"):
        assert is_same(as_then(rows(left / "half", table)), rows(left / "run", table))


def test_a_fourth_night_is_published_in_the_table(left: Path) -> None:
    before = keyed(left / "table")
    draw(left / "nights/0.png")
    found = nightly.run(night("runs/tonight"))
    assert (found.state, found.records, found.carried, found.table_rows) == ("published", 3, 0, 15)
    after = keyed(left / "table")
    touched = {("0.png", None), ("broken.png", None), ("late.png", None)}  # changed, tried again, new
    assert after.keys() == before.keys() | {("late.png", None)}
    changed = {key for key, row in after.items() if as_then([row]) != as_then([before[key]] if key in before else [])}
    assert changed == touched
    assert {after[key]["published_by"] for key in touched} == {found.run_id} and after[("broken.png", None)]["attempt"] == 2


def test_rows_of_an_earlier_decoding_are_labelled_again_where_it_changed_and_within_the_budget(left: Path) -> None:
    before = keyed(left / "table")
    found = nightly.run(night("runs/tonight", budget=4))
    after = keyed(left / "table")
    assert found.state == "published" and {row.get("decoding") for row in before.values()} == {None}
    again = {key for key, row in after.items() if key in before and row.get("decoding") == DECODING}
    assert len(again - {("broken.png", None)}) == 4 and all(Path(member or name).suffix == ".png" for name, member in again)
    nightly.run(night("runs/all", budget=None))
    after = keyed(left / "table")
    assert {Path(member or name).suffix for (name, member), row in after.items() if row.get("decoding") is None} == {".jpg"}
    assert not {".png"} & {Path(member or name).suffix for (name, member), row in after.items() if row.get("decoding") is None}
    for key, row in before.items():
        assert is_same(row["faces"], after[key]["faces"])
    assert nightly.run(night("runs/third", budget=None)).records <= 1  # the broken one, again


def test_the_history_of_a_table_goes_on(left: Path) -> None:
    """A table of then does not say what its probabilities are of: before the first night of today a commit tells it."""
    table = str(left / "table")
    then = upkeep.history(TableConfig(table=table)).versions
    nights = [(entry["night"] or {}).get("run_id") for entry in then]
    assert nights == [*(run_id(left / f"runs/night-{number}") for number in (3, 2, 1)), None]  # None: it was made
    tonight = nightly.run(night("runs/tonight"))
    now = upkeep.history(TableConfig(table=table)).versions
    assert now[3:] == then and now[0]["night"]["run_id"] == tonight.run_id
    assert [(entry["operation"], entry["night"]) for entry in now[1:3]] == [("ADD COLUMN", None), ("SET TBLPROPERTIES", None)]
    assert (left / "page").read_text().count('<td class="name">published</td>') == 4
    restored = upkeep.restore(RestoreConfig(table=table, night=nights[1]))
    assert restored.rows == 14 and {("3.png", None), ("late.png", None)} & keyed(left / "table").keys() == {("3.png", None)}


def test_a_night_that_was_labelled_and_not_published_is_published_before_the_next(left: Path) -> None:
    draw(left / "nights/0.png")
    found = nightly.run(night("runs/night-4"))
    assert (found.state, found.records, found.table_rows) == ("published", 2, 15)  # the changed one, and the broken one again
    after = keyed(left / "table")
    assert after[("late.png", None)]["published_by"] == run_id(left / "runs/night-4")
    assert after[("0.png", None)]["published_by"] == run_id(left / "runs/night-4-2") == found.run_id
    assert after[("broken.png", None)]["attempt"] == 3


def test_a_night_that_was_published_leaves_nothing_to_do(left: Path, caplog: pytest.LogCaptureFixture) -> None:
    before = files_of(left)
    found = publish.run(PublishConfig(run=str(left / "runs/night-3"), table=str(left / "table")))
    assert found.state == "published" and found.run_id == run_id(left / "runs/night-3")
    assert "This run is published, there is nothing to do" in caplog.text and files_of(left) == before


def test_the_model_is_as_good_on_the_dataset_as_its_card_says(left: Path, tmp_path: Path) -> None:
    card = read_bundle(str(left / "bundle")).card
    assert card.metrics.validation and card.int8 and card.int8.validation
    for precision, figures in (("fp32", card.metrics.validation), ("int8", card.int8.validation)):
        options = {"model": str(left / "bundle"), "data": str(left / "dataset"), "split": "validation", "precision": precision}
        found = evaluate.run(EvaluateConfig.model_validate(options | {"out": str(tmp_path / precision)}))
        assert (found.images, found.accuracy, found.macro_f1) == (16, figures.accuracy, figures.macro_f1)
        assert found.selected_on_this_split and found.leaks_checked  # without `learned.parquet`, by the digest of the split


def test_a_dataset_and_a_bundle_that_do_not_say_what_made_them_are_not_taken_for_done(left: Path) -> None:
    with pytest.raises(UserError, match="dataset' is not empty: choose a new folder for --out"):
        ingest.run(IngestConfig(source=str(left / "nights"), out=str(left / "dataset")))
    with pytest.raises(UserError, match="bundle' is not empty: choose a new folder for --out"):
        train.run(training(left / "bundle"))


@pytest.mark.slow
def test_a_training_is_continued_from_a_checkpoint_of_then(left: Path) -> None:
    """Its folder is called after what decides the weights, of which today's digest is another.

    Under the old name it is not found, and a training begins anew beside it; under the new one its state is read.
    """
    config = training(left / "checkpoint/model")
    (then,) = (left / "checkpoint/model.checkpoints").iterdir()
    plan = make_plan(config, load_recipe(config.recipe), read_dataset(config.data), config.data, None)
    now = then.with_name(identity_of(facts_of(plan, read_dataset(config.data))))
    assert now != then
    then.rename(now)
    (first,) = json.loads((now / "checkpoint_manager_snapshot.json").read_text())["checkpoint_results"]
    train.run(config)
    found, expected = losses(left / "checkpoint/model"), losses(left / "bundle")
    assert found[0] == first["metrics"]["train_loss"]
    assert len(found) == len(expected) and is_same(found, expected, 0.05)  # as if it had not been broken off


@pytest.mark.parametrize(("precision", "within"), [("fp32", 1e-3), ("int8", 0.1)])
def test_the_model_says_what_it_said(
    precision: str, within: float, left: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    then = left / f"labelled-{precision}"
    label.run(by_model(left / "bundle", then, precision))
    assert "This run is finished, there is nothing to do" in caplog.text
    label.run(by_model(left / "registry/stripes@production", tmp_path / "run", precision))
    found, expected = others(rows(tmp_path / "run", "faces")), others(rows(then, "faces"))
    assert is_same([row["probabilities"] for row in found], [row["probabilities"] for row in expected], within)
    lineage = {"model_version": "2", "model_alias": "production"}
    sure = [place for place, row in enumerate(expected) if row["confidence"] > 0.7]  # another processor may tip the others
    assert is_same([found[place] for place in sure], [expected[place] | lineage for place in sure], within)
    assert {found[place]["expression"] for place in sure} == {"happy", "sad"}


def test_a_registry_is_listed_and_goes_on(left: Path, tmp_path: Path) -> None:
    registry = str(left / "registry")
    (listed,) = models.list_models(ListConfig(registry=registry)).models
    assert [one.version for one in listed.versions] == ["1", "2"] and listed.aliases == {"production": "2"}
    second = read_bundle(f"{registry}/stripes@production")
    assert second == read_bundle(str(left / "bundle")) and second.digest == listed.versions[1].digest and second.version == "2"
    models.pull(PullConfig(model=f"{registry}/stripes@1", out=str(tmp_path / "first")))
    assert read_bundle(str(tmp_path / "first")).int8 is None
    again = models.push(PushConfig(model=str(left / "bundle"), name="stripes", registry=registry))
    assert again.version == "2", "the same bundle became another version"
    third = models.push(PushConfig(model="embedded", name="stripes", registry=registry))
    models.alias(AliasConfig(name="stripes", alias="production", version=third.version, registry=registry))
    assert models.list_models(ListConfig(registry=registry)).models[0].aliases == {"production": "3"}
    assert read_bundle(f"{registry}/stripes@production") == read_bundle("embedded")
