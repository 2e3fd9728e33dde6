"""Strangers' files through whole commands: exit code, seconds and memory stay within what a night can bear."""

import gzip
import os
import shutil
import struct
import subprocess
import sys
import tarfile
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest

import fer_pipeline
from fer_pipeline.models.bundle import EMBEDDED

pytestmark = pytest.mark.faults
POISON = Path(__file__).parent / "poison"


def call(*arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "fer_pipeline.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(POISON)})


@pytest.fixture
def poisoned(archive: Path, tmp_path: Path) -> Path:
    """Six photos of a class, one of which kills whoever decodes it."""
    folder = tmp_path / "tree" / "happy"
    folder.mkdir(parents=True)
    for photo in sorted(archive.rglob("hopper-*.jpg"))[:6]:
        shutil.copy(photo, folder)
    victim = sorted(folder.iterdir())[2]
    victim.write_bytes(victim.read_bytes() + b"crash the decoder")
    return tmp_path / "tree"


def test_an_image_that_kills_is_quarantined_by_ingest(poisoned: Path, tmp_path: Path) -> None:
    done = call("ingest", str(poisoned), "--out", str(tmp_path / "data"))
    assert done.returncode == 0, done.stderr
    assert '"samples": 5' in done.stdout and "kills the process" in done.stdout


def test_an_image_that_kills_costs_its_own_entry_in_predict(poisoned: Path, tmp_path: Path) -> None:
    done = call("predict", str(poisoned), "--out", str(tmp_path / "out"), "--detector", "none")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count('"status": "ok"') == 5 and done.stdout.count('"status": "crashed"') == 1


def test_an_image_that_kills_who_draws_costs_its_picture(archive: Path, tmp_path: Path) -> None:
    """It was labelled when it killed nobody: what draws the page meets it in a process of its own."""
    source = tmp_path / "source"
    source.mkdir()
    for photo in sorted(archive.rglob("hopper-*.jpg"))[:6]:
        shutil.copy(photo, source)
    assert call("label", str(source), "--out", str(tmp_path / "run"), "--detector", "none").returncode == 0
    victim = sorted(source.iterdir())[2]
    before = victim.stat()
    data = victim.read_bytes()
    victim.write_bytes(data[: -len(b"crash the decoder")] + b"crash the decoder")
    os.utime(victim, ns=(before.st_atime_ns, before.st_mtime_ns))
    done = call("report", str(tmp_path / "run"), "--source", str(source))
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "run" / "report.html").read_text()
    assert "Faces without a picture: 1 crashed" in page and page.count("data:image/jpeg") >= 5


MOST_BYTES = 3e9
"""What no run over hostile files may take at default settings, on a machine that does nothing else; in its largest process."""


def watched(*arguments: str) -> tuple[int, str, float]:
    """Run a command; return its exit code, what it printed, and the memory of its largest process in bytes."""
    started, peak = time.monotonic(), 0
    with tempfile.TemporaryFile("w+") as said:
        process = psutil.Popen([sys.executable, "-m", "fer_pipeline.cli", *arguments], stdout=said, stderr=said)
        while process.poll() is None:
            with suppress(psutil.Error):
                for one in (process, *process.children(recursive=True)):
                    with suppress(psutil.Error):
                        peak = max(peak, one.memory_info().rss)
            time.sleep(0.05)
        seconds = time.monotonic() - started
        said.seek(0)
        print(arguments[:2], process.returncode, f"{seconds:.0f} s, {peak / 1e9:.1f} GB")
        return process.returncode, said.read(), peak


def require_bounded(*arguments: str, code: int = 0) -> str:
    """Run a command, which ends with that code within the limits, and return what it printed."""
    found, said, peak = watched(*arguments)
    assert found == code, said[-2000:]
    assert "Traceback" not in said, said[-2000:]
    assert peak < MOST_BYTES, peak
    return said


def statuses(run: Path) -> Counter[str]:
    """Return how many rows of a run have each status."""
    rows = pq.read_table(run / "images", columns=["status"])
    return Counter(rows["status"].to_pylist())


@pytest.mark.long
@pytest.mark.parametrize("kind", ["images", "containers", "parquet", "videos"])
def test_every_hostile_file_is_labelled_within_the_limits(kind: str, shared: Path, tmp_path: Path) -> None:
    source = shared / "data" / "hostile" / kind
    require_bounded("label", str(source), "--out", str(tmp_path / "run"), "--max-failure-rate", "1")
    assert statuses(tmp_path / "run")


@pytest.mark.long
def test_hostile_images_are_ingested_within_the_limits(shared: Path, tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "happy").symlink_to(shared / "data" / "hostile" / "images")
    require_bounded("ingest", str(tmp_path / "tree"), "--out", str(tmp_path / "data"))


@pytest.mark.long
def test_hostile_images_are_predicted_within_the_limits(shared: Path, tmp_path: Path) -> None:
    require_bounded("predict", str(shared / "data" / "hostile" / "images"), "--out", str(tmp_path / "out"))


def sparse_zip(path: Path, size: int) -> None:
    """Write a zip whose one member, a stored picture, takes so many bytes, none of them on the disk."""
    name = b"20GB.jpg"
    sizes = struct.pack("<QQ", size, size)
    versions = struct.pack("<HHHHH", 45, 0, 0, 0, 0x21)
    tail = struct.pack("<III", 0, 0xFFFFFFFF, 0xFFFFFFFF)
    local = b"PK\3\4" + versions + tail + struct.pack("<HH", len(name), 20) + name + struct.pack("<HH", 1, 16) + sizes
    start = len(local) + size
    central = b"PK\1\2" + struct.pack("<H", 45) + versions + tail
    central += struct.pack("<HHHHHII", len(name), 20, 0, 0, 0, 0, 0) + name + struct.pack("<HH", 1, 16) + sizes
    end64 = b"PK\6\6" + struct.pack("<QHHIIQQQQ", 44, 45, 45, 0, 0, 1, 1, len(central), start)
    locator = b"PK\6\7" + struct.pack("<IQI", 0, start + len(central), 1)
    end = b"PK\5\6" + struct.pack("<HHHHIIH", 0, 0, 1, 1, len(central), 0xFFFFFFFF, 0)
    with path.open("wb") as file:
        file.write(local)
        file.seek(start)
        file.write(central + end64 + locator + end)


def zeros_tar_gz(path: Path, size: int) -> None:
    """Write a compressed tar of one member of so many zeros, a thousandth of their size."""
    info = tarfile.TarInfo("zeros.jpg")
    info.size = size
    block = 64 * 1024**2
    with path.open("wb") as file:
        file.write(gzip.compress(info.tobuf()))
        zeros = gzip.compress(bytes(block))
        for _ in range(size // block):
            file.write(zeros)
        file.write(gzip.compress(bytes(1024)))


def links_tar(path: Path, count: int, photo: Path) -> None:
    """Write a tar of one picture and so many hard links to it."""
    with tarfile.open(path, "w") as tar:
        tar.add(photo, "first.jpg")
        for number in range(count):
            link = tarfile.TarInfo(f"{number}.jpg")
            link.type, link.linkname = tarfile.LNKTYPE, "first.jpg"
            tar.addfile(link)


def test_large_hostile_files_are_labelled_within_the_limits(archive: Path, tmp_path: Path) -> None:
    source, photo = tmp_path / "source", next(archive.rglob("hopper-320.jpg"))
    source.mkdir()
    sparse_zip(source / "sparse.zip", 20 * 10**9)
    zeros_tar_gz(source / "zeros.tar.gz", 4 * 1024**3)
    shutil.copy(photo, source / "sound.jpg")
    os.mkfifo(tmp_path / "pipe")
    (source / "pipe.jpg").symlink_to(tmp_path / "pipe")
    (source / "zero.jpg").symlink_to("/dev/zero")
    said = require_bounded("label", str(source), "--out", str(tmp_path / "run"), "--max-failure-rate", "1")
    found = statuses(tmp_path / "run")
    assert found["ok"] == 1 and sum(found.values()) >= 3, (found, said)


@pytest.mark.long
def test_a_file_that_blocks_for_ever_costs_its_own_row(archive: Path, tmp_path: Path) -> None:
    if not os.access("/proc/kmsg", os.R_OK):
        pytest.skip("there is no file here that blocks whoever reads it")
    shutil.copy(next(archive.rglob("hopper-320.jpg")), tmp_path / "sound.jpg")
    (tmp_path / "blocks.jpg").symlink_to("/proc/kmsg")
    require_bounded("label", str(tmp_path), "--out", str(tmp_path / "run"))
    assert statuses(tmp_path / "run")["ok"] == 1


@pytest.mark.long
def test_twenty_thousand_hard_links_are_listed_within_the_limits(archive: Path, tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    links_tar(tmp_path / "source" / "links.tar", 20_000, next(archive.rglob("hopper-320.jpg")))
    require_bounded(
        "label", str(tmp_path / "source"), "--out", str(tmp_path / "run"), "--max-members", "2000", "--detector", "none"
    )


@pytest.mark.long
@pytest.mark.timeout(900)
def test_hostile_cards_label_nothing_and_are_not_pushed(shared: Path, tmp_path: Path) -> None:
    home = Path(fer_pipeline.__file__).parent / "models" / EMBEDDED
    (tmp_path / "source").mkdir()
    for folder in sorted((shared / "data" / "hostile" / "models").iterdir()):
        model = tmp_path / "models" / folder.name
        shutil.copytree(folder, model)
        if not any(path.suffix in (".safetensors", ".onnx") for path in folder.iterdir()):
            shutil.copy(home / "model.safetensors", model)
        for command in (
            ("models", "push", str(model), "stranger", "--registry", str(tmp_path / "registry")),
            ("label", str(tmp_path / "source"), "--out", str(tmp_path / "runs" / folder.name), "--model", str(model)),
        ):
            code, said, peak = watched(*command)
            assert "Traceback" not in said and code in (0, 2), said[-2000:]
            assert peak < MOST_BYTES
