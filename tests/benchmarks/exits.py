"""Check exit codes under load: run many commands, several at once, on a local disk and on a store.

    python -m tests.benchmarks.exits [--exits 500] [--at-once 6]

A finished process can abort while the interpreter shuts down, if threads of a library still hold Python objects. Prints the
exits by command, place and status as JSON. The store is moto on loopback.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import cycle, islice

import s3fs

from fer_pipeline.cli import sample_archive
from fer_pipeline.cli.sample_archive import SampleArchiveConfig
from tests.s3.swift import free_port

WEIGHTS = {"label": 1, "nightly": 1, "publish": 1, "report": 3, "history": 2, "page": 2}
"""How often each command is run, of ten times."""


def run(*arguments: str) -> int:
    command = [sys.executable, "-m", "fer_pipeline.cli", *arguments]
    return subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode


def commands(place: str, number: int) -> dict[str, list[str]]:
    """Return the commands for a place. Commands that write use the number in their output paths."""
    source, table, local = f"{place}/photos", f"{place}/labels", ["--detector", "none", "--num-cpus", "1"]
    fresh = f"{place}/runs/{number}"
    return {
        "label": ["label", source, "--out", fresh, *local],
        "nightly": ["nightly", "--source", source, "--table", table, "--out", fresh, "--page", f"{place}/nights.html", *local],
        "publish": ["publish", f"{place}/first", "--table", table, "--num-cpus", "1"],
        "report": ["report", f"{place}/first"],
        "history": ["table", "history", table],
        "page": ["table", "page", table, "--out", f"{place}/page-{number}.html"],
    }


def begin(place: str) -> None:
    """Label and publish the input of the other commands."""
    first = commands(place, 0)
    assert run("label", f"{place}/photos", "--out", f"{place}/first", "--table", f"{place}/labels", "--detector", "none") == 0
    assert run(*first["publish"]) == 0


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--exits", type=int, default=500)
    parser.add_argument("--at-once", type=int, default=6)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        port = free_port()
        os.environ |= {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}", "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x",
            "AWS_DEFAULT_REGION": "us-east-1", "XDG_CACHE_HOME": f"{folder}/cache",
        }  # fmt: skip
        server = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
        store = subprocess.Popen(server, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            sample_archive.run(SampleArchiveConfig(dest=f"{folder}/photos", people=False))
            for _ in range(100):
                with suppress(OSError):
                    s3fs.S3FileSystem(skip_instance_cache=True).mkdir("exits")
                    break
                time.sleep(0.2)
            s3fs.S3FileSystem(skip_instance_cache=True).put(f"{folder}/photos", "exits/photos", recursive=True)
            for place in (folder, "s3://exits"):
                begin(place)
            names = [name for name, weight in WEIGHTS.items() for _ in range(weight)]
            planned = list(islice(cycle((place, name) for name in names for place in (folder, "s3://exits")), options.exits))

            def end(numbered: tuple[int, tuple[str, str]]) -> tuple[str, int]:
                number, (place, name) = numbered
                where = "store" if place.startswith("s3") else "disk"
                return f"{name}, {where}", run(*commands(place, number + 1)[name])

            with ThreadPoolExecutor(options.at_once) as pool:
                found = Counter(pool.map(end, enumerate(planned)))
        finally:
            store.terminate()
            store.wait()
    exits = {f"{what}: status {status}": count for (what, status), count in sorted(found.items())}
    print(json.dumps({"exits": sum(found.values()), "at once": options.at_once, "cores": os.cpu_count()} | exits, indent=1))


if __name__ == "__main__":
    main()
