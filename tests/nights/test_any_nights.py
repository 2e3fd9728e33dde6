"""Random sequences of nights: after each, the table holds what an oracle says that knows the rules and not the code."""

import hashlib
import random
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta, tzinfo
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from fer_pipeline.archive.files import Selection
from fer_pipeline.archive.listing import Listing
from fer_pipeline.archive.record import Record, split_into_shards
from fer_pipeline.base import identity
from fer_pipeline.base.errors import HeldError, UserError
from fer_pipeline.base.identity import Identity, new_run_id, now
from fer_pipeline.jobs import publish
from fer_pipeline.jobs.publish import PublishConfig
from fer_pipeline.labelling.manifest import read_shards, write_manifest
from fer_pipeline.labelling.run import BINS, MOST_FACES, RunFolder, RunRecord, RunResult, settings_digest, with_lineage
from fer_pipeline.labelling.schemas import CARRIED, LABELLED
from fer_pipeline.table import compare, data_files
from fer_pipeline.table.audit import Audit, Check
from fer_pipeline.table.compare import Comparison
from fer_pipeline.table.delta import LabelTable
from fer_pipeline.table.reuse import read_reusable
from fer_pipeline.table.rows import version_hashes
from tests.nights.oracle import Key, Listed, Night, Oracle, label_of
from tests.table.runs import DETECTOR, rows_of_table

pytestmark = [pytest.mark.nights, pytest.mark.timeout(900)]
SEQUENCES, NIGHTS, ATTEMPTS = 200, 5, 2
EPOCH = datetime(2026, 1, 1, tzinfo=UTC)
CHANGES = ("add", "add", "edit", "touch", "move", "copy", "remove", "spoil", "mend", "pack", "repack")
FAILURES = ("unreadable", "timed_out", "undecodable")


class Clock(datetime):
    """A clock that is set by the test."""

    is_at = EPOCH

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> "Clock":
        return cls.fromtimestamp(cls.is_at.timestamp(), tz)


@dataclass
class Source:
    """Files and containers that change from night to night. A container holds members of one version, its own."""

    rng: random.Random
    files: dict[str, tuple[str, str]] = field(default_factory=dict)
    """By path: etag and content."""
    containers: dict[str, tuple[str, dict[str, str]]] = field(default_factory=dict)
    """By path: etag, and contents by member."""
    broken: set[str] = field(default_factory=set)
    """Contents that cannot be decoded."""
    serial: int = 0

    def new(self, what: str) -> str:
        self.serial += 1
        return f"{what}{self.serial}"

    def change(self) -> None:
        """Do one thing to the source."""
        getattr(
            self, self.rng.choice(("add", "add", "edit", "touch", "move", "copy", "remove", "spoil", "mend", "pack", "repack"))
        )()

    def _some(self) -> str | None:
        return self.rng.choice(sorted(self.files)) if self.files else None

    def add(self) -> None:
        self.files[self.new("/source/f")] = (self.new("e"), self.new("c"))

    def edit(self) -> None:
        if path := self._some():
            self.files[path] = (self.new("e"), self.new("c"))

    def touch(self) -> None:
        if path := self._some():
            self.files[path] = (self.new("e"), self.files[path][1])

    def move(self) -> None:
        if path := self._some():
            self.files[self.new("/source/m")] = self.files.pop(path)

    def copy(self) -> None:
        if path := self._some():
            self.files[self.new("/source/k")] = (self.new("e"), self.files[path][1])

    def remove(self) -> None:
        if path := self._some():
            del self.files[path]

    def spoil(self) -> None:
        if path := self._some():
            self.edit()
            self.broken.add(self.files[path][1])

    def mend(self) -> None:
        """What could not be decoded can be, without a change of the file: as by another version of the software."""
        if self.broken:
            self.broken.remove(self.rng.choice(sorted(self.broken)))

    def pack(self) -> None:
        members = {f"{number}.jpg": self.new("c") for number in range(self.rng.randint(1, 3))}
        self.containers[self.new("/source/t") + ".tar"] = (self.new("e"), members)

    def repack(self) -> None:
        if self.containers:
            path = self.rng.choice(sorted(self.containers))
            _, members = self.containers.pop(path)
            if self.rng.random() < 0.7:
                members = {name: content for name, content in members.items() if self.rng.random() < 0.7} | {
                    self.new("n"): self.new("c")
                }
                self.containers[path] = (self.new("e"), members)

    def listed(self) -> list[Listed]:
        """Return tonight's listing: containers may be unreadable tonight, and records may fail for once."""
        found = []
        for path, (etag, content) in sorted(self.files.items()):
            found.append(Listed((path, None), etag, content, self._failure(content)))
        for path, (etag, members) in sorted(self.containers.items()):
            if self.rng.random() < 0.2:
                found.append(Listed((path, None), etag, "", "unreadable"))
            else:
                found += [
                    Listed((path, name), etag, content, self._failure(content)) for name, content in sorted(members.items())
                ]
        return found

    def _failure(self, content: str) -> str | None:
        if content in self.broken:
            return "undecodable"
        return self.rng.choice(FAILURES) if self.rng.random() < 0.15 else None


def record_of(one: Listed) -> Record:
    error = "the container cannot be read" if one.hides else None
    return Record(one.key[0], one.key[1], size_bytes=10, etag=one.etag, error=error)


class Nights:
    """The table as the project keeps it, its labels made here and its tasks run in this process."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.table = folder, f"{folder}/table"

    def night(self, listed: list[Listed], model: str, budget: int | None) -> tuple[RunFolder, RunRecord]:
        """List, compare and label, as `label --table` does, and return the finished run."""
        run_id, created_at = new_run_id(), now()
        folder, identity = RunFolder(f"{self.folder}/{run_id}"), Identity(name=model, digest=model)
        settings = {"uncertain_below": 0.5}
        current = {"model_digest": model, "detector_digest": DETECTOR.digest, "settings_digest": settings_digest(settings)}
        listing = Listing("/source", Selection())
        found = Comparison(LabelTable(self.table), listing.covers, "/source", current, ATTEMPTS, budget)
        to_label = found.to_label(map(record_of, listed))
        size = write_manifest(folder.manifest_prefix(run_id), split_into_shards(to_label, 3, 10**9))
        found.write_vanished(folder.vanished_path(run_id))
        found.write_places(folder.places_path(run_id))
        record = folder.begin(
            RunRecord(
                run_id=run_id, created_at=created_at, source="/source", settings=settings, model=identity, detector=DETECTOR,
                records=size.records, shards=size.shards, increment=found.increment(),
            )
        )  # fmt: skip
        reusable, by_key = read_reusable(self.table, folder.places_path(run_id)), {one.key: one for one in listed}
        failed = 0
        for shard, manifest in read_shards(folder.manifest_prefix(run_id), range(size.shards)):
            rows = [labelled(row, by_key[row["uri"], row["member"]], model, reusable) for row in manifest.to_pylist()]
            failed += sum(row["status"] in FAILURES for row in rows)
            images = with_lineage(pa.Table.from_pylist(rows, schema=LABELLED), record)
            folder.commit(shard, reusable.carry_over(images) if reusable else images)
        result = RunResult(
            counts={}, failed=failed, faces=0, uncertain=0, expressions={}, confidences=[0] * BINS, labelled_now=0, seconds=1.0,
            faces_per_image=[0] * (MOST_FACES + 1), failures=[], images_per_s=1.0, finished_at=now(),
        )  # fmt: skip
        record = record.model_copy(update={"result": result})
        folder.finish(record, success=True)
        return folder, record

    def publish(self, folder: RunFolder, accept: bool = False) -> str:
        """Publish a run; return what came of it."""
        try:
            return publish.run(PublishConfig(run=folder.url, table=self.table, accept=("drift",) if accept else ())).state
        except HeldError:
            return "held"
        except UserError as error:
            assert "would undo" in str(error)
            return "superseded"

    def require(self, oracle: Oracle, when: str) -> None:
        """Fail unless the table holds what the oracle says."""
        found, times = dict[Key, tuple[object, ...]](), dict[Key, int]()
        for row in rows_of_table(self.table):
            key, ok = (row["uri"], row["member"]), row["status"] == "ok"
            assert key not in found, f"{when}: {key} stands twice"
            label = row["faces"][0]["expression"] if ok else None
            found[key] = row["etag"], row["status"], label, row["model"], row["attempt"], ok and row["error"] is not None
            times[key] = round((row["labelled_at"] - EPOCH).total_seconds())
        wanted = {key: (row.etag, row.status, row.label, row.model, row.attempt, row.kept) for key, row in oracle.rows.items()}
        assert found == wanted, when
        for key, time in times.items():
            assert oracle.rows[key].status != "ok" or time in oracle.rows[key].ages, f"{when}: {key} is of another time"
            oracle.settle(key, time)


def labelled(row: dict[str, Any], one: Listed, model: str, reusable: Any) -> dict[str, Any]:
    """Return a row as the labeller would."""
    columns = ("record_id", "shard", "uri", "member", "time_ms", "size_bytes", "etag", "attempt")
    facts = {name: row[name] for name in columns} | {"width": 9, "height": 9, "faces": []}
    digest = hashlib.sha256(one.content.encode()).hexdigest()
    if one.fails:
        read = one.fails == "undecodable"
        return facts | {"status": one.fails, "error": "made to fail", "content_sha256": digest if read else None}
    if reusable is not None and digest in reusable:
        return facts | {"status": CARRIED, "content_sha256": digest}
    face = {
        "face_id": 0, "x": 0.0, "y": 0.0, "w": 9.0, "h": 9.0, "detection_score": 1.0, "landmarks": None, "confidence": 0.9,
        "expression": label_of(one.content, model), "probabilities": [0.9, 0.1], "uncertain": False,
    }  # fmt: skip
    return facts | {"status": "ok", "content_sha256": digest, "faces": [face]}


class Alone:
    """An object that tasks share, where there are no tasks."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def get(self) -> Any:
        return self.value


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Publish without Ray and without an audit but the one that a test asks for, on a clock that the test sets."""

    def fan_out(function: Any, items: Any, *arguments: Any, machines: Any) -> Iterator[Any]:
        return (function(*arguments, item) for item in items)

    monkeypatch.setattr(publish, "fan_out", fan_out)
    monkeypatch.setattr(publish, "share", Alone)
    monkeypatch.setattr(publish, "connected", lambda *_: nullcontext())
    monkeypatch.setattr(publish, "audit_page", lambda *_: "")
    monkeypatch.setattr(identity, "datetime", Clock)
    audited(monkeypatch, passed=True)


def audited(monkeypatch: pytest.MonkeyPatch, passed: bool) -> None:
    check = Check(name="expressions", says="", value=1.0, limit=2.0, passed=passed)
    monkeypatch.setattr(
        publish,
        "audit",
        lambda folder, record, *_: Audit(run_id=record.run_id, table="", reference=[], checks=[check], churn=None),
    )


def sequence(seed: int, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run nights over a source that changes at random, and compare the table with the oracle's after each."""
    rng = random.Random(seed)
    source, nights, oracle = Source(rng), Nights(folder), Oracle(ATTEMPTS)
    model, Clock.is_at = "m0", EPOCH + timedelta(days=1)
    held: list[tuple[RunFolder, Night]] = []
    for number in range(NIGHTS):
        for _ in range(rng.randint(0, 5) + 3 * (number == 0)):
            source.change()
        if rng.random() < 0.3:
            model = f"m{number}"
        Clock.is_at += timedelta(days=rng.choice((1, 1, 1, 40, -20)), seconds=rng.randrange(1000))
        listed, budget = source.listed(), rng.choice((None, None, 0, 2))
        wanted = oracle.night(listed, model, round((Clock.is_at - EPOCH).total_seconds()), budget)
        folder_of_run, record = nights.night(listed, model, budget)
        assert record.changes_nothing == wanted.changes_nothing, f"seed {seed}, night {number}"
        is_held = rng.random() < 0.25 and not wanted.changes_nothing
        with monkeypatch.context() as tonight:
            audited(tonight, passed=not is_held)
            state = nights.publish(folder_of_run)
        assert state == ("held" if is_held else "unchanged" if wanted.changes_nothing else "published"), f"seed {seed}"
        if is_held:
            held.append((folder_of_run, wanted))
        else:
            oracle.publish(wanted)
        if held and rng.random() < 0.5:
            late, found = held.pop(rng.randrange(len(held)))
            with monkeypatch.context() as tonight:
                audited(tonight, passed=False)
                state = nights.publish(late, accept=True)
            assert state == ("published" if oracle.may_publish(found) else "superseded"), f"seed {seed}, night {number}"
            if state == "published":
                oracle.publish(found)
        nights.require(oracle, f"seed {seed}, night {number}")


def test_any_five_nights_leave_what_the_rules_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in range(SEQUENCES):
        sequence(seed, tmp_path / f"{seed}", monkeypatch)


def no_label_is_of_this_model(self: Comparison, *arguments: Any) -> Any:
    rows = read(self, *arguments)
    rows.reusable[:] = True
    return rows


def nothing_hides(firsts: Any, etags: Any) -> Any:
    """A container that cannot be read, which is looked up alone, is none whose rows are known."""
    return hashes([f"{first}?" for first in firsts] if len(firsts) == 1 and str(firsts[0]).endswith(".tar") else firsts, etags)


read, hashes = Comparison._read, version_hashes
MUTATIONS: dict[str, tuple[Any, str, Any]] = {
    "labels of another model are carried over": (Comparison, "_read", no_label_is_of_this_model),
    "what an unreadable container held has vanished": (compare, "version_hashes", nothing_hides),
    "a relabelling that fails replaces the label": (data_files, "_is_labelled_version", lambda *_: False),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_rule_that_is_changed_is_noticed(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    owner, what, mutated = MUTATIONS[name]
    monkeypatch.setattr(owner, what, mutated)
    with pytest.raises(AssertionError, match="seed"):
        for seed in range(SEQUENCES):
            sequence(seed, tmp_path / f"{seed}", monkeypatch)
