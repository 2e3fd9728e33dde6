"""Seven nights: after each, the table holds row for row what labelling everything from scratch with the same model gives."""

import io
import random
import signal
import subprocess
import sys
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import s3fs

from fer_pipeline.base import storage
from fer_pipeline.base.errors import HeldError, UserError
from fer_pipeline.base.storage import parquet
from fer_pipeline.cli import models
from fer_pipeline.cli.models import PushConfig
from fer_pipeline.datasets.dataset import read_samples
from fer_pipeline.jobs import ingest, nightly, publish
from fer_pipeline.jobs.ingest import IngestConfig
from fer_pipeline.jobs.label import job as label
from fer_pipeline.jobs.label.config import LabelConfig
from fer_pipeline.jobs.nightly import NightlyConfig
from fer_pipeline.jobs.publish import PublishConfig
from fer_pipeline.models.bundle import EMBEDDED, bundle_of, read_bundle, save_bundle
from fer_pipeline.table.delta import LabelTable
from fer_pipeline.table.nights import Night, last_nights
from fer_pipeline.table.rows import KEY
from tests.nights.killed import POINTS
from tests.table.test_publish import interleave

pytestmark = [pytest.mark.nights, pytest.mark.timeout(1800)]
OWN = ["run_id", "labelled_at", "published_by", "attempt", "source", "record_id", "shard", "colours"]
"""Columns that say when and where a row was made, not what it says, and what the table does not hold of frames."""


LOOSE = dict.fromkeys(("failed", "vanished", "without_faces", "uncertain", "expressions", "churn"), 1.0)
LOOSE |= {"faces_per_image": 1e9, "confidence": 1e9}
"""Thresholds of an audit that holds nothing."""


class Nights:
    """A source that changes, and the nights over it."""

    def __init__(self, place: str) -> None:
        self.place, self.source, self.table = place, f"{place}/source", f"{place}/table"
        self.model, self.scratch = EMBEDDED, 0
        self.dates: dict[str, str] = {}
        """By the name of a night: its date."""

    def put(self, name: str, data: bytes) -> None:
        storage.write_bytes(f"{self.source}/{name}", data)

    def read(self, name: str) -> bytes:
        return storage.read_bytes(f"{self.source}/{name}")

    def remove(self, name: str) -> None:
        storage.remove(f"{self.source}/{name}")

    def date(self, night: str) -> str:
        return self.dates.setdefault(night, f"2026-01-{len(self.dates) + 1:02d}")

    def config(self, night: str, **options: Any) -> NightlyConfig:
        paths = {"out": f"{self.place}/runs/{{date}}", "table": self.table, "page": f"{self.place}/nights.html"}
        more = {"source": self.source, "date": self.date(night), "model": self.model, "detector": "none", "shard_records": 8}
        return NightlyConfig.model_validate(paths | more | options)

    def run(self, night: str, **options: Any) -> Night:
        return nightly.run(self.config(night, **options))

    def kill(self, night: str, point: str) -> None:
        """Run a night whose driver is killed at a point."""
        command = [sys.executable, "-m", "tests.nights.killed", point, self.config(night).model_dump_json()]
        assert subprocess.run(command, capture_output=True, timeout=300).returncode == -signal.SIGKILL, point

    def rows(self) -> list[dict[str, Any]]:
        table = LabelTable(self.table)
        return comparable([parquet.read_table(table.path(file.path)) for file in table.files])

    def rows_from_scratch(self) -> list[dict[str, Any]]:
        self.scratch += 1
        out = f"{self.place}/scratch/{self.scratch}"
        label.run(LabelConfig(source=self.source, out=out, model=self.model, detector="none", max_failure_rate=1.0))
        return comparable([parquet.read_table(f"{out}/images/{name}") for name in storage.list_names(f"{out}/images")])


def comparable(tables: list[pa.Table]) -> list[dict[str, Any]]:
    """Return rows in the order of their keys, without what says when and where they were made."""
    rows = [row for table in tables for row in table.drop_columns([one for one in OWN if one in table.column_names]).to_pylist()]
    for row in rows:
        row |= dict.fromkeys(("model_version", "model_alias"))
    return sorted(rows, key=lambda row: [str(row[name]) for name in KEY])


def test_seven_nights(place: str, archive: Path) -> None:
    nights, photos = Nights(place), sorted(archive.rglob("*.jpg"))
    for number, photo in enumerate(photos[:20]):
        nights.put(f"{number:02d}.jpg", photo.read_bytes())
    first = nights.run("1")
    assert (first.state, first.records) == ("published", 20) and nights.rows() == nights.rows_from_scratch()

    nights.put("00.jpg", photos[20].read_bytes())  # changes
    nights.put("01.jpg", nights.read("01.jpg"))  # written again, the same
    nights.put("moved/02.jpg", nights.read("02.jpg"))
    nights.remove("02.jpg")
    nights.remove("03.jpg")
    for number in range(21, len(photos)):
        nights.put(f"{number:02d}.jpg", photos[number].read_bytes())
    second = nights.run("2")
    carried = 1 if place.startswith("s3") else 2  # on a store the same bytes have the same etag
    assert (second.carried, second.vanished) == (carried, 2) and nights.rows() == nights.rows_from_scratch()

    for name, data in {
        "cut.jpg": nights.read("05.jpg")[:900],
        "text.png": b"no image",
        "empty.jpg": b"",
        "bad.tar": b"x" * 2000,
    }.items():
        nights.put(name, data)
    poisoned = nights.run("3", max_failure_rate=1.0, audit={"failed": 1.0})
    assert poisoned.failed == 4 + second.failed and nights.rows() == nights.rows_from_scratch()

    published = nights.rows()
    labels = Counter(dict.fromkeys(read_bundle(EMBEDDED).card.label_space.classes, 0))
    labels.update(row["faces"][0]["expression"] for row in published if row["faces"])
    rarest = min((row for row in published if row["faces"]), key=lambda row: labels[row["faces"][0]["expression"]])
    for number in range(80):
        nights.put(f"drift/{number:02d}.jpg", storage.read_bytes(rarest["uri"]) + bytes([number]))
    with pytest.raises(HeldError, match="expressions"):
        nights.run("4")
    assert nights.rows() == published and last_nights(nights.table, 1)[0].state == "held"
    publish.run(PublishConfig(run=f"{place}/runs/{nights.date('4')}", table=nights.table, accept=("drift",)))
    assert nights.rows() == nights.rows_from_scratch()

    shipped = read_bundle(EMBEDDED)
    int8 = shipped.card.int8
    assert int8
    calibration = int8.calibration.model_copy(update={"temperature": 2 * int8.calibration.temperature})
    changed = int8.model_copy(
        update={"calibration": calibration}
    )  # answers to the bit, whatever the batch, as fp32 does not everywhere
    nights.model = f"{place}/model"
    save_bundle(nights.model, bundle_of(shipped.card.model_copy(update={"int8": changed}), shipped.weights, shipped.int8))
    relabelled = nights.run("5", accept=("drift",), max_failure_rate=1.0)
    assert relabelled.records == len(nights.rows()) and nights.rows() == nights.rows_from_scratch()
    churn = storage.read_bytes(f"{place}/runs/{nights.date('5')}/audit.json").decode()
    assert '"churn":{' in churn.replace(" ", "").replace("\n", "")

    for number, point in enumerate(POINTS):
        nights.put(f"killed/{number}.jpg", photos[number].read_bytes() + b"!")
        nights.kill(f"6-{number}", point)
        run_again = nights.run(f"6-{number}")
        assert run_again.state == ("unchanged" if number >= POINTS.index("audit") else "published"), point
        assert nights.rows() == nights.rows_from_scratch(), point

    version = LabelTable(nights.table).version
    nights.run("7")
    unchanged = nights.run("8")
    assert unchanged.records == 0 and unchanged.state == "unchanged"
    assert LabelTable(nights.table).version <= version + 1 and nights.rows() == nights.rows_from_scratch()
    page = storage.read_bytes(f"{place}/nights.html").decode()
    assert "no changes" in page and "<b>held</b>" not in page.split("Nights</h2>")[0]


def test_a_source_that_is_gone_leaves_the_table_as_it_is(place: str, archive: Path) -> None:
    nights = Nights(place)
    for number, photo in enumerate(sorted(archive.rglob("*.jpg"))[:6]):
        nights.put(f"{number}.jpg", photo.read_bytes())
    nights.run("1")
    before = nights.rows()
    for number in range(5):
        nights.remove(f"{number}.jpg")
    with pytest.raises(UserError, match="5 of the table's 6 rows"):
        nights.run("2")
    nights.remove("5.jpg")
    nights.put("notes.txt", b"the source is there")
    with pytest.raises(UserError, match="6 of the table's 6 rows"):
        nights.run("3")
    assert nights.rows() == before


def test_two_publishers_and_a_reader_in_any_order(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interleave(20 if place == str(tmp_path) else 100, str(tmp_path / "runs"), f"{place}/tables", monkeypatch)


def test_a_night_that_runs_again_looks_at_the_source_again(place: str, archive: Path) -> None:
    """A finished run is not tonight's: what came since is labelled, in a folder of its own; without a change there is none."""
    nights = Nights(place)
    for number, photo in enumerate(sorted(archive.rglob("*.jpg"))[:6]):
        nights.put(f"{number}.jpg", photo.read_bytes())
    first = nights.run("1")
    nights.put("new.jpg", nights.read("0.jpg") + b"!")
    second, third = nights.run("1"), nights.run("1")
    assert (second.state, second.records) == ("published", 1) and nights.rows() == nights.rows_from_scratch()
    assert (third.state, third.folder) == ("unchanged", "")
    runs = f"{place}/runs"
    assert storage.list_names(runs) == [nights.date("1"), f"{nights.date('1')}-2"]
    assert [night.folder for night in last_nights(nights.table, 3)] == [first.folder, second.folder, ""]
    assert first.folder == f"{runs}/{nights.date('1')}" and "no changes" in storage.read_bytes(f"{place}/nights.html").decode()


def test_a_held_night_is_published_under_other_thresholds_and_not_labelled_again(place: str, archive: Path) -> None:
    nights = Nights(place)
    for number, photo in enumerate(sorted(archive.rglob("*.jpg"))[:4]):
        nights.put(f"{number}.jpg", photo.read_bytes())
    nights.run("1")
    for number in range(20):
        nights.put(f"broken-{number}.jpg", b"no image")
    strict = {"max_failure_rate": 1.0, "audit": {"failed": 0.1}}
    with pytest.raises(HeldError, match="failed"):
        nights.run("2", **strict)
    held = last_nights(nights.table, 1)[0]
    passed = nights.run("2", **strict | {"audit": {"failed": 1.0}, "max_attempts": 1})
    assert passed.state == "unchanged" and last_nights(nights.table, 2)[0] == held.model_copy(
        update={"state": "published", "failing": [], "ended_at": last_nights(nights.table, 2)[0].ended_at, "table_rows": 24}
    )


def test_the_records_of_a_published_night_are_tried_again_where_that_is_asked_for(place: str, archive: Path) -> None:
    nights = Nights(place)
    nights.put("fine.jpg", next(archive.rglob("hopper-640.jpg")).read_bytes())
    nights.put("broken.jpg", b"no image")
    options = {"max_failure_rate": 1.0, "audit": {"failed": 1.0}, "max_attempts": 1}
    assert nights.run("1", **options).records == 2
    assert nights.run("1", **options).state == "unchanged"
    again = nights.run("1", retry_status=("undecodable",), **options)
    assert (again.state, again.records, again.failed) == ("published", 1, 1)


@pytest.mark.parametrize("seed", range(5))
def test_any_nights_over_real_photos_leave_what_labelling_from_scratch_gives(seed: int, place: str, archive: Path) -> None:
    """Files come, change, move, go, break and are mended, containers too; models change, and nights are held and accepted."""
    rng, nights = random.Random(seed), Nights(place)
    photos = [photo.read_bytes() for photo in sorted(archive.rglob("*.jpg"))[:12]]
    names: list[str] = []
    bundles = [EMBEDDED, *(warmer(place, factor) for factor in (2.0, 3.0))]

    def put(name: str, data: bytes) -> None:
        nights.put(name, data)
        names.append(name) if name not in names else None

    def zipped() -> bytes:
        with zipfile.ZipFile(buffer := io.BytesIO(), "w") as archive_:
            for number in range(rng.randint(1, 3)):
                archive_.writestr(f"{number}.jpg", rng.choice(photos) + bytes([rng.randrange(256)]))
        return buffer.getvalue()

    held: list[str] = []
    for night in range(5):
        for number in range(rng.randint(2, 5)):
            new, some = f"{night}-{number}", rng.choice(names) if names else ""
            match rng.choice(("add", "add", "change", "move", "remove", "break", "mend", "container", "spoiled container")):
                case "add":
                    put(f"{new}.jpg", rng.choice(photos) + bytes([rng.randrange(256)]))
                case "change" if some.endswith(".jpg"):
                    put(some, rng.choice(photos) + bytes([night, number]))
                case "move" if some:
                    put(f"moved/{new}{some[-4:]}", nights.read(some))
                    nights.remove(some)
                    names.remove(some)
                case "remove" if len(names) > 3:
                    nights.remove(some)
                    names.remove(some)
                case "break" if some.endswith(".jpg"):
                    put(some, nights.read(some)[:500])
                case "mend" if some.endswith(".jpg"):
                    put(some, rng.choice(photos))
                case "container":
                    put(f"{new}.zip", zipped())
                case "spoiled container":
                    put(f"{new}.zip", b"PK" * 700)
        nights.model = rng.choice([nights.model, rng.choice(bundles)])
        lax = {"max_failure_rate": 1.0, "max_vanished": 1.0, "max_attempts": 100}
        is_held = rng.random() < 0.3
        try:
            nights.run(str(night), **lax, audit=LOOSE | ({"failed": 0.0, "vanished": 0.0} if is_held else {}))
        except HeldError:
            held.append(str(night))
        else:
            assert nights.rows() == nights.rows_from_scratch(), f"night {night}"
            held.clear()  # superseded, if anything was published
        if held and rng.random() < 0.5:
            accepted = {"run": f"{place}/runs/{nights.date(held[0])}", "table": nights.table, "accept": ("failed", "vanished")}
            publish.run(PublishConfig.model_validate(accepted | {"audit": LOOSE}))
            assert nights.rows() == nights.rows_from_scratch(), f"night {night}, accepted late"
            held.clear()


def warmer(place: str, factor: float) -> str:
    """Write the embedded model with another temperature, which makes it another model; return where."""
    shipped = read_bundle(EMBEDDED)
    int8 = shipped.card.int8
    assert int8
    calibration = int8.calibration.model_copy(update={"temperature": factor * int8.calibration.temperature})
    changed = int8.model_copy(update={"calibration": calibration})
    folder = f"{place}/model-{factor:g}"
    save_bundle(folder, bundle_of(shipped.card.model_copy(update={"int8": changed}), shipped.weights, shipped.int8))
    return folder


@pytest.mark.parametrize(
    "name", ["labels#test", "labels?x", *(pytest.param(name, marks=pytest.mark.long) for name in ("sp ace", "ümlaut+%"))]
)
def test_all_that_is_kept_on_a_store_stands_where_it_is_said_to(
    name: str, moto: str, archive: Path, local_ray: None, tmp_path: Path
) -> None:
    """A URL that is not encoded is cut at `#` and `?`: the night would be written into another table's log."""
    store, bucket = s3fs.S3FileSystem(skip_instance_cache=True), f"names-{abs(hash(str(tmp_path))):x}"
    store.mkdir(bucket)
    place, photo = f"s3://{bucket}/{name}", next(archive.rglob("hopper-640.jpg")).read_bytes()
    nights = Nights(place)
    models.push(PushConfig(model=EMBEDDED, name="faces", alias=("production",), registry=f"{place}/registry"))
    nights.model = f"{place}/registry/faces@production"
    nights.put("1.jpg", photo)
    assert nights.run("1").state == "published" and nights.rows() == nights.rows_from_scratch()
    nights.put("2.jpg", b"no image")
    assert nights.run("2", max_failure_rate=1.0, audit={"failed": 1.0}).records == 1 and len(nights.rows()) == 2
    storage.write_bytes(f"{place}/tree/happy/1.jpg", photo)
    assert ingest.run(IngestConfig(source=f"{place}/tree", out=f"{place}/data")).samples == 1
    assert read_samples(f"{place}/data", ["source"])["source"].to_pylist() == ["happy/1.jpg"]
    assert {key.split("/")[1] for key in store.find(bucket)} == {name}
    assert store.exists(f"{bucket}/{name}/table/_delta_log/00000000000000000000.json")


def test_a_table_on_a_store_whose_path_the_library_would_decode_is_refused(moto: str) -> None:
    with pytest.raises(UserError, match="whose path contains '%20'"):
        LabelTable("s3://bucket/per%20cent")
