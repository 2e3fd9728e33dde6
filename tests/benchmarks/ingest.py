"""Memory of `fer-pipeline ingest` as a dataset of 224 px faces grows: one JSON line.

    python -m tests.benchmarks.ingest [--images 5000 20000]

The images are different random cuts of 224 x 224 pixels from the scenes of ../shared, as JPEGs, in a folder per class. Peak
resident memory is sampled ten times a second, of the driver and of the largest process among its workers; `kb_per_image` is
the slope between the smallest and the largest dataset.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import psutil

from fer_pipeline.models.label_space import FER7
from tests.benchmarks.label import SHARED


def write_images(folder: Path, count: int) -> None:
    """Write `count` different JPEGs as `train/class/number.jpg`."""
    rng = np.random.default_rng(0)
    scenes = [cv2.imread(str(path)) for path in sorted((SHARED / "data" / "scenes").rglob("*.jpg"))[:40]]
    for name in FER7.classes:
        (folder / "train" / name).mkdir(parents=True)
    for number in range(count):
        scene = scenes[number % len(scenes)]
        assert scene is not None
        side = int(rng.integers(120, min(scene.shape[:2])))
        top, left = (int(rng.integers(0, size - side + 1)) for size in scene.shape[:2])
        crop = cv2.resize(scene[top : top + side, left : left + side], (224, 224), interpolation=cv2.INTER_AREA)
        path = folder / "train" / FER7.classes[number % 7] / f"{number:06d}.jpg"
        cv2.imwrite(str(path), crop, [cv2.IMWRITE_JPEG_QUALITY, 90])


def ingest(source: Path, out: Path, count: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "fer_pipeline.cli", "ingest", str(source), "--out", str(out)]
    started, driver_mb, worker_mb = time.perf_counter(), 0.0, 0.0
    driver = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while driver.poll() is None:
        try:
            process = psutil.Process(driver.pid)
            driver_mb = max(driver_mb, process.memory_info().rss / 2**20)
            for child in process.children(recursive=True):
                if "ray::" in " ".join(child.cmdline()[:1]):
                    info = child.memory_full_info()
                    worker_mb = max(worker_mb, info.uss / 2**20)
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            pass
        time.sleep(0.1)
    assert driver.wait() == 0
    return {
        "images": count,
        "seconds": round(time.perf_counter() - started, 1),
        "driver_peak_mb": round(driver_mb),
        "worker_peak_mb": round(worker_mb),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[5000, 20_000])
    options = parser.parse_args()
    runs = []
    for count in sorted(options.images):
        with tempfile.TemporaryDirectory() as folder:
            write_images(Path(folder, "tree"), count)
            runs.append(ingest(Path(folder, "tree"), Path(folder, "data"), count))
    span = max(1, runs[-1]["images"] - runs[0]["images"])
    slopes = {
        kind: round(1024 * (runs[-1][f"{kind}_peak_mb"] - runs[0][f"{kind}_peak_mb"]) / span, 2) for kind in ("driver", "worker")
    }
    print(json.dumps({"runs": runs, "kb_per_image": slopes}))


if __name__ == "__main__":
    main()
