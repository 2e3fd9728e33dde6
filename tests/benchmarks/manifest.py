"""Plan, filter and resume a manifest of 10 million rows, with a no-op instead of labelling: one JSON line.

    python -m tests.benchmarks.manifest [--rows 10000000]

The listing yields a ninth more keys than rows, and `--exclude` leaves out those that end in 0. The driver is killed when a third
of the shards is committed, then restarted. Memory is the peak resident memory of only the driver process, from wait4.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

NOOP = Path(__file__).parent / "noop"


def committed(out: Path) -> int:
    return sum(1 for _ in os.scandir(out / "images")) if (out / "images").exists() else 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--shard-records", type=int, default=64)
    options = parser.parse_args()
    environment = os.environ | {"PYTHONPATH": str(NOOP), "NOOP_KEYS": str(-(-options.rows * 10 // 9))}
    with tempfile.TemporaryDirectory() as folder:
        source, out = Path(folder) / "source", Path(folder) / "run"
        source.mkdir()
        command = [sys.executable, "-m", "fer_pipeline.cli", "label", str(source), "--out", str(out), "--detector", "none"]
        command += ["--exclude", "*0.jpg", "--shard-records", str(options.shard_records), "--no-thumbnails"]
        third = options.rows // options.shard_records // 3
        started = time.perf_counter()
        driver = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
        while not (out / "run.json").exists():
            time.sleep(0.1)
        planned = time.perf_counter() - started
        while committed(out) < third:
            time.sleep(0.5)
        os.kill(driver.pid, signal.SIGKILL)
        _, _, first = os.wait4(driver.pid, 0)
        done = committed(out)
        started = time.perf_counter()
        driver = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE)
        assert driver.stdout is not None
        output = driver.stdout.read()
        _, status, second = os.wait4(driver.pid, 0)
        resumed = time.perf_counter() - started
        record = json.loads(output.splitlines()[-1])
        assert status == 0 and record["result"]["counts"] == {"no_face": record["records"]}
    print(
        json.dumps(
            {
                "rows": record["records"],
                "filtered": record["skipped"]["(filtered)"],
                "shards": record["shards"],
                "planned_s": round(planned, 1),
                "shards_at_kill": done,
                "driver_peak_mb_until_kill": first.ru_maxrss // 1024,
                "resumed_s": round(resumed, 1),
                "driver_peak_mb_resumed": second.ru_maxrss // 1024,
            }
        )
    )


if __name__ == "__main__":
    main()
