"""Three nights over an archive: all of it, nothing changed, 1 % changed; whole commands, one JSON line.

    python -m tests.benchmarks.nights [--images 50000] [--detector none]

The images are those of the sample archive. Different bytes after the end of each one make every file unique.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from PIL import Image

from fer_pipeline.cli.sample_archive import SampleArchiveConfig, run

PER_FOLDER = 1000


def night(folder: Path, date: str, detector: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "fer_pipeline.cli", "nightly", "--source", f"{folder}/source", "--table", f"{folder}/table"]
    command += ["--out", f"{folder}/runs/{{date}}", "--page", f"{folder}/nights.html", "--date", date, "--detector", detector]
    began = time.perf_counter()
    done = subprocess.run([*command, "--no-thumbnails"], capture_output=True, text=True, check=True)
    seconds, found = time.perf_counter() - began, json.loads(done.stdout.splitlines()[-1])
    return {"seconds": round(seconds, 1), "labelled": found["records"], "state": found["state"], "rows": found["table_rows"]}


def is_whole(path: Path) -> bool:
    try:
        Image.open(path).load()
    except OSError:
        return False
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--detector", default="none")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run(SampleArchiveConfig(dest=f"{folder}/sample"))
        images = [path.read_bytes() for path in sorted((folder / "sample").rglob("*.jpg")) if is_whole(path)]
        for number in range(options.images):
            path = folder / "source" / f"{number // PER_FOLDER:04d}" / f"{number:06d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(images[number % len(images)] + number.to_bytes(4, "big"))
        figures: dict[str, Any] = {"images": options.images, "detector": options.detector}
        figures["all"] = night(folder, "2026-01-01", options.detector)
        figures["unchanged"] = night(folder, "2026-01-02", options.detector)
        for path in sorted((folder / "source").rglob("*.jpg"))[::100]:
            path.write_bytes(path.read_bytes() + b"changed")
        figures["1 % changed"] = night(folder, "2026-01-03", options.detector)
    for found in (figures[key] for key in ("all", "unchanged", "1 % changed")):
        found["images_per_s"] = round(options.images / found["seconds"])
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
