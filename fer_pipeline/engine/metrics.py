"""Metrics of a run for Prometheus, exported by Ray. Tags have few, fixed values: they never name a run, a shard or a file.

Counters are lost with their node: `run.json` and the table's nights have the true counts.
"""

from collections.abc import Callable
from functools import cache

import pyarrow as pa
import pyarrow.compute as pc
import ray
from ray.util.metrics import Counter, Gauge, Histogram

from fer_pipeline.base import stage_clock

SHARD_SECONDS = [0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0]


class _Metrics:
    """Ray's metrics of this process; Prometheus sees each with `ray_` before its name."""

    def __init__(self) -> None:
        self.records = Counter("fer_records", "Records committed, by status.", ("status",))
        self.faces = Counter("fer_faces", "Faces committed, uncertain ones apart.", ("uncertain",))
        self.bytes = Counter("fer_bytes", "Bytes of the images committed, as stored.")
        self.seconds = Counter("fer_stage_seconds", "Seconds of a core, or of waiting for bytes, by stage.", ("stage",))
        self.shard = Histogram("fer_shard_seconds", "Seconds of a shard, by stage.", SHARD_SECONDS, ("stage",))
        self.left = Gauge("fer_records_left", "Records that the run has still to label.")


@cache
def _metrics_of(session: str) -> _Metrics:
    return _Metrics()


def _metrics() -> _Metrics:
    """Return the metrics of the Ray that this process is connected to; each Ray has its own."""
    return _metrics_of(ray.get_runtime_context().gcs_address)


def count_shard(rows: pa.Table) -> None:
    """Count a committed shard (rows of `schemas.LABELLED`) and the time that this process spent on it."""
    metrics = _metrics()
    for counted in pc.value_counts(rows["status"].cast(pa.string())).to_pylist():
        metrics.records.inc(counted["counts"], {"status": counted["values"]})
    uncertain = pc.struct_field(pc.list_flatten(rows["faces"]), "uncertain")
    for value in (True, False):
        if count := pc.sum(pc.equal(uncertain, value)).as_py():
            metrics.faces.inc(count, {"uncertain": str(value).lower()})
    if size := pc.sum(rows["size_bytes"]).as_py():
        metrics.bytes.inc(size)
    for stage, seconds in stage_clock.take().items():
        if seconds > 0:
            metrics.seconds.inc(seconds, {"stage": stage})
            metrics.shard.observe(seconds, {"stage": stage})


def counted(advance: Callable[[int], None], left: int) -> Callable[[int], None]:
    """Return a function that reports done records to `advance`, and to Prometheus how many of `left` remain to be labelled."""

    def done(count: int) -> None:
        nonlocal left
        left -= count
        gauge.set(left)
        advance(count)

    gauge = _metrics().left
    gauge.set(left)
    return done
