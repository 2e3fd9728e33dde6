"""Throughput of the `fer` package with its MTCNN, one process per core, on the same kind of archive: one JSON line.

    python -m tests.benchmarks.fer_package --python FER_VENV/bin/python [--images 100] [--processes 2]

It needs a separate environment, in which this file's `work` runs:

    python3 -m venv FER_VENV
    FER_VENV/bin/pip install fer==25.10.3 'setuptools<81' 'opencv-contrib-python==4.14.*'

One facenet-pytorch detection runs before the import of `fer.fer` (the top package does not export its class), otherwise the LLVMs
of torch and TensorFlow collide. Loading does not count: every process labels one image first, then all start together.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def work(paths: list[str]) -> None:
    """Label images as the package's README does. Report when ready, and begin after a line on standard input."""
    import cv2
    import numpy as np
    from facenet_pytorch import MTCNN

    MTCNN(keep_all=True).detect(np.zeros((200, 200, 3), np.uint8))
    from fer.fer import FER

    detector = FER(mtcnn=True)
    detector.detect_emotions(cv2.imread(paths[0]))
    print("ready", flush=True)
    sys.stdin.readline()
    started, faces = time.perf_counter(), 0
    for path in paths:
        image = cv2.imread(path)
        if image is not None:
            faces += len(detector.detect_emotions(image))
    print(json.dumps([time.perf_counter() - started, faces]), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", required=True)
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    make = Path(__file__).resolve().parents[3] / "shared" / "tools" / "make_archive.py"
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            [sys.executable, str(make), f"{folder}/a", "--images", str(options.images)], check=True, stdout=subprocess.DEVNULL
        )
        paths = sorted(str(path) for path in Path(folder, "a").rglob("*") if path.is_file())
        one_thread = dict.fromkeys(("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"), "1")
        workers = [
            subprocess.Popen(
                [options.python, __file__, *paths[number :: options.processes]],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=os.environ | one_thread,
            )
            for number in range(options.processes)
        ]  # fmt: skip
        for worker in workers:
            assert worker.stdout is not None
            while worker.stdout.readline().strip() != "ready":
                assert worker.poll() is None, "a worker ended before it was ready"
        for worker in workers:
            assert worker.stdin is not None
            worker.stdin.write("go\n")
            worker.stdin.flush()
        results = [json.loads(worker.communicate()[0].splitlines()[-1]) for worker in workers]
    seconds = max(one for one, _ in results)
    figures = {"images_per_s": round(len(paths) / seconds, 2), "seconds": round(seconds, 1), "faces": sum(n for _, n in results)}
    print(json.dumps(figures | {"images": len(paths), "processes": options.processes}))


if __name__ == "__main__":
    work(sys.argv[1:]) if len(sys.argv) > 1 and not sys.argv[1].startswith("-") else main()
