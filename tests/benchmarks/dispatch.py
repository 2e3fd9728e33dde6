"""The dispatcher alone: shards/s and CPU time of the driver with tasks that do nothing.

    python -m tests.benchmarks.dispatch [--cores 4000] [--shards 100000] [--ray 8]

It runs first with an in-process double of Ray that has `--cores` cores, then with real Ray and `--ray` workers, which adds the
cost of Ray's own calls. The manifest is real: 64 records a shard, read from disk.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import ray

from fer_pipeline.archive.record import Record, split_into_shards
from fer_pipeline.base.identity import Identity
from fer_pipeline.engine.connect import ClusterConfig, connected
from fer_pipeline.engine.tasks import Ended, share
from fer_pipeline.jobs.label.chunk import Chunk, Committed
from fer_pipeline.jobs.label.dispatch import Dispatcher
from fer_pipeline.jobs.label.tasks import ChunkTasks
from fer_pipeline.labelling.manifest import write_manifest
from fer_pipeline.labelling.run import RunFolder, RunRecord

RECORDS = 64


class Double:
    """A double of Ray. Each core finishes its task at once, and results arrive a few at a time."""

    def __init__(self, cores: int, at_once: int = 32) -> None:
        self.size, self.at_once = cores, at_once
        self.queue: list[Ended[Chunk]] = []

    def start(self, chunk: Chunk) -> None:
        self.queue.append(Ended(chunk, Committed()))

    def ended(self, timeout_s: float) -> list[Ended[Chunk]]:
        found, self.queue = self.queue[: self.at_once], self.queue[self.at_once :]
        return found

    def cores(self, wanted: int, gpus: float) -> int:
        return self.size


@ray.remote(num_cpus=1, max_retries=0)
def _nothing(*arguments: Any) -> Committed:
    """Take the arguments of a labelling task and do nothing."""
    return Committed()


class NothingDone(ChunkTasks):
    """Run tasks that do nothing through Ray's own calls."""

    def start(self, chunk: Chunk) -> None:
        self.add(chunk, _nothing.remote(self.context, chunk.shards, chunk.manifests, chunk.poison))


def timed(folder: RunFolder, record: RunRecord, tasks: Any) -> dict[str, float]:
    started, cpu = time.perf_counter(), time.process_time()
    Dispatcher(folder, record, tasks).label(range(record.shards), lambda count: None)
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    return {"shards_per_s": round(record.shards / seconds), "cpu_s": round(cpu, 1), "seconds": round(seconds, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cores", type=int, default=4000)
    parser.add_argument("--shards", type=int, default=100_000)
    parser.add_argument("--ray", type=int, default=8, help="workers of real Ray; 0: without it")
    options = parser.parse_args()
    found: dict[str, Any] = {"shards": options.shards, "records": RECORDS * options.shards}
    with tempfile.TemporaryDirectory() as place:
        folder, nobody = RunFolder(str(Path(place) / "run")), Identity(name="x", digest="0")
        record = RunRecord(
            run_id="r", created_at="2026-01-01", source="", settings={}, model=nobody, detector=nobody, shards=options.shards
        )
        numbers = range(RECORDS * options.shards)
        listing = (
            Record(f"s3://bucket/photos/{number:09d}.jpg", size_bytes=500_000, etag=f"{number:032x}") for number in numbers
        )
        write_manifest(folder.manifest_prefix("r"), split_into_shards(listing, RECORDS, 10**9))
        found[f"double of {options.cores} cores"] = timed(folder, record, Double(options.cores))
        if options.ray:
            with connected(ClusterConfig(num_cpus=options.ray)) as machines:
                context: Any = share({})
                found[f"Ray, {options.ray} workers"] = timed(folder, record, NothingDone(context, machines))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
