"""Find slowdowns: compare the main benchmarks, as ratios to a plain loop, with the stored ratios (make bench-compare).

    python -m tests.benchmarks.compare [--only label] [--keep]

Absolute times are noisy; a ratio to a loop that runs beside it is stable while the machine is quiet. `--keep` writes the ratios
and the machine's description into `baseline.json`. Exit code 1 means that a benchmark is slower by more than a tenth.
"""

import argparse
import json
import platform
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

KEPT = Path(__file__).with_name("baseline.json")
SLOWER = 0.9
BENCHMARKS = {
    "label": ("labelling 2,000 photos, start-up included", ["label", "--images", "2000", "--pairs", "3"], ("ratio",)),
    "train": ("training, data on the device", ["train", "--epochs", "2", "--workers", "1"], ("device_ratio", "1")),
}
"""What is compared, the module with its options, and where the ratio stands in its JSON."""


def measured(name: str) -> float:
    """Run a benchmark and return its ratio to the plain loop. Above 1 is faster."""
    _, (module, *options), place = BENCHMARKS[name]
    command = [sys.executable, "-m", f"tests.benchmarks.{module}", *options]
    found: Any = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
    for key in place:
        found = found[key]
    return float(found)


def processor() -> str:
    """Return the processor's name."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.processor())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=BENCHMARKS, default=list(BENCHMARKS))
    parser.add_argument("--keep", action="store_true")
    options = parser.parse_args()
    kept = json.loads(KEPT.read_text()) if KEPT.exists() else {}
    slower = False
    for name in options.only:
        ratio, before = measured(name), kept.get(name, {}).get("ratio")
        verdict = "no ratio is kept" if before is None else "slower" if ratio < SLOWER * before else "as it was or faster"
        slower |= verdict == "slower"
        print(f"{BENCHMARKS[name][0]}: {ratio:.3f} of the plain loop, {before} before: {verdict}")
        if options.keep:
            kept[name] = {"ratio": ratio, "on": f"{processor()}, 2 cores", "date": f"{datetime.now(UTC):%Y-%m-%d}"}
            KEPT.write_text(json.dumps(kept, indent=1) + "\n")
    return int(slower)


if __name__ == "__main__":
    sys.exit(main())
