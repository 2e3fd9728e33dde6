"""Listing on S3 (Swift) behind 30 ms of latency: bytes and requests for a tar, keys/s with and without extension; one JSON line.

    python -m tests.benchmarks.listing_s3 [--package /path/of/another/checkout]

Tars of 40 members of 500 kB, tars of 4,000 members of 2 kB, 20,000 keys `NUMBER.jpg`, 2,000 keys without extension. `--package`
lists with the fer_pipeline of another checkout, to compare two versions in one run.
"""

import argparse
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from fer_pipeline.base import storage
from tests.s3.conftest import Store, running_store

CODE = """
import json, sys, time
from fer_pipeline.archive.listing import Listing
started = time.perf_counter()
count = sum(1 for _ in Listing(sys.argv[1]))
print(json.dumps({"records": count, "seconds": round(time.perf_counter() - started, 1)}))
"""
JPEG = b"\xff\xd8\xff" + bytes(100)


def tar_of(count: int, size: int) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for number in range(count):
            info = tarfile.TarInfo(f"{number:06d}.jpg")
            info.size = size
            tar.addfile(info, io.BytesIO(bytes(size)))
    return out.getvalue()


def listed(store: Store, source: str, package: str) -> dict[str, float]:
    store.fail(latency_s=0.03)
    with tempfile.TemporaryDirectory() as cache:
        environment = os.environ | {"PYTHONPATH": package, "XDG_CACHE_HOME": cache}
        done = subprocess.run(
            [sys.executable, "-P", "-c", CODE, source], capture_output=True, text=True, env=environment, check=True
        )
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    requests, sent = store.traffic()
    found |= {"requests": requests, "bytes": sent, "per_s": round(found["records"] / found["seconds"])}
    store.fail()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    here = str(Path(__file__).resolve().parents[2])
    parser.add_argument("--package", action="append", default=[here])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, running_store(Path(folder) / "swift") as (store, _):
        fs, _ = storage.open_filesystem("s3://bench")
        fs.mkdir("bench")
        large, small = tar_of(40, 500_000), tar_of(4000, 2000)
        keys = {f"large/{number}.tar": large for number in range(8)} | {f"small/{number}.tar": small for number in range(4)}
        keys |= {f"named/{number:06d}.jpg": JPEG for number in range(20_000)}
        keys |= {f"bare/{number:06d}": JPEG for number in range(2000)}
        with ThreadPoolExecutor(16) as pool:
            list(pool.map(lambda key: storage.write_bytes(f"s3://bench/{key}", keys[key]), keys))
        found = {}
        for package in options.package:
            what = {name: listed(store, f"s3://bench/{name}", package) for name in ("large", "small", "named", "bare")}
            what["large"]["share_of_bytes"] = round(what["large"]["bytes"] / (8 * len(large)), 4)
            what["small"]["share_of_bytes"] = round(what["small"]["bytes"] / (4 * len(small)), 4)
            found[package] = what
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
