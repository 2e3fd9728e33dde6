"""`label --estimate` against what the run then takes, on photos, on containers and on videos: one JSON line each.

    python -m tests.benchmarks.estimate [--images 1500]

`hours_here` of the estimate, in seconds, against the seconds between the first and the last committed shard of the run.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

from tests.benchmarks.label import SHARED, timed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1500)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        sources = {"videos": str(SHARED / "data" / "videos")}
        for layout in ("folder", "mixed"):
            sources[layout] = f"{folder}/{layout}"
            make = [sys.executable, str(SHARED / "tools" / "make_archive.py"), sources[layout], "--layout", layout]
            timed([*make, "--images", str(options.images)])
        for name, source in sources.items():
            label = [sys.executable, "-m", "fer_pipeline.cli", "label", source, "--out", f"{folder}/run-{name}"]
            label += ["--detector", "yunet", "--fps", "5"]
            took_s, found = timed([*label, "--estimate"])
            run_s, record = timed(label)
            shards = sorted(path.stat().st_mtime for path in (Path(folder) / f"run-{name}" / "images").iterdir())
            labelled = record["records"] * (len(shards) - 1) / len(shards)
            estimated_s = 3600 * found["hours_here"] * labelled / found["records"]
            bounds = [(found[f"core_hours_{name}"] or 0) / found["core_hours"] for name in ("low", "high")]
            figures = {
                "archive": name,
                "records": record["records"],
                "estimated_s": round(estimated_s, 1),
                "interval_s": [round(estimated_s * bound, 1) for bound in bounds],
                "labelling_s": round(shards[-1] - shards[0], 1),
                "run_s": round(run_s, 1),
                "estimating_s": round(took_s, 1),
            }
            print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    main()
