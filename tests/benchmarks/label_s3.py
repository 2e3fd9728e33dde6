"""Throughput of `fer-pipeline label` from S3 to S3 behind 30 ms of latency, against the same archive on disk: one JSON line.

    python -m tests.benchmarks.label_s3 [--images 5000] [--pairs 1] [--num-cpus 2] [--layout folder]

The S3 server (Swift) and the proxy that adds the latency run on this machine, so the CPU time of the server is printed too:
`server_cpu_s`. With `--apart` the first core is the pipeline's, for both runs, and the others are the store's.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path

from fer_pipeline.base import storage
from tests.benchmarks.label import SHARED, timed
from tests.s3.conftest import running_store, upload


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--pairs", type=int, default=1)
    parser.add_argument("--num-cpus", type=int, default=2)
    parser.add_argument("--apart", action="store_true")
    parser.add_argument("--layout", default="folder", choices=("folder", "tar", "zip", "mixed"))
    options = parser.parse_args()
    label = [sys.executable, "-m", "fer_pipeline.cli", "label", "--detector", "yunet", "--num-cpus", str(options.num_cpus)]
    cores = sorted(os.sched_getaffinity(0))
    if options.apart:
        os.sched_setaffinity(0, cores[1:])  # the store's processes inherit it
    with tempfile.TemporaryDirectory() as folder, running_store(Path(folder) / "swift") as (store, swift):
        archive = Path(folder) / "archive"
        make = [sys.executable, str(SHARED / "tools" / "make_archive.py"), str(archive), "--images", str(options.images)]
        timed([*make, "--layout", options.layout])
        fs, _ = storage.open_filesystem("s3://bench")
        fs.mkdir("bench")
        upload(archive, "s3://bench/archive")
        store.fail(latency_s=0.03)
        if options.apart:
            os.sched_setaffinity(0, cores[:1])
        local, remote, server = [], [], []
        for pair in range(options.pairs):
            local.append(timed([*label, str(archive), "--out", f"{folder}/run-{pair}"])[0])
            before = swift.cpu_s()
            seconds, record = timed([*label, "s3://bench/archive", "--out", f"s3://bench/run-{pair}"])
            remote.append(seconds)
            server.append(swift.cpu_s() - before)
            assert record["result"]["failed"] == 0 and record["records"] == options.images
    figures = {
        "ratio": round(statistics.median(local) / statistics.median(remote), 3),
        "s3_images_per_s": round(options.images / statistics.median(remote), 1),
        "local_images_per_s": round(options.images / statistics.median(local), 1),
        "local_s": [round(seconds, 1) for seconds in local],
        "s3_s": [round(seconds, 1) for seconds in remote],
        "server_cpu_s": [round(seconds, 1) for seconds in server],
    }
    print(json.dumps(figures | vars(options)))


if __name__ == "__main__":
    main()
