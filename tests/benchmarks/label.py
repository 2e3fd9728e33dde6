"""Throughput of `fer-pipeline label` against a plain multi-process loop on the same folder: one JSON line.

    python tests/benchmarks/label.py [--images 5000] [--pairs 2]

Both are timed as whole processes, start-up included. The pipeline uses its default shard size and writes its report.
The loop (../shared/tools/reference_loop.py --procs 2) detects with the same YuNet at 640 px, aligns nothing and writes nothing.
They alternate, `pairs` times, so that noise of the machine affects both. The medians are printed.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

SHARED = Path(__file__).resolve().parents[3] / "shared"


def timed(command: list[str]) -> tuple[float, dict[str, Any]]:
    """Return the duration of a command in seconds and the JSON of its last line."""
    environment = os.environ | {"FER_PIPELINE_MODELS": str(SHARED / "models")}
    started = time.perf_counter()
    out = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
    return time.perf_counter() - started, json.loads(out.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--pairs", type=int, default=2)
    options = parser.parse_args()
    tools = SHARED / "tools"
    with tempfile.TemporaryDirectory() as folder:
        archive = f"{folder}/archive"
        timed([sys.executable, str(tools / "make_archive.py"), archive, "--images", str(options.images)])
        loops, runs, faces = [], [], 0
        for pair in range(options.pairs):
            loops.append(timed([sys.executable, str(tools / "reference_loop.py"), archive, "--procs", "2"])[0])
            command = [sys.executable, "-m", "fer_pipeline.cli", "label", archive, "--out", f"{folder}/run-{pair}"]
            seconds, record = timed([*command, "--detector", "yunet", "--detect-px", "640"])
            runs.append(seconds)
            faces = record["result"]["faces"]
    pipeline, loop = options.images / statistics.median(runs), options.images / statistics.median(loops)
    figures = {
        "pipeline_images_per_s": round(pipeline, 1),
        "loop_images_per_s": round(loop, 1),
        "ratio": round(pipeline / loop, 3),
        "images": options.images,
        "faces": faces,
        "pipeline_s": [round(seconds, 1) for seconds in runs],
        "loop_s": [round(seconds, 1) for seconds in loops],
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
