"""The published table with millions of rows: publish a night into it, and compare a listing with it. Prints one JSON line.

python -m tests.benchmarks.table --rows 8000000 --changed 20000 --new 100000 --listed 10000000
"""

import argparse
import json
import resource
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa

from fer_pipeline.archive.record import Record
from fer_pipeline.engine.connect import ClusterConfig, connected
from fer_pipeline.jobs import publish
from fer_pipeline.jobs.publish import PublishConfig
from fer_pipeline.table.compare import Comparison
from fer_pipeline.table.data_files import ROWS_PER_FILE, write_file
from fer_pipeline.table.delta import Changes, LabelTable
from fer_pipeline.table.rows import ROWS
from tests.benchmarks.peak import Peak
from tests.table.runs import finished_run

IDENTITY = {"model_digest": "m1", "detector_digest": "d1", "settings_digest": "s1"}


def uri(number: int) -> str:
    return f"s3://archive/photos/2026/{number // 1000:06d}/{number % 1000:04d}.jpg"


def rows(first: int, count: int) -> pa.Table:
    """Return rows of the table with one face each."""
    rng = np.random.default_rng(first)
    face = pa.table(
        {
            "face_id": pa.array(np.zeros(count, np.int32)),
            **{name: rng.random(count, np.float32) for name in ("x", "y", "w", "h", "detection_score")},
            "landmarks": pa.nulls(count, pa.list_(pa.float32())),
            "expression": pa.repeat("happy", count),
            "confidence": rng.random(count, np.float32),
            "probabilities": pa.FixedSizeListArray.from_arrays(pa.array(rng.random(7 * count, np.float32)), 7),
            "uncertain": pa.repeat(pa.scalar(False), count),
        }
    ).cast(pa.schema(list(ROWS.field("faces").type.value_type)))
    faces = pa.ListArray.from_arrays(np.arange(count + 1, dtype=np.int32), face.to_struct_array().combine_chunks())
    texts = {
        "etag": "1",
        "status": "ok",
        "run_id": "r",
        "model": "m",
        "detector": "none",
        "source": "s3://archive",
        "published_by": "0",
    }
    columns = {name: pa.repeat(value, count) for name, value in (texts | IDENTITY).items()}
    columns |= {
        "uri": pa.array([uri(number) for number in range(first, first + count)]),
        "size_bytes": pa.array(np.full(count, 10, np.int64)),
        "content_sha256": pa.array([f"{number:064x}" for number in range(first, first + count)]),
        "attempt": pa.array(np.ones(count, np.int32)),
        "labelled_at": pa.repeat(pa.scalar(datetime.now(UTC), pa.timestamp("us", "UTC")), count),
        "faces": faces,
    }
    return pa.table({name: columns.get(name, pa.nulls(count, ROWS.field(name).type)) for name in ROWS.names}).cast(ROWS)


def made(url: str, count: int) -> LabelTable:
    table = LabelTable(url).make()
    sizes = [(first, min(ROWS_PER_FILE, count - first)) for first in range(0, count, ROWS_PER_FILE)]
    files = [write_file(url, "made", rows(first, size)) for first, size in sizes]
    table.commit(Changes(added=[file for file in files if file]), None, {})
    return table.refreshed()


def listing(count: int, changed: int, new: int) -> Iterator[Record]:
    step = count // max(1, changed)
    for number in range(count + new):
        yield Record(uri(number), size_bytes=10, etag="2" if changed and number % step == 0 and number < count else "1")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    for name, default in (("rows", 8_000_000), ("changed", 20_000), ("new", 100_000), ("listed", 10_000_000)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    figures: dict[str, float] = dict(vars(options))
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        table = made(f"{folder}/table", options.rows)
        figures |= {
            "made_s": time.perf_counter() - began,
            "files": len(table.files),
            "bytes": sum(f.size_bytes for f in table.files),
        }
        began = time.perf_counter()
        comparison = Comparison(table, lambda *_: True, "s3://archive", IDENTITY, 3)
        figures["read_s"] = time.perf_counter() - began
        found = list(comparison.to_label(listing(options.rows, options.changed, options.new)))
        figures |= {"compared_s": time.perf_counter() - began, "to_label": len(found), "vanished": comparison.vanished}
        figures["driver_peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        del comparison
        finished_run(f"{folder}/run", found, table, shard_records=1000)
        with connected(ClusterConfig(num_cpus=2)), Peak() as peak:
            began = time.perf_counter()
            publish.run(PublishConfig(run=f"{folder}/run", table=f"{folder}/table"))
            figures["published_s"] = time.perf_counter() - began
        figures |= {"published_peak_process_mb": peak.largest_mb, "published_peak_all_mb": peak.all_mb}
        assert LabelTable(f"{folder}/table").rows == options.rows + options.new
    print(json.dumps({name: round(value, 1) for name, value in figures.items()}))
