import shutil
from pathlib import Path

import pytest

from fer_pipeline.api.labels import Run, Table
from fer_pipeline.base.errors import UserError
from fer_pipeline.cli import label as command
from fer_pipeline.cli.label import LabelCommandConfig
from fer_pipeline.jobs.label import estimate as estimates
from fer_pipeline.jobs.label.config import LabelConfig
from fer_pipeline.jobs.label.estimate import Estimate, estimate


def test_an_estimate_counts_and_measures_and_writes_nothing(archive: Path, tmp_path: Path) -> None:
    before = sorted(archive.rglob("*"))
    config = LabelCommandConfig(
        source=str(archive), out=str(tmp_path / "run"), detector="mtcnn", estimate=True, price_per_hour=0.05
    )
    found = command.run(config)
    assert isinstance(found, Estimate) and found.records == found.measured == 36 and found.held == 0
    assert found.bytes == sum(path.stat().st_size for path in before if path.is_file() and path.suffix != ".txt")
    assert found.core_hours_low is not None and found.core_hours_high is not None
    assert 0 < found.core_hours_low <= found.core_hours <= found.core_hours_high
    assert found.price == pytest.approx(found.core_hours * 0.05, abs=1e-4)
    assert not list(tmp_path.iterdir()) and sorted(archive.rglob("*")) == before


def test_only_what_a_table_lacks_is_estimated(archive: Path, published: Table, labelled: Run, tmp_path: Path) -> None:
    changed = Path(shutil.copytree(archive, tmp_path / "archive"))
    same = LabelConfig(source=str(archive), out=str(tmp_path / "run"), detector="mtcnn", table=published.url)
    again = estimate(same, 1.0)
    assert (again.records, again.held) == (2, 34) and 0 < again.core_hours == again.price  # the failed ones are tried again
    done = estimate(same.model_copy(update={"max_attempts": 1}))
    assert (done.records, done.held, done.core_hours) == (0, 36, 0)
    moved = estimate(same.model_copy(update={"source": str(changed)}))
    assert (moved.records, moved.held, moved.price) == (36, 0, None)


def test_what_cannot_be_estimated_is_one_sentence(archive: Path, tmp_path: Path) -> None:
    config = LabelCommandConfig(source=str(archive), out=str(tmp_path / "run"), detector="mtcnn", price_per_hour=1)
    with pytest.raises(UserError, match="--price-per-hour is for --estimate"):
        command.run(config)
    with pytest.raises(UserError, match="--estimate measures cores"):
        command.run(config.model_copy(update={"estimate": True, "gpus_per_worker": 1.0}))
    with pytest.raises(UserError, match="excludes all"):
        estimate(LabelConfig(source=str(archive), out=str(tmp_path / "run"), detector="mtcnn", include=("*.xyz",)))


def test_records_that_kill_are_left_out(archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real process is killed by the first run of records that it gets."""
    monkeypatch.setattr(estimates, "timed_runs", killing)
    found = estimate(LabelConfig(source=str(archive), out=str(tmp_path / "run"), detector="mtcnn"))
    assert found.records == 36 and 0 < found.measured < 36


def killing(settings: dict[str, object], runs: list[list[dict[str, object]]]):  # type: ignore[no-untyped-def]
    import os

    if len(runs) > 1:
        os.abort()
    yield 0.25


def test_the_interval_holds_the_mean_of_equal_runs() -> None:
    import numpy as np

    assert estimates._interval(np.full(9, 2.0), np.full(9, 8)) == (0.25, 0.25, 0.25)
    mean, low, high = estimates._interval(np.array([1.0, 3.0] * 10), np.full(20, 8))
    assert low is not None and high is not None and low < mean == 0.25 < high
    assert estimates._interval(np.array([2.0]), np.array([8])) == (0.25, None, None)
