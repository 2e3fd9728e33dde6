"""What is too old is erased: run folders, and folders that commands wrote for people. Nothing else is."""

import json
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

import fer_pipeline as fer
from fer_pipeline.base import storage
from fer_pipeline.base.errors import UserError
from fer_pipeline.cli import faces, review
from fer_pipeline.cli.faces import CropsConfig, ExpireConfig, ExportConfig
from fer_pipeline.cli.review import ReviewConfig
from fer_pipeline.jobs import nightly
from fer_pipeline.jobs.nightly import NightlyConfig
from fer_pipeline.jobs.redact import job as redact
from fer_pipeline.jobs.redact.job import RedactConfig
from fer_pipeline.labelling.retention import WRITTEN


@pytest.fixture(scope="module")
def written(archive: Path, tmp_path_factory: pytest.TempPathFactory, local_ray: None) -> Path:
    """A folder with a run, all that commands write of it, and what belongs to somebody else."""
    folder = tmp_path_factory.mktemp("written")
    source, place = folder / "source", folder / "place"
    source.mkdir()
    (source / "a.jpg").write_bytes(next(archive.rglob("hopper-640.jpg")).read_bytes())
    run = fer.label(source, place / "runs" / "tonight", detector="mtcnn")
    of = {"labels": run.url, "source": str(source)}
    faces.crops(CropsConfig(**of, out=str(place / "crops")))
    review.review(ReviewConfig(**of, out=str(place / "deep" / "er" / "review")))
    faces.export(ExportConfig(**of, to=str(place / "export"), format="hf"))
    redact.run(RedactConfig(run=run.url, source=str(source), out=str(place / "redacted")))
    (place / "mine").mkdir()
    (place / "mine" / "notes.txt").write_text("mine")
    (place / "runs.txt").write_text("mine")
    return place


@pytest.fixture
def place(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "place"))


def make_older(place: Path, days: int) -> None:
    """Change all records as if they had been written so many days earlier."""
    at = (datetime.now(UTC) - timedelta(days=days)).isoformat(timespec="seconds")
    for path in [*place.rglob(WRITTEN), *place.rglob("run.json")]:
        record = json.loads(path.read_text())
        (record if path.name == WRITTEN else record["result"]).update({"at" if path.name == WRITTEN else "finished_at": at})
        path.write_text(json.dumps(record))


def expired(place: Path, days: int, dry_run: bool = False) -> set[str]:
    found = faces.expire(ExpireConfig(place=(str(place),), retain_days=days, dry_run=dry_run))
    assert found.left == ()
    return {str(Path(url).relative_to(place)) for url in found.folders}


ALL = {"runs/tonight", "crops", "deep/er/review", "export", "redacted"}


def test_what_is_too_old_is_erased_and_the_rest_stays(place: Path) -> None:
    make_older(place, 10)
    before = storage.list_below(str(place))
    assert expired(place, 11) == set() and expired(place, 10, dry_run=True) == ALL
    assert storage.list_below(str(place)) == before
    assert expired(place / "crops", 10) == {"."}
    assert expired(place, 10) == ALL - {"crops"}
    assert storage.list_below(str(place)) == ["mine/notes.txt", "runs.txt"] and not (place / "runs/tonight").exists()
    assert expired(place, 1) == set()


def test_unfinished_runs_and_damaged_records_are_left_and_named(place: Path) -> None:
    make_older(place, 10)
    record = json.loads((place / "runs/tonight/run.json").read_text())
    (place / "runs/tonight/run.json").write_text(json.dumps(record | {"result": None}))
    (place / "crops" / WRITTEN).write_text("{")
    found = faces.expire(ExpireConfig(place=(str(place),), retain_days=1))
    assert {Path(url).name for url in found.left} == {"tonight", "crops"} and len(found.folders) == 3
    assert (place / "crops/faces.csv").exists() and (place / "runs/tonight/images").exists()


def test_a_folder_with_a_table_or_something_younger_in_it_stays(place: Path) -> None:
    make_older(place, 10)
    (place / "crops/table/_delta_log").mkdir(parents=True)
    (place / "crops/table/_delta_log/0.json").write_text("{}")
    (place / "export/young").mkdir()
    (place / "export/young" / WRITTEN).write_text(json.dumps({"by": "crops", "at": datetime.now(UTC).isoformat()}))
    (place / "deep/er/review/begun").mkdir()
    (place / "deep/er/review/begun" / WRITTEN).write_text(json.dumps({"by": "crops", "at": None}))
    found = faces.expire(ExpireConfig(place=(str(place),), retain_days=5))
    assert {Path(url).name for url in found.left} == {"crops", "review"}
    assert {Path(url).name for url in found.folders} == {"tonight", "redacted"} and (place / "export/metadata.jsonl").exists()


def test_odd_folders_stay_and_the_others_go(place: Path, tmp_path: Path) -> None:
    make_older(place, 10)
    (place / "crops" / WRITTEN).write_text(json.dumps({"by": "crops", "at": "2026-01-01T00:00:00"}))  # without a zone
    (place / "export" / WRITTEN).unlink()
    (place / "export" / WRITTEN / "folder").mkdir(parents=True)
    (tmp_path / "link").symlink_to(place / "runs" / "tonight")
    found = faces.expire(ExpireConfig(place=(str(tmp_path / "link"), str(place)), retain_days=5))
    assert len(found.folders) == 3 and {Path(url).name for url in found.left} == {"crops"}
    assert list((place / "runs/tonight").iterdir()) == [] or not (place / "runs/tonight/run.json").exists()
    with pytest.raises(UserError, match="There is nothing at"):
        faces.expire(ExpireConfig(place=(str(tmp_path / "typo"),), retain_days=5))


def test_an_erasure_that_was_stopped_can_be_repeated(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_older(place, 10)
    remove, removed = storage.remove, list[str]()

    def stopping(url: str) -> None:
        removed.append(url)
        if len(removed) > 3:
            raise KeyboardInterrupt
        remove(url)

    monkeypatch.setattr(storage, "remove", stopping)
    with pytest.raises(KeyboardInterrupt):
        expired(place, 5)
    monkeypatch.setattr(storage, "remove", remove)
    assert expired(place, 5) >= ALL - {"crops", "deep/er/review"}
    assert storage.list_below(str(place)) == ["mine/notes.txt", "runs.txt"]


def test_a_night_erases_old_nights_of_its_table_only(archive: Path, tmp_path: Path, local_ray: None) -> None:
    source, photos = tmp_path / "source", sorted(archive.rglob("hopper-*.jpg"))
    source.mkdir()

    def night(date: str, table: str, **options: int) -> None:
        (source / f"{date}.jpg").write_bytes(photos[len(list(source.iterdir()))].read_bytes())
        places = {"out": str(tmp_path / "runs" / f"{table}-{{date}}"), "page": str(tmp_path / "nights.html")}
        nightly.run(
            NightlyConfig.model_validate(
                {"source": str(source), "table": str(tmp_path / table), "date": date, "detector": "mtcnn"} | places | options
            )
        )

    night("2026-11-01", "one")
    night("2026-11-01", "other")
    held = tmp_path / "runs" / "one-2026-10-01"  # finished, and never published
    fer.label(source, held, detector="mtcnn", table=str(tmp_path / "one"))
    make_older(tmp_path / "runs", 10)
    night("2026-11-02", "one", retain_days=30)
    assert len(list((tmp_path / "runs").iterdir())) == 4
    night("2026-11-03", "one", retain_days=5)
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {
        held.name,
        "other-2026-11-01",
        "one-2026-11-02",
        "one-2026-11-03",
    }
    assert fer.Table(str(tmp_path / "one")).images().num_rows == 3
