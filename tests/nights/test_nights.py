"""Seven nights: after each, the table holds row for row what labelling everything from scratch with the same model gives."""

import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from fer_pipeline.core import storage
from fer_pipeline.core.errors import HeldError, UserError
from fer_pipeline.jobs import nightly, publish
from fer_pipeline.jobs.label import job as label
from fer_pipeline.jobs.label.job import LabelConfig
from fer_pipeline.jobs.nightly import NightlyConfig
from fer_pipeline.jobs.publish import PublishConfig
from fer_pipeline.models.bundle import EMBEDDED, bundle_of, read_bundle, save_bundle
from fer_pipeline.table.delta import LabelTable
from fer_pipeline.table.nights import Night, last_nights
from fer_pipeline.table.rows import KEY
from tests.nights.killed import POINTS
from tests.table.test_publish import interleave

pytestmark = [pytest.mark.nights, pytest.mark.timeout(1800)]
OWN = ["run_id", "labelled_at", "published_by", "attempt", "source", "record_id", "shard"]
"""Columns that say when and where a row was made, not what it says."""


class Nights:
    """A source that changes, and the nights over it."""

    def __init__(self, place: str) -> None:
        self.place, self.source, self.table = place, f"{place}/source", f"{place}/table"
        self.model, self.scratch = EMBEDDED, 0

    def put(self, name: str, data: bytes) -> None:
        storage.write_bytes(f"{self.source}/{name}", data)

    def read(self, name: str) -> bytes:
        return storage.read_bytes(f"{self.source}/{name}")

    def remove(self, name: str) -> None:
        storage.remove(f"{self.source}/{name}")

    def config(self, date: str, **options: Any) -> NightlyConfig:
        paths = {"out": f"{self.place}/runs/{{date}}", "table": self.table, "page": f"{self.place}/nights.html"}
        more = {"source": self.source, "date": date, "model": self.model, "detector": "none", "shard_records": 8}
        return NightlyConfig.model_validate(paths | more | options)

    def run(self, date: str, **options: Any) -> Night:
        return nightly.run(self.config(date, **options))

    def kill(self, date: str, point: str) -> None:
        """Run a night whose driver is killed at a point."""
        command = [sys.executable, "-m", "tests.nights.killed", point, self.config(date).model_dump_json()]
        assert subprocess.run(command, capture_output=True, timeout=300).returncode == -signal.SIGKILL, point

    def rows(self) -> list[dict[str, Any]]:
        table = LabelTable(self.table)
        return comparable([storage.read_table(table.path(file.path)) for file in table.files])

    def rows_from_scratch(self) -> list[dict[str, Any]]:
        self.scratch += 1
        out = f"{self.place}/scratch/{self.scratch}"
        label.run(LabelConfig(source=self.source, out=out, model=self.model, detector="none", max_failure_rate=1.0))
        return comparable([storage.read_table(f"{out}/images/{name}") for name in storage.list_names(f"{out}/images")])


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
    publish.run(PublishConfig(run=f"{place}/runs/4", table=nights.table, accept=("drift",)))
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
    churn = storage.read_bytes(f"{place}/runs/5/audit.json").decode()
    assert '"churn":{' in churn.replace(" ", "").replace("\n", "")

    for number, point in enumerate(POINTS):
        nights.put(f"killed/{number}.jpg", photos[number].read_bytes() + b"!")
        nights.kill(f"6-{number}", point)
        assert nights.run(f"6-{number}").state == "published", point
        assert nights.rows() == nights.rows_from_scratch(), point

    version = LabelTable(nights.table).version
    nights.run("7")
    unchanged = nights.run("8")
    assert unchanged.records == 0 and unchanged.state == "unchanged"
    assert LabelTable(nights.table).version <= version + 1 and nights.rows() == nights.rows_from_scratch()
    page = storage.read_bytes(f"{place}/nights.html").decode()
    assert "nothing had changed" in page and "<b>held</b>" not in page.split("Nights</h2>")[0]


def test_a_source_that_is_gone_leaves_the_table_as_it_is(place: str, archive: Path) -> None:
    nights = Nights(place)
    for number, photo in enumerate(sorted(archive.rglob("*.jpg"))[:6]):
        nights.put(f"{number}.jpg", photo.read_bytes())
    nights.run("1")
    before = nights.rows()
    for number in range(5):
        nights.remove(f"{number}.jpg")
    with pytest.raises(UserError, match="5 of the 6 rows"):
        nights.run("2")
    nights.remove("5.jpg")
    nights.put("notes.txt", b"the source is there")
    with pytest.raises(UserError, match="6 of the 6 rows"):
        nights.run("3")
    assert nights.rows() == before


def test_two_publishers_and_a_reader_in_any_order(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interleave(20 if place == str(tmp_path) else 100, str(tmp_path / "runs"), f"{place}/tables", monkeypatch)
