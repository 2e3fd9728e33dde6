"""Makes finished runs with invented rows, so that tests can publish without labelling."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow as pa

from fer_pipeline.archive.record import Record, split_into_shards
from fer_pipeline.base.identity import Identity, new_run_id, now
from fer_pipeline.base.storage import parquet
from fer_pipeline.labelling.manifest import read_shards, write_manifest
from fer_pipeline.labelling.run import BINS, MOST_FACES, Increment, RunFolder, RunRecord, RunResult, with_lineage
from fer_pipeline.labelling.schemas import LABELLED
from fer_pipeline.table.delta import LabelTable
from fer_pipeline.table.nights import night_ids
from fer_pipeline.table.rows import KEY

MODEL, DETECTOR = Identity(name="model", digest="m1"), Identity(name="none", digest="d1")


def record_of(uri: str, etag: str = "1") -> Record:
    return Record(uri, size_bytes=10, etag=etag)


def finished_run(
    url: str,
    records: Sequence[Record],
    table: LabelTable | None = None,
    vanished: Sequence[str] = (),
    expressions: dict[str, int] | None = None,
    expression: str = "happy",
    model: Identity = MODEL,
    confidences: Sequence[int] | None = None,
    shard_records: int = 4,
    scope: int = 1000,
    created_at: str | None = None,
    failing: Mapping[str, str] = MappingProxyType({}),
    detector: Identity = DETECTOR,
    classes: tuple[str, ...] = (),
    run_id: str | None = None,
    source: str = "/source",
) -> RunRecord:
    """Write a finished run of these records, each with one face. `expressions` and so on are the figures of its result.

    `failing`: the statuses of failed records, by uri.
    """
    folder, run_id = RunFolder(url), run_id or new_run_id()
    size = write_manifest(folder.manifest_prefix(run_id), split_into_shards(records, shard_records, 10**9))
    increment = None
    if table is not None:
        schema = pa.schema([LABELLED.field(name).with_nullable(True) for name in KEY])
        keys = pa.Table.from_pylist([{"uri": uri} for uri in vanished], schema=schema)
        parquet.write_table(folder.vanished_path(run_id), keys)
        increment = Increment(
            table=table.url, version=table.version, nights=len(night_ids(table.url)), listed=scope, held=0,
            new=0, changed=0, outdated=len(records), retried=0, vanished=len(vanished), scope=scope,
        )  # fmt: skip
    record = folder.begin(
        RunRecord(
            run_id=run_id,
            created_at=created_at or now(),
            source=source,
            settings={"uncertain_below": 0.5},
            model=model,
            detector=detector,
            classes=classes,
            records=size.records,
            shards=size.shards,
            increment=increment,
        )
    )
    for shard, rows in read_shards(folder.manifest_prefix(run_id), range(size.shards)):
        folder.commit(shard, with_lineage(_labelled(rows, expression, failing), record))
    faces = sum(expressions.values()) if expressions else size.records
    result = RunResult(
        counts={"ok": size.records}, failed=sum(one.uri in failing for one in records), faces=faces, uncertain=faces // 5,
        expressions=expressions or {expression: faces},
        confidences=list(confidences) if confidences is not None else [0] * (BINS - 1) + [faces],
        faces_per_image=[0, size.records] + [0] * (MOST_FACES - 1), failures=[], labelled_now=size.records, seconds=1.0,
        images_per_s=10.0, finished_at=now(),
    )  # fmt: skip
    record = record.model_copy(update={"result": result})
    folder.finish(record, success=True)
    return record


def _labelled(manifest: pa.Table, expression: str, failing: Mapping[str, str]) -> pa.Table:
    face = {
        "face_id": 0, "x": 0.0, "y": 0.0, "w": 9.0, "h": 9.0, "detection_score": 1.0, "landmarks": None, "expression": expression,
        "confidence": 0.99, "probabilities": [0.99, 0.01], "uncertain": False,
    }  # fmt: skip
    rows = [
        {name: row[name] for name in ("record_id", "shard", "uri", "member", "time_ms", "size_bytes", "etag", "attempt")}
        | {
            "content_sha256": f"{abs(hash(row['uri'] + row['etag'])):064x}",
            "width": 9,
            "height": 9,
            "status": "ok",
            "faces": [face],
        }
        | ({"status": status, "error": "made to fail", "faces": []} if (status := failing.get(row["uri"])) else {})
        for row in manifest.to_pylist()
    ]
    return pa.Table.from_pylist(rows, schema=LABELLED)


def rows_of_table(table: str | Path) -> list[dict[str, Any]]:
    """Return the rows of a table, read from its files."""
    found = LabelTable(str(table))
    return [row for file in found.files for row in parquet.read_table(found.path(file.path)).to_pylist()]


def keys_of(table: str | Path) -> dict[str, str]:
    """Return the etag of each uri of a table, read from its files. Fail if a key is there twice."""
    rows = rows_of_table(table)
    keys = {row["uri"]: row["etag"] for row in rows}
    assert len(keys) == len(rows) == LabelTable(str(table)).rows, "a key is there twice"
    return keys


def multinomial(rng: np.random.Generator, count: int, shares: Sequence[float]) -> list[int]:
    return [int(one) for one in rng.multinomial(count, np.array(shares) / np.sum(shares))]
