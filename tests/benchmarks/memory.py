"""Memory of workers and cost per image as an archive grows from 5,000 to 50,000 records: one JSON line.

    python -m tests.benchmarks.memory [--small 5000] [--large 50000]

The larger archive repeats the smaller one ten times with hard links. Peak resident memory is that of the labelling workers,
sampled ten times a second; seconds per 1,000 records are those of whole processes, and, within the larger run, of its second
and last tenth, by the times of their commits.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from tests.benchmarks.label import SHARED, timed


def workers_mb(driver: int) -> list[float]:
    """Return the resident memory of the driver's labelling workers."""
    sizes = []
    for process in psutil.Process(driver).children(recursive=True):
        try:
            if "ray::label" in " ".join(process.cmdline()):
                sizes.append(process.memory_info().rss / 2**20)
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
    return sizes


def label(archive: Path, out: Path, records: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "fer_pipeline.cli", "label", str(archive), "--out", str(out), "--detector", "yunet"]
    started, samples = time.perf_counter(), []
    environment = os.environ | {"FER_PIPELINE_MODELS": str(SHARED / "models")}
    driver = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
    while driver.poll() is None:
        try:
            samples += [(time.perf_counter() - started, size) for size in workers_mb(driver.pid)]
        except psutil.NoSuchProcess:
            break
        time.sleep(0.1)
    assert driver.wait() == 0
    seconds = time.perf_counter() - started
    middle = seconds / 2
    return {
        "records": records,
        "seconds": round(seconds, 1),
        "s_per_1000": round(1000 * seconds / records, 2),
        "worker_peak_mb": round(max(size for _, size in samples)),
        "worker_peak_first_half_mb": round(max(size for moment, size in samples if moment < middle)),
        "worker_peak_second_half_mb": round(max(size for moment, size in samples if moment >= middle)),
    }


def tenths(out: Path, records: int) -> dict[str, float]:
    """Return the seconds per 1,000 records of a run's second and last tenth."""
    commits = sorted(path.stat().st_mtime for path in out.glob("images/*.parquet"))
    tenth = len(commits) // 10
    per_commit = records / len(commits)
    spans = {"second_tenth": (tenth, 2 * tenth), "last_tenth": (len(commits) - 1 - tenth, len(commits) - 1)}
    return {name: round(1000 * (commits[b] - commits[a]) / ((b - a) * per_commit), 2) for name, (a, b) in spans.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", type=int, default=5000)
    parser.add_argument("--large", type=int, default=50_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        small, large = Path(folder) / "small", Path(folder) / "large"
        timed([sys.executable, str(SHARED / "tools" / "make_archive.py"), str(small), "--images", str(options.small)])
        for number in range(options.large // options.small):
            for path in [path for path in small.rglob("*") if path.is_file()]:
                link = large / f"{number:03d}" / path.relative_to(small)
                link.parent.mkdir(parents=True, exist_ok=True)
                os.link(path, link)
        runs = [
            label(small, Path(folder) / "run-small", options.small),
            label(large, Path(folder) / "run-large", options.large),
        ]
        within = tenths(Path(folder) / "run-large", options.large)
    ratio = round(runs[1]["s_per_1000"] / runs[0]["s_per_1000"], 3)
    print(json.dumps({"runs": runs, "large_over_small": ratio, "s_per_1000_within_large": within}))


if __name__ == "__main__":
    main()
