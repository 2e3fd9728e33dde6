"""A core's time for a request to S3, by the storage code of this and other checkouts; one JSON line each.

    python -m tests.benchmarks.store_cpu [--package /path/of/another/checkout]

A moto server on this machine, objects of 150 kB, eight threads: 600 PUTs, 600 GETs with their etags three times, and a listing of
3,000 keys below 20 prefixes. Only the client's time counts (`time.process_time`), after a first round that loads everything.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

CODE = """
import json, os, time
from concurrent.futures import ThreadPoolExecutor
from fer_pipeline.archive.walk import list_files
from fer_pipeline.base import storage

def timed(count, work):
    before = time.process_time()
    work()
    return (time.process_time() - before) / count

def each(function, items):
    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(function, items))

storage.open_filesystem("s3://bench")[0].mkdir("bench")
data = os.urandom(150_000)
keys = [f"s3://bench/loose/{number:05d}.jpg" for number in range(600)]
put = [timed(600, lambda: each(lambda key: storage.write_bytes(key, data), keys)) for _ in range(2)][1]
each(lambda n: storage.write_bytes(f"s3://bench/many/{n % 20:02d}/{n:05d}.jpg", b"x"), range(3000))
etags = {file.uri: file.etag for file in list_files("s3://bench/loose")}
get = [timed(600, lambda: each(lambda key: storage.read_bytes(key, etags[key]), keys)) for _ in range(4)][1:]
listed = timed(3000, lambda: list(list_files("s3://bench/many")))
print(json.dumps({"put_ms": put * 1e3, "get_ms": [one * 1e3 for one in get], "key_us": listed * 1e6}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    here = str(Path(__file__).resolve().parents[2])
    parser.add_argument("--package", action="append", default=[here])
    for package in parser.parse_args().package:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        server = subprocess.Popen([sys.executable, "-m", "moto.server", "-p", str(port)], stderr=subprocess.DEVNULL)
        try:
            wait_for(f"http://127.0.0.1:{port}")
            environment = os.environ | {
                "PYTHONPATH": package,
                "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
                "AWS_ACCESS_KEY_ID": "a",
                "AWS_SECRET_ACCESS_KEY": "b",
                "AWS_DEFAULT_REGION": "us-east-1",
            }
            done = subprocess.run([sys.executable, "-P", "-c", CODE], capture_output=True, text=True, env=environment, check=True)
            print(json.dumps({"package": Path(package).name} | json.loads(done.stdout)), flush=True)
        finally:
            server.kill()
            server.wait()


def wait_for(url: str) -> None:
    """Wait until a server answers."""
    while True:
        try:
            urllib.request.urlopen(url, timeout=5)
            return
        except OSError:
            time.sleep(0.1)


if __name__ == "__main__":
    main()
