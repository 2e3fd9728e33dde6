"""Publishing adds new rows and removes stale ones by one commit, exactly once, also with concurrent publishers."""

import json
import os
import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import duckdb
import polars
import pytest
from deltalake import DeltaTable, write_deltalake

from fer_pipeline.base.errors import HeldError, UserError
from fer_pipeline.base.identity import Identity
from fer_pipeline.cli import table as upkeep
from fer_pipeline.cli.table import ForgetConfig, RestoreConfig, TableConfig, VacuumConfig
from fer_pipeline.jobs import publish
from fer_pipeline.jobs.publish import PublishConfig
from fer_pipeline.table import delta
from fer_pipeline.table.delta import LabelTable
from fer_pipeline.table.nights import last_nights
from fer_pipeline.table.rows import ROWS
from tests.table.runs import finished_run, keys_of, record_of, rows_of_table

pytestmark = pytest.mark.usefixtures("local_ray")
OLD = [record_of(f"/source/{number:02d}.jpg") for number in range(20)]


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """A table of twenty rows."""
    finished_run(str(tmp_path / "first"), OLD)
    published(tmp_path / "first", tmp_path / "table")
    return tmp_path / "table"


def published(run: Path, table: Path, **options: Any) -> Any:
    return publish.run(PublishConfig(run=str(run), table=str(table), **options))


def test_new_rows_come_stale_ones_go_and_the_rest_stays(table: Path, tmp_path: Path) -> None:
    changed, new = record_of(OLD[3].uri, etag="2"), record_of("/source/new.jpg")
    finished_run(str(tmp_path / "run"), [changed, new], LabelTable(str(table)), vanished=[OLD[5].uri])
    published(tmp_path / "run", table)
    wanted = {one.uri: "1" for one in OLD} | {changed.uri: "2", new.uri: "1"}
    del wanted[OLD[5].uri]
    assert keys_of(table) == wanted
    page = (tmp_path / "run" / "audit.html").read_text()
    assert "Files that vanished" in page and OLD[5].uri.removeprefix("/source/") in page.partition("vanished</h2>")[2]


def test_a_run_is_published_once(table: Path, tmp_path: Path) -> None:
    version = LabelTable(str(table)).version
    night = published(tmp_path / "first", table)
    assert night.state == "published" and LabelTable(str(table)).version == version


def test_a_run_that_follows_a_later_one_does_not_undo_it(table: Path, tmp_path: Path) -> None:
    uri = OLD[0].uri
    early = finished_run(str(tmp_path / "early"), [record_of(uri, etag="early"), record_of("/source/only-early.jpg")])
    late = finished_run(str(tmp_path / "late"), [record_of(uri, etag="late")])
    assert early.run_id < late.run_id
    published(tmp_path / "late", table)
    published(tmp_path / "early", table)
    assert keys_of(table)[uri] == "late" and "/source/only-early.jpg" in keys_of(table)


def test_a_drifted_run_is_held_and_published_knowingly(table: Path, tmp_path: Path) -> None:
    drifted = {"sad": 5_000}
    finished_run(str(tmp_path / "usual"), [record_of("/source/u.jpg")], expressions={"happy": 5_000})
    published(tmp_path / "usual", table)
    finished_run(str(tmp_path / "run"), [record_of("/source/d.jpg")], expressions=drifted)
    before = keys_of(table)
    with pytest.raises(HeldError, match="fails expressions: nothing was published"):
        published(tmp_path / "run", table)
    assert keys_of(table) == before
    page = tmp_path / "run" / "audit.html"
    assert last_nights(str(table), 1)[0].state == "held"
    assert f"fer-pipeline publish {tmp_path}/run --table {table} --accept expressions" in page.read_text()
    night = published(tmp_path / "run", table, accept=("drift",))
    assert night.accepted == ["expressions"] and "/source/d.jpg" in keys_of(table)
    assert "Accepted: audit of a night" in page.read_text() and "the table is unchanged" not in page.read_text()
    assert upkeep.history(TableConfig(table=str(table))).versions[0]["night"]["accepted"] == ["expressions"]


def test_two_members_of_one_key_are_held(table: Path, tmp_path: Path) -> None:
    finished_run(str(tmp_path / "run"), [record_of("/source/x.jpg"), record_of("/source/x.jpg")])
    with pytest.raises(HeldError, match="keys"):
        published(tmp_path / "run", table)


def test_a_table_of_another_maker_is_refused(tmp_path: Path) -> None:
    write_deltalake(str(tmp_path / "theirs"), polars.DataFrame({"a": [1]}).to_arrow())
    finished_run(str(tmp_path / "run"), [record_of("/source/x.jpg")])
    with pytest.raises(UserError, match="not created by fer-pipeline"):
        published(tmp_path / "run", tmp_path / "theirs")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "notes.txt").touch()
    with pytest.raises(UserError, match="holds files but no table"):
        published(tmp_path / "run", tmp_path / "folder")


def test_a_run_that_is_not_finished_is_refused(tmp_path: Path) -> None:
    finished_run(str(tmp_path / "run"), [record_of("/source/x.jpg")])
    (tmp_path / "run" / "_SUCCESS").unlink()
    with pytest.raises(UserError, match="no finished run"):
        published(tmp_path / "run", tmp_path / "table")


def test_every_reader_sees_the_same(table: Path) -> None:
    delta = DeltaTable(str(table))
    rows = sorted((row["uri"], row["faces"][0]["expression"]) for row in rows_of_table(table))
    by_polars = polars.scan_delta(str(table)).explode("faces").select("uri", polars.col("faces").struct.field("expression"))
    files = duckdb.read_parquet(delta.file_uris(), union_by_name=True)  # noqa: F841 (named in the query)
    by_duckdb = duckdb.sql("select uri, face.expression from (select uri, unnest(faces) as face from files)")
    assert by_duckdb and rows == sorted(by_polars.collect().rows()) == sorted(by_duckdb.fetchall()) and len(rows) == 20


def test_a_run_that_was_compared_before_a_later_one_was_published_is_refused(table: Path, tmp_path: Path) -> None:
    compared = LabelTable(str(table))
    finished_run(str(tmp_path / "early"), [record_of("/source/early.jpg")], compared, vanished=[OLD[0].uri])
    finished_run(str(tmp_path / "late"), [record_of("/source/late.jpg")], compared)
    published(tmp_path / "late", table)
    with pytest.raises(UserError, match="would undo"):
        published(tmp_path / "early", table)
    assert OLD[0].uri in keys_of(table)


def test_of_two_held_nights_the_second_is_not_published_over_the_first(table: Path, tmp_path: Path) -> None:
    """The second was compared with a table without the rows of the first, so its unchanged records may have changed."""
    compared = LabelTable(str(table))
    finished_run(str(tmp_path / "first-held"), [record_of(OLD[0].uri, etag="2")], compared)
    finished_run(str(tmp_path / "second-held"), [record_of("/source/new.jpg")], compared)
    published(tmp_path / "first-held", table)
    with pytest.raises(UserError, match="would undo"):
        published(tmp_path / "second-held", table)


def test_a_run_that_was_compared_before_a_restore_is_refused(table: Path, tmp_path: Path) -> None:
    first = last_nights(str(table), 1)[0].run_id
    finished_run(str(tmp_path / "more"), [record_of("/source/more.jpg")], LabelTable(str(table)))
    published(tmp_path / "more", table)
    finished_run(str(tmp_path / "run"), [record_of("/source/new.jpg")], LabelTable(str(table)))
    upkeep.restore(RestoreConfig(table=str(table), night=first))
    with pytest.raises(UserError, match="before the restore to version"):
        published(tmp_path / "run", table)


def test_the_statistics_of_a_file_are_true_after_all_that_writes_one(table: Path, tmp_path: Path) -> None:
    finished_run(str(tmp_path / "run"), [record_of("/source/99.jpg")], LabelTable(str(table)), vanished=[OLD[0].uri, OLD[-1].uri])
    published(tmp_path / "run", table)
    upkeep.compact(TableConfig(table=str(table)))
    (file,) = LabelTable(str(table)).files
    assert (file.rows, file.first_uri, file.last_uri) == (19, OLD[1].uri, "/source/99.jpg")
    for uri in keys_of(table):
        assert len(polars.scan_delta(str(table)).filter(polars.col("uri") == uri).collect()) == 1


def test_a_table_goes_back_to_a_night(table: Path, tmp_path: Path) -> None:
    finished_run(str(tmp_path / "run"), [record_of("/source/new.jpg")])
    night = published(tmp_path / "run", table)
    first = last_nights(str(table), 2)[0].run_id
    upkeep.restore(RestoreConfig(table=str(table), night=first))
    assert len(keys_of(table)) == 20 and last_nights(str(table), 1)[0].state == "undone"
    with pytest.raises(UserError, match="undone by `table restore`"):
        published(tmp_path / "run", table)
    upkeep.restore(RestoreConfig(table=str(table), night=night.run_id))
    assert len(keys_of(table)) == 21 and last_nights(str(table), 1)[0].state == "published"
    with pytest.raises(UserError, match="has no night 'x'"):
        upkeep.restore(RestoreConfig(table=str(table), night="x"))


def test_small_files_are_put_together_and_old_ones_deleted(table: Path, tmp_path: Path) -> None:
    for number in range(3):
        finished_run(str(tmp_path / f"{number}"), [record_of(f"/source/new-{number}.jpg")])
        published(tmp_path / f"{number}", table)
    before = keys_of(table)
    assert upkeep.compact(TableConfig(table=str(table))).files == 1
    assert keys_of(table) == before
    LabelTable(str(table)).vacuum(0)
    assert keys_of(table) == before and len(last_nights(str(table), 9)) == 4
    assert upkeep.vacuum(VacuumConfig(table=str(table))).deleted == 0


def test_a_person_is_forgotten_in_all_versions(table: Path) -> None:
    uri = OLD[4].uri
    found = upkeep.forget(ForgetConfig(table=str(table), uri=(uri,)))
    assert found.rows == 1 and found.files_deleted == 1 and "fails from now on" in found.says
    assert uri not in keys_of(table) and len(keys_of(table)) == 19
    assert not [path for path in table.glob("*.parquet") if uri.encode() in path.read_bytes()]
    with pytest.raises(UserError, match="no such row in any version"):
        upkeep.forget(ForgetConfig(table=str(table), uri=(uri,)))
    with pytest.raises(UserError, match="No rows are named"):
        upkeep.forget(ForgetConfig(table=str(table)))


class Turns:
    """Runs one of several threads at a time, from one point to the next."""

    def __init__(self, seed: int) -> None:
        self.rng, self.waiting, self.changed = random.Random(seed), dict[str, threading.Event](), threading.Condition()
        self.alive: set[str] = set()

    def point(self) -> None:
        """Wait until it is the turn of this thread."""
        name = threading.current_thread().name
        if name not in self.alive:
            return
        event = threading.Event()
        with self.changed:
            self.waiting[name] = event
            self.changed.notify_all()
        assert event.wait(60)

    def run(self, *works: Callable[[], object]) -> Iterator[None]:
        """Yield whenever all threads wait at a point, then let one of them continue."""
        threads = [threading.Thread(target=self._work, args=(work,), name=f"publisher-{n}") for n, work in enumerate(works)]
        self.alive = {thread.name for thread in threads}
        for thread in threads:
            thread.start()
        while True:
            with self.changed:
                assert self.changed.wait_for(lambda: set(self.waiting) == self.alive, 60)
                if not self.alive:
                    return
            yield
            with self.changed:
                self.waiting.pop(self.rng.choice(sorted(self.waiting))).set()

    def _work(self, work: Callable[[], object]) -> None:
        try:
            self.point()
            work()
        finally:
            with self.changed:
                self.alive.discard(threading.current_thread().name)
                self.changed.notify_all()


@pytest.mark.parametrize("count", [8, pytest.param(300, marks=[pytest.mark.nights, pytest.mark.long, pytest.mark.timeout(1800)])])
def test_two_publishers_and_a_reader_in_any_order(count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interleave(count, str(tmp_path), str(tmp_path), monkeypatch)


def interleave(count: int, runs: str, tables: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Publish two overlapping runs with many interleavings of their steps, and read the table after each step."""
    turns: list[Turns] = []
    for owner, name in ((publish, "stale_keys"), (LabelTable, "commit"), (LabelTable, "refreshed"), (publish, "_keep")):
        monkeypatch.setattr(owner, name, paused(getattr(owner, name), turns))
    finished_run(f"{runs}/base", OLD[:8])
    first = finished_run(f"{runs}/a", [record_of(OLD[0].uri, "a"), record_of("/source/a.jpg")])
    finished_run(f"{runs}/b", [record_of(OLD[0].uri, "b"), record_of(OLD[1].uri, "b"), record_of("/source/b.jpg")])
    base = {one.uri: "1" for one in OLD[:8]}
    with_a, with_b = {OLD[0].uri: "a", "/source/a.jpg": "1"}, {OLD[0].uri: "b", OLD[1].uri: "b", "/source/b.jpg": "1"}
    allowed = [{}, base, base | with_a, base | with_b, base | with_a | with_b]
    assert first.run_id < json.loads((Path(f"{runs}/b/run.json")).read_text())["run_id"]
    seen = set()
    for seed in range(count):
        table = f"{tables}/table-{seed}"
        publish.run(PublishConfig(run=f"{runs}/base", table=table))
        turns[:] = [Turns(seed)]
        works = [lambda table=table, run=run: publish.run(PublishConfig(run=f"{runs}/{run}", table=table)) for run in "ab"]
        for _ in turns[0].run(*works):
            seen.add(allowed.index(keys_of(table)))
        turns.clear()
        assert keys_of(table) == allowed[-1], f"seed {seed}"
        assert all(LabelTable(table).holds_run(night.run_id) for night in last_nights(table, 9))
    assert {2, 3} <= seen, "each run must have been the first one in some interleaving"


def paused(function: Any, turns: list[Turns]) -> Any:
    def pausing(*arguments: Any, **options: Any) -> Any:
        if turns:
            turns[0].point()
        found = function(*arguments, **options)
        if turns:
            turns[0].point()
        return found

    return pausing


def test_a_table_of_fewer_columns_gets_the_new_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as older:
        fewer = ROWS.remove(ROWS.get_field_index("model_alias"))
        older.setattr(delta, "ROWS", fewer)
        LabelTable(str(tmp_path / "table")).make()
    finished_run(str(tmp_path / "run"), OLD[:3])
    published(tmp_path / "run", tmp_path / "table")
    rows = polars.scan_delta(str(tmp_path / "table")).collect()
    assert rows["model_alias"].to_list() == [None] * 3


def test_a_store_is_reached_as_aws_users_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library does not read the endpoint from the AWS configuration, so it is passed as an option."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    (tmp_path / "config").write_text("[profile night]\nendpoint_url = http://store:9000\nregion = eu-north-1\n")
    (tmp_path / "credentials").write_text("[night]\naws_access_key_id = key\naws_secret_access_key = word\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_PROFILE", "night")
    options = delta.storage_options("s3://bucket/table")
    assert (options["aws_endpoint"], options["aws_region"], options["aws_allow_http"]) == (
        "http://store:9000",
        "eu-north-1",
        "true",
    )
    assert (options["aws_access_key_id"], options["aws_secret_access_key"]) == ("key", "word")
    assert delta.storage_options(str(tmp_path)) == {}


def test_a_held_night_is_not_published_over_a_later_one_that_found_nothing_changed(table: Path, tmp_path: Path) -> None:
    """The later night saw that the new file of the held night is gone. It is later even though it made no commit."""
    first = LabelTable(str(table))
    finished_run(str(tmp_path / "usual"), [record_of("/source/u.jpg")], first, expressions={"happy": 5_000})
    published(tmp_path / "usual", table)
    compared = LabelTable(str(table))
    finished_run(str(tmp_path / "held"), [record_of("/source/gone.jpg")], compared, expressions={"sad": 5_000})
    with pytest.raises(HeldError):
        published(tmp_path / "held", table)
    finished_run(str(tmp_path / "later"), [], LabelTable(str(table)))
    assert published(tmp_path / "later", table).state == "unchanged"
    with pytest.raises(UserError, match="which it would undo"):
        published(tmp_path / "held", table, accept=("drift",))
    assert "/source/gone.jpg" not in keys_of(table)


def test_a_night_after_one_whose_clock_was_ahead_is_published_whole(
    table: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    uri = OLD[0].uri
    finished_run(str(tmp_path / "ahead"), [record_of(uri, "ahead")], LabelTable(str(table)), run_id="20990101T000000000000-0")
    published(tmp_path / "ahead", table)
    changed = [record_of(uri, "now"), record_of("/source/now.jpg")]
    finished_run(str(tmp_path / "now"), changed, LabelTable(str(table)), vanished=[OLD[1].uri])
    with caplog.at_level("WARNING"):
        published(tmp_path / "now", table)
    keys = keys_of(table)
    assert keys[uri] == "now" and "/source/now.jpg" in keys and OLD[1].uri not in keys
    assert "The id of run 20990101T000000000000-0 is in the future" in caplog.text
    assert last_nights(str(table), 1)[0].run_id != "20990101T000000000000-0"
    finished_run(str(tmp_path / "alone"), [record_of(uri, "alone")])  # labelled without `--table`
    published(tmp_path / "alone", table)
    assert keys_of(table)[uri] == "alone"


def test_another_detector_is_held_and_published_knowingly(table: Path, tmp_path: Path) -> None:
    other = Identity(name="mtcnn", digest="d2")
    finished_run(str(tmp_path / "run"), [record_of("/source/d.jpg")], LabelTable(str(table)), detector=other)
    with pytest.raises(HeldError, match=r"held because it fails detector: .* --accept detector publishes it anyway"):
        published(tmp_path / "run", table)
    audit = json.loads((tmp_path / "run" / "audit.json").read_text())
    assert audit["reference"] and "this run used mtcnn, the last published night used none" in json.dumps(audit)
    assert published(tmp_path / "run", table, accept=("detector",)).accepted == ["detector"]
    finished_run(str(tmp_path / "next"), [record_of("/source/e.jpg")], LabelTable(str(table)), detector=other)
    assert published(tmp_path / "next", table).failing == []


def test_a_night_is_compared_with_the_last_ones_whatever_their_detector(table: Path, tmp_path: Path) -> None:
    finished_run(str(tmp_path / "usual"), [record_of("/source/u.jpg")], expressions={"happy": 5_000})
    published(tmp_path / "usual", table)
    other = Identity(name="mtcnn", digest="d2")
    finished_run(str(tmp_path / "run"), [record_of("/source/d.jpg")], expressions={"sad": 5_000}, detector=other)
    with pytest.raises(HeldError, match="fails expressions, detector"):
        published(tmp_path / "run", table, accept=())


def test_the_table_says_what_its_probabilities_are_of(tmp_path: Path) -> None:
    url = str(tmp_path / "table")
    finished_run(str(tmp_path / "run"), [record_of("/source/a.jpg")], classes=("happy", "sad"))
    published(tmp_path / "run", tmp_path / "table")
    assert json.loads(DeltaTable(url).metadata().configuration["fer-pipeline.classes"]) == ["happy", "sad"]
    finished_run(str(tmp_path / "other"), [record_of("/source/b.jpg")], classes=("sad", "happy"))
    with pytest.raises(UserError, match="holds probabilities of happy, sad, but the model's are of sad, happy"):
        published(tmp_path / "other", tmp_path / "table")


def test_an_older_table_learns_what_its_probabilities_are_of(table: Path, tmp_path: Path) -> None:
    assert LabelTable(str(table)).classes == ()
    finished_run(str(tmp_path / "run"), [record_of("/source/a.jpg")], classes=("happy", "sad"))
    published(tmp_path / "run", table)
    assert LabelTable(str(table)).classes == ("happy", "sad") and "/source/a.jpg" in keys_of(table)


@pytest.mark.parametrize("name", ["labels#test", "labels?x", "labels test", "ümlaut+%"])
def test_a_table_stands_where_it_is_said_to(name: str, tmp_path: Path) -> None:
    (tmp_path / "labels").mkdir()
    finished_run(str(tmp_path / name / "run"), [record_of("/source/a.jpg")])
    published(tmp_path / name / "run", tmp_path / name / "table")
    assert keys_of(tmp_path / name / "table") and (tmp_path / name / "table" / "_delta_log").is_dir()
    assert list((tmp_path / "labels").iterdir()) == []


def test_a_path_that_the_library_would_decode_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    finished_run(str(tmp_path / "run"), [record_of("/source/a.jpg")])
    with pytest.raises(UserError, match="whose path contains '%20'"):
        published(tmp_path / "run", tmp_path / "per%20cent")
    assert not (tmp_path / "per%20cent").exists()


def test_a_table_of_other_probabilities_does_not_take_the_classes_of_who_comes_first(table: Path, tmp_path: Path) -> None:
    """An older table names no classes. Its rows say `happy` if the first probability is the largest."""
    finished_run(str(tmp_path / "run"), [record_of("/source/a.jpg")], classes=("sad", "happy"))
    with pytest.raises(UserError, match="its probabilities are not those of sad, happy in this order"):
        published(tmp_path / "run", table)
    assert LabelTable(str(table)).classes == ()


def test_a_table_of_another_schema_version_is_refused_in_one_sentence(tmp_path: Path) -> None:
    table = LabelTable(str(tmp_path / "table")).make(("happy", "sad"))
    log = next((tmp_path / "table" / "_delta_log").glob("*.json"))
    log.write_text(log.read_text().replace('"fer-pipeline.schema_version":"1"', '"fer-pipeline.schema_version":"9"'))
    with pytest.raises(UserError, match=r"another version of fer-pipeline \(schema 9\) .* \(schema 1\): use that version"):
        LabelTable(table.url)
