"""Labelling from S3 to S3, with a store that works and one that fails in the ways that stores fail."""

import io
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest

from fer_pipeline.archive.files import Selection
from fer_pipeline.archive.listing import Listing
from fer_pipeline.archive.reader import RecordReader
from fer_pipeline.base import storage
from fer_pipeline.base.errors import RecordError, UserError
from fer_pipeline.base.storage import parquet
from fer_pipeline.cli import models
from fer_pipeline.cli.models import PushConfig
from fer_pipeline.jobs import evaluate, ingest, publish
from fer_pipeline.jobs.evaluate import EvaluateConfig
from fer_pipeline.jobs.ingest import IngestConfig
from fer_pipeline.jobs.label import job as label
from fer_pipeline.jobs.label.config import LabelConfig
from fer_pipeline.jobs.publish import PublishConfig
from fer_pipeline.jobs.redact import job as redact
from fer_pipeline.jobs.redact.job import RedactConfig
from fer_pipeline.jobs.train import job as train
from fer_pipeline.jobs.train.config import TrainConfig
from fer_pipeline.labelling.labeller import Labeller
from fer_pipeline.labelling.run import RunRecord
from fer_pipeline.models.bundle import EMBEDDED, read_bundle
from fer_pipeline.models.registry import Registry
from tests.archive.test_changes import KINDS, listed, outcomes, write
from tests.conftest import RECIPE
from tests.s3.conftest import Store, upload
from tests.s3.swift import SECRET_KEY
from tests.table.runs import finished_run, record_of

pytestmark = pytest.mark.s3

Rows = list[dict[str, Any]]


@pytest.fixture(scope="module", autouse=True)
def ray_after_the_environment(running: Store, request: pytest.FixtureRequest) -> None:
    """Ray's workers must see the store's credentials."""
    request.getfixturevalue("local_ray")


def config(source: str, out: str, **options: Any) -> LabelConfig:
    return LabelConfig.model_validate({"source": source, "out": out, "detector": "none", "shard_records": 6} | options)


def rows(out: str) -> Rows:
    tables = [parquet.read_table(storage.join(out, "images", name)) for name in storage.list_names(storage.join(out, "images"))]
    return [row for table in tables for row in table.drop_columns(["run_id", "labelled_at", "etag", "uri"]).to_pylist()]


@pytest.fixture(scope="module")
def locally(archive: Path, tmp_path_factory: pytest.TempPathFactory, local_ray: None) -> Rows:
    """The rows of the same archive on a local disk."""
    out = tmp_path_factory.mktemp("local") / "run"
    label.run(config(str(archive), str(out)))
    return rows(str(out))


def failures(record: RunRecord) -> dict[str, tuple[str | None, str]]:
    assert record.result is not None
    found = record.result.failures
    return {str(one["member"] or one["uri"]).rsplit("/", 1)[-1]: (one["status"], str(one["error"])) for one in found}


def test_an_archive_is_labelled_from_s3_to_s3(uploaded: str, bucket: str, locally: Rows) -> None:
    record = label.run(config(uploaded, f"{bucket}/run"))
    assert rows(f"{bucket}/run") == locally
    assert record.records == 36 and record.skipped == {".txt": 1}
    assert set(storage.list_names(f"{bucket}/run")) == {
        "manifest", "indexes", "images", "faces", "run.json", "report.html", "_SUCCESS"
    }  # fmt: skip
    uris = {row["uri"] for row in parquet.read_table(f"{bucket}/run/images/000000.parquet").to_pylist()}
    assert all(uri.startswith(f"{uploaded}/") for uri in uris)


def test_a_run_on_s3_is_resumed(uploaded: str, bucket: str, locally: Rows) -> None:
    out = f"{bucket}/run"
    label.run(config(uploaded, out))
    for name in ("_SUCCESS", "images/000001.parquet", "images/000004.parquet"):
        storage.remove(f"{out}/{name}")
    record = label.run(config(uploaded, out))
    assert record.result is not None and record.result.labelled_now == 12
    assert rows(out) == locally


def test_copies_with_covered_faces_are_those_on_a_disk(uploaded: str, bucket: str, archive: Path, tmp_path: Path) -> None:
    contents = []
    for source, place in ((uploaded, bucket), (str(archive), str(tmp_path))):
        label.run(config(source, f"{place}/run"))
        redact.run(RedactConfig(run=f"{place}/run", source=source, out=f"{place}/covered"))
        names = [
            name for name in storage.list_below(f"{place}/covered") if not name.startswith(("_redacted/", "redaction", "written"))
        ]
        contents.append({name: storage.read_bytes(f"{place}/covered/{name}") for name in names})
    assert contents[0] == contents[1] and len(contents[0]) == 29 and {"groups.tar", "mirrored.zip"} <= contents[0].keys()


def test_the_objects_of_a_list_are_labelled_and_nothing_is_listed(
    uploaded: str, bucket: str, store: Store, locally: Rows, tmp_path: Path
) -> None:
    names = [row["path"] for row in locally if row["member"] is None]
    (tmp_path / "list.csv").write_text("key,id\n" + "".join(f"{name},{name}!\n" for name in [*names, "gone.jpg"]))
    storage.write_bytes(f"{bucket}/list.txt", "\n".join(f"{uploaded}/{name}" for name in names).encode())
    store.fail()
    out, options = f"{bucket}/listed", {"uri_column": "key", "base": [uploaded], "max_failure_rate": 1}
    record = label.run(config(str(tmp_path / "list.csv"), out, keep=["id"], **options))
    found = {row["path"]: row for row in rows(out)}
    assert record.records == len(names) + 1 and record.source == uploaded
    assert all(found[row["path"]]["content_sha256"] == row["content_sha256"] for row in locally if row["member"] is None)
    assert found["gone.jpg"]["status"] == "unreadable" and all(row["id"] == f"{path}!" for path, row in found.items())
    again = label.run(config(f"{bucket}/list.txt", f"{bucket}/from-text", **options))
    assert again.records == len(names) and again.result is not None and again.result.faces == record.result.faces  # type: ignore[union-attr]
    with pytest.raises(UserError, match="which is not below"):
        label.run(config(f"{bucket}/list.txt", f"{bucket}/refused", uri_column="key", base=[f"{bucket}/elsewhere"]))


def test_keys_are_listed_in_order_page_by_page_and_prefix_by_prefix(bucket: str, store: Store) -> None:
    names = [f"{folder}/{number:04d}.jpg" for folder in ("a", "b/c", "b/d/e") for number in range(8)]
    names += [f"flat/{number:05d}.jpg" for number in range(1100)]  # more than a page
    fs, path = storage.open_filesystem(bucket)
    fs.pipe({f"{path}/in/{name}": b"x" for name in names})
    fs.pipe_file(f"{path}/in/b.jpg", b"x")
    fs.pipe_file(f"{path}/in-not/z.jpg", b"x")
    listed = [record.uri.removeprefix(f"{bucket}/in/") for record in Listing(f"{bucket}/in")]
    assert listed == sorted([*names, "b.jpg"])


def test_keys_may_hold_what_looks_like_a_url_and_folders_may_have_markers(bucket: str) -> None:
    fs, path = storage.open_filesystem(bucket)
    names = ["a b.jpg", "a::b/c.jpg", "d#e%20?x=1.jpg", "\u00e4\u00f6.jpg"]
    for number, name in enumerate(names):
        fs.pipe_file(f"{path}/in/{name}", f"picture {number}".encode())
    fs.pipe_file(f"{path}/in/", b"")  # as the consoles of stores make a folder
    fs.pipe_file(f"{path}/out/", b"")
    found = {record.uri.removeprefix(f"{bucket}/in/"): storage.read_bytes(record.uri) for record in Listing(f"{bucket}/in")}
    assert found == {name: f"picture {number}".encode() for number, name in enumerate(names)}
    fs.call_s3("put_object", Bucket=path, Key="odd/f.jpg?versionId=1.jpg", Body=b"x")
    (odd,) = Listing(f"{bucket}/odd")
    assert odd.error and "reads as a version" in odd.error
    assert storage.list_names(f"{bucket}/out") == [] == storage.list_names(f"{bucket}/nowhere")
    assert [record.uri for record in Listing(f"{bucket}/in/a b.jpg")] == [f"{bucket}/in/a b.jpg"]


ODD_KEYS = ["x//y.jpg", "/slash.jpg", "c\x7fd.jpg", "t+~&=.jpg", "a/b*\"'<>|\\^`{}[].jpg", " lead.jpg", "\u00e4/\U0001f600.jpg"]
"""Some of these obstore refuses, and some it would change."""


def test_odd_keys_are_listed_and_read_among_many_others(bucket: str, store: Store) -> None:
    fs, path = storage.open_filesystem(bucket)
    many = [f"{folder:02d}/{number:03d}.jpg" for folder in range(20) for number in range(3)]
    for folder in ("", "in/", "in/07/"):
        for key in ODD_KEYS:
            fs.call_s3("put_object", Bucket=path, Key=f"{folder}{key}", Body=f"{folder}{key}".encode())
    fs.pipe({f"{path}/in/{name}": f"in/{name}".encode() for name in many})
    for marker in ("in/08/", "in/08/sub/", "in/09/"):
        fs.call_s3("put_object", Bucket=path, Key=marker, Body=b"")
    expected = [f"in/{name}" for name in [*many, *ODD_KEYS, *(f"07/{key}" for key in ODD_KEYS)]]
    found = [record.uri.removeprefix(f"{bucket}/") for record in Listing(f"{bucket}/in")]
    assert found == sorted(expected)
    whole = {record.uri.removeprefix(f"{bucket}/"): record for record in Listing(bucket)}
    assert set(whole) == {*expected, *ODD_KEYS}
    reader = RecordReader()
    assert all(reader.read(whole[key]) == key.encode() for key in [*ODD_KEYS, *expected[:3], *expected[-14:]])


def test_an_object_that_always_breaks_off_is_unreadable(bucket: str, uploaded: str, store: Store) -> None:
    store.fail(reset_every=1)
    loose = next(record for record in Listing(uploaded) if record.member is None)
    with pytest.raises(RecordError) as caught:
        RecordReader().read(loose)
    assert caught.value.status == "unreadable"


def test_videos_parquet_and_containers_are_read_by_range(bucket: str, shared: Path, tmp_path: Path, archive: Path) -> None:
    import pyarrow as pa

    picture = next(archive.rglob("hopper-320.jpg")).read_bytes()
    sink = io.BytesIO()
    pq.write_table(pa.table({"image": [picture] * 3}), sink)
    storage.write_bytes(f"{bucket}/in/rows.parquet", sink.getvalue())
    clip = (shared / "data" / "videos" / "single_face.mp4").read_bytes()
    storage.write_bytes(f"{bucket}/in/clip.mp4", clip)
    assert [record.time_ms for record in Listing(f"{bucket}/in", Selection(fps=1)) if record.time_ms is not None] == [
        0,
        1000,
        2000,
    ]
    record = label.run(config(f"{bucket}/in", f"{bucket}/run"))
    assert record.result is not None and record.result.counts == {"ok": 6}


def test_a_store_that_stumbles_costs_nothing(uploaded: str, bucket: str, store: Store, locally: Rows) -> None:
    store.fail(latency_s=0.03, burst_every=25, burst_length=4, reset_every=9)
    label.run(config(uploaded, f"{bucket}/run"))
    injected = store.injected()
    assert injected["SlowDown"] >= 8 and injected["reset"] >= 3
    assert rows(f"{bucket}/run") == locally


def test_keys_gone_or_forbidden_have_rows_that_say_so_and_can_be_tried_again(
    uploaded: str, bucket: str, store: Store, locally: Rows
) -> None:
    prefix, out = uploaded.removeprefix("s3://").partition("/")[2], f"{bucket}/run"
    loose = [record.uri.removeprefix(f"{bucket}/") for record in Listing(uploaded) if record.member is None]
    gone, forbidden = loose[0], loose[-1]
    store.fail(gone=[gone], forbidden=[forbidden])
    record = label.run(config(uploaded, out))
    assert gone.startswith(prefix) and record.result is not None
    found = failures(record)
    assert found[gone.rsplit("/", 1)[-1]][0] == found[forbidden.rsplit("/", 1)[-1]][0] == "unreadable"
    assert (
        "FileNotFoundError" in found[gone.rsplit("/", 1)[-1]][1] and "PermissionError" in found[forbidden.rsplit("/", 1)[-1]][1]
    )
    assert record.result.counts["unreadable"] == 2 and len(rows(out)) == 36
    store.fail()
    again = label.run(config(uploaded, out, retry_status=("unreadable",)))
    assert again.result is not None and again.result.labelled_now == 12  # the two shards that hold them
    assert rows(out) == locally
    assert label.run(config(uploaded, out, retry_status=("unreadable",))).result == again.result  # nothing left to do again


def test_a_store_that_does_not_let_us_in_is_told_in_one_sentence_without_secrets(
    uploaded: str, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for secret, endpoint in (("wrong-secret-abc", None), (SECRET_KEY, "http://127.0.0.1:9")):
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)
        if endpoint:
            monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
            monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")
        command = [sys.executable, "-m", "fer_pipeline.cli", "label", uploaded, "--out", f"{bucket}/run", "--detector", "none"]
        ended = subprocess.run(command, capture_output=True, text=True)
        assert ended.returncode == 2 and ended.stdout == ""
        (sentence,) = ended.stderr.strip().splitlines()
        assert "cannot be reached" in sentence and secret not in sentence and "?" not in sentence


def test_no_secret_stands_in_what_a_run_leaves(
    uploaded: str, bucket: str, caplog: pytest.LogCaptureFixture, store: Store
) -> None:
    out = f"{bucket}/run"
    with caplog.at_level(logging.DEBUG, logger="fer_pipeline"):
        label.run(config(uploaded, out))
    left = storage.read_bytes(f"{out}/run.json") + storage.read_bytes(f"{out}/report.html") + caplog.text.encode()
    assert SECRET_KEY.encode() not in left.replace(b"test:tester", b"")
    assert b"X-Amz" not in left and b"Signature" not in left


def test_a_url_with_a_query_is_refused_and_not_repeated(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        label.run(config("https://bucket.example/photos?X-Amz-Signature=abc123", str(tmp_path / "run")))
    assert "abc123" not in str(caught.value) and "is neither a local path nor an s3://, gs:// or az:// URL" in str(caught.value)


def test_uploads_are_what_was_there(uploaded: str, bucket: str, archive: Path) -> None:
    upload(archive, f"{bucket}/again")
    here = {path.relative_to(archive).as_posix(): path.stat().st_size for path in archive.rglob("*") if path.is_file()}
    fs, path = storage.open_filesystem(f"{bucket}/again")
    there = {key.removeprefix(f"{path}/"): info["size"] for key, info in fs.find(path, detail=True).items()}
    assert there == here


@pytest.mark.timeout(900)
def test_a_dataset_is_ingested_and_a_model_trained_from_s3_to_s3(bucket: str, tmp_path: Path) -> None:
    """Also streamed, with checkpoints on the store, and continued from there when its bundle is asked for again."""
    rng = np.random.default_rng(0)
    for number in range(120):
        name = ("happy", "sad")[number % 2]
        wave = np.tile(128 + 60 * np.sign(np.sin(np.arange(48) * 0.8)), (48, 1))
        picture = np.clip((wave if name == "happy" else wave.T) + rng.normal(0, 30, (48, 48)), 0, 255).astype(np.uint8)
        storage.write_bytes(f"{bucket}/tree/{name}/{number}.png", cv2.imencode(".png", picture)[1].tobytes())
    card = ingest.run(IngestConfig(source=f"{bucket}/tree", out=f"{bucket}/data", validation_share=0.25))
    assert {split: sum(counts.values()) for split, counts in card.counts.items()} == {"train": 90, "validation": 30}
    (tmp_path / "small.toml").write_text(RECIPE)
    for way in ("device", "stream"):
        config = TrainConfig(
            recipe=str(tmp_path / "small.toml"),
            data=f"{bucket}/data",
            out=f"{bucket}/{way}",
            data_from=way,
            allow_missing_classes=True,
        )
        result = train.run(config)
        assert len(storage.list_names(f"{bucket}/{way}.checkpoints")) == 1
        kept = storage.read_bytes(f"{bucket}/{way}/history.json")
        storage.remove(f"{bucket}/{way}/model.json")
        again = train.run(config)
        assert again == result
        assert storage.read_bytes(f"{bucket}/{way}/history.json") == kept
        assert read_bundle(f"{bucket}/{way}").card.metrics.epochs == 8
    evaluation = EvaluateConfig(model=f"{bucket}/device", data=f"{bucket}/data", split="validation", out=f"{bucket}/evaluation")
    figures = evaluate.run(evaluation)
    validation = read_bundle(f"{bucket}/device").card.metrics.validation
    assert validation is not None and figures.accuracy == validation.accuracy
    assert set(storage.list_names(f"{bucket}/evaluation")) == {"evaluation.json", "evaluation.html", "predictions.parquet"}


def test_a_registry_on_s3_keeps_versions_and_moves_aliases(bucket: str) -> None:
    registry = f"{bucket}/registry"
    for _ in range(2):
        models.push(PushConfig(model=EMBEDDED, name="face", alias=("production",), registry=registry))
    assert Registry(registry).aliases("face") == {"production": "1"}, "the same bundle is the same version"
    models.push(PushConfig(model=EMBEDDED, name="face", version="2", alias=("production",), registry=registry))
    assert read_bundle(f"{registry}/face@production") == read_bundle(f"{registry}/face@1") == read_bundle(EMBEDDED)
    with pytest.raises(UserError, match="face@2 already exists"):
        Registry(registry).push("face", {"model.json": b"other"}, "2")
    with pytest.raises(UserError, match="has no face@staging"):
        read_bundle(f"{registry}/face@staging")


@pytest.mark.parametrize("kind", KINDS)
def test_an_object_that_was_rewritten_is_changed(kind: str, bucket: str, labeller: Labeller, tmp_path: Path) -> None:
    path = tmp_path / f"a.{kind}"
    uri = f"{bucket}/changes-{kind}/a.{kind}"
    write(path, 0)
    storage.write_bytes(uri, path.read_bytes())
    records = listed(f"{bucket}/changes-{kind}")
    before = outcomes(labeller, records)
    assert before and {status for status, _ in before} == {"ok"}
    write(path, 7)
    storage.write_bytes(uri, path.read_bytes())
    assert set(outcomes(labeller, records)) == {("changed", None)}
    assert {status for status, _ in outcomes(labeller, listed(f"{bucket}/changes-{kind}"))} == {"ok"}


def test_a_store_without_conditional_writes_holds_no_table(bucket: str, tmp_path: Path) -> None:
    finished_run(str(tmp_path / "run"), [record_of("/source/1.jpg")])
    with pytest.raises(UserError, match="has no conditional writes"):
        publish.run(PublishConfig(run=str(tmp_path / "run"), table=f"{bucket}/table"))
    assert storage.list_names(f"{bucket}/table") == []
