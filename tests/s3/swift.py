"""A real S3 server on loopback: OpenStack Swift with its S3 API, from the distribution's packages.

    python -m tests.s3.swift FOLDER      # start, print the endpoint, stop on SIGINT or SIGTERM

Swift's S3 API has no conditional writes (If-None-Match), which it answers with 501. It answers some HEAD requests with a body,
which breaks HTTP clients, so `proxy.py` stands in front of it.
"""

import argparse
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

ACCESS_KEY, SECRET_KEY, REGION = "test:tester", "testing", "us-east-1"
PACKAGES = "swift-proxy swift-account swift-container swift-object memcached".split()
STORES = ("object", "container", "account")
PIPELINE = "catch_errors healthcheck cache listing_formats s3api tempauth slo dlo copy proxy-server"
PROXY = """\
[DEFAULT]
bind_ip = 127.0.0.1
bind_port = {port}
swift_dir = {folder}
user = {user}
workers = 1
log_level = ERROR
[pipeline:main]
pipeline = {pipeline}
[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true
[filter:cache]
use = egg:swift#memcache
memcache_servers = 127.0.0.1:{cache_port}
[filter:s3api]
use = egg:swift#s3api
location = {region}
[filter:tempauth]
use = egg:swift#tempauth
user_{account} = {secret} .admin
"""
STORE = """\
[DEFAULT]
bind_ip = 127.0.0.1
bind_port = {port}
devices = {folder}/devices
mount_check = false
swift_dir = {folder}
user = {user}
workers = 1
disable_fallocate = true
fallocate_reserve = 0
log_level = ERROR
[pipeline:main]
pipeline = {name}-server
[app:{name}-server]
use = egg:swift#{name}
"""


def install() -> None:
    """Install Swift where it is missing; needs root and Debian's package manager."""
    if shutil.which("swift-proxy-server") and shutil.which("memcached"):
        return
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        sys.exit(f"The S3 tests need Swift: as root, apt-get install {' '.join(PACKAGES)}")
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    for command in (["update", "-qq"], ["install", "-y", "-qq", "--no-install-recommends", *PACKAGES]):
        subprocess.run(["apt-get", *command], check=True, stdout=subprocess.DEVNULL, env=environment)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Swift:
    """Swift's four servers and their cache, all below one new folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self.endpoint = f"http://127.0.0.1:{self.port}"
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        install()
        (self.folder / "devices" / "d1").mkdir(parents=True)
        user = subprocess.run(["id", "-un"], capture_output=True, text=True, check=True).stdout.strip()
        cache_port = free_port()
        (self.folder / "swift.conf").write_text(
            "[swift-hash]\nswift_hash_path_suffix = s\nswift_hash_path_prefix = p\n"
            "[storage-policy:0]\nname = only\ndefault = yes\n"
        )
        for name in STORES:
            port = free_port()
            config = STORE.format(name=name, port=port, folder=self.folder, user=user)
            (self.folder / f"{name}-server.conf").write_text(config)
            self._ring(name, port)
        config = PROXY.format(
            port=self.port, folder=self.folder, user=user, pipeline=PIPELINE, cache_port=cache_port, region=REGION,
            account=ACCESS_KEY.replace(":", "_"), secret=SECRET_KEY,
        )  # fmt: skip
        others = "catch_errors healthcheck listing_formats slo dlo copy".split()
        (self.folder / "proxy-server.conf").write_text(config + "".join(f"[filter:{n}]\nuse = egg:swift#{n}\n" for n in others))
        self._spawn("memcached", ["memcached", "-u", user, "-l", "127.0.0.1", "-p", str(cache_port)])
        for name in (*STORES, "proxy"):
            self._spawn(name, [f"swift-{name}-server", str(self.folder / f"{name}-server.conf")])
        self._wait_until_healthy()

    def _ring(self, name: str, port: int) -> None:
        builder = str(self.folder / f"{name}.builder")
        for arguments in (["create", "6", "1", "1"], ["add", f"r1z1-127.0.0.1:{port}/d1", "1"], ["rebalance"]):
            subprocess.run(["swift-ring-builder", builder, *arguments], check=True, stdout=subprocess.DEVNULL)

    def _spawn(self, name: str, command: list[str]) -> None:
        log = (self.folder / f"{name}.log").open("wb")
        self.processes.append(subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True))

    def _wait_until_healthy(self) -> None:
        for _ in range(300):
            try:
                with urllib.request.urlopen(f"{self.endpoint}/healthcheck", timeout=1):
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(0.1)
        self.stop()
        raise RuntimeError(f"Swift is not healthy after 30 s; see the logs in {self.folder}")

    def stop(self) -> None:
        """End what `start` began."""
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self.processes.clear()

    def cpu_s(self) -> float:
        """Return the processor time that the servers have used."""
        import psutil

        total = 0.0
        for process in self.processes:
            family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
            total += sum(sum(member.cpu_times()[:2]) for member in family)
        return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    swift = Swift(parser.parse_args().folder)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    swift.start()
    print(f"endpoint {swift.endpoint}  access key {ACCESS_KEY}  secret key {SECRET_KEY}  region {REGION}", flush=True)
    try:
        signal.pause()
    except KeyboardInterrupt:
        swift.stop()


if __name__ == "__main__":
    main()
