"""Write what a former commit leaves on a disk, in one archive, for tests that today's code reads it and goes on with it.

    git worktree add ../former 04c3eb5 && cd ../former
    PYTHONPATH=. python .../tests/compat/write.py 04c3eb5 .../tests/compat/04c3eb5.tar.xz

Runs and tables name absolute paths, so all is written below one fixed folder, to which the tests unpack it. The etag of a local
file is its time of change: a whole second here, which a tar keeps. Pictures of bundles, which nothing reads, are left out.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

PLACE = Path("/tmp/fer-compat")
COMMAND = [sys.executable, "-m", "fer_pipeline.cli"]
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith(("FER_PIPELINE", "AWS"))}
ENVIRONMENT["XDG_CACHE_HOME"] = str(PLACE / "cache")
RECIPE = b"[network]\nwidth = 2\n[training]\nepochs = 6\nbatch_size = 8\nlearning_rate = 0.02\nprecision = 'fp32'\n"
LABEL = ("--no-thumbnails", "--precision", "fp32")


def fer(command: str, *options: object) -> None:
    """Run a command; what it labels was last changed at a whole second."""
    for path in [*PLACE.glob("photos/*/*"), *PLACE.glob("photos/*.*"), *PLACE.glob("nights/*")]:
        os.utime(path, (int(path.stat().st_mtime),) * 2)
    subprocess.run([*COMMAND, *command.split(), *map(str, options)], check=True, env=ENVIRONMENT)


def put(name: str, data: bytes) -> None:
    (PLACE / name).parent.mkdir(parents=True, exist_ok=True)
    (PLACE / name).write_bytes(data)


def encoded(pixels: Any, form: str = ".jpg") -> bytes:
    return cv2.imencode(form, pixels, [cv2.IMWRITE_JPEG_QUALITY, 80] if form == ".jpg" else [])[1].tobytes()


def stripes(seed: int, upright: bool, contrast: int = 60) -> bytes:
    """Return a rough picture of upright or lying stripes as a PNG of a few hundred bytes."""
    rng = np.random.default_rng(seed)
    wave = 128 + contrast * np.sign(np.sin(np.arange(48) * rng.uniform(0.6, 0.9) + rng.uniform(0, 6)))
    rough = np.tile(wave, (48, 1)) + 60 * rng.integers(-1, 2, (12, 12)).repeat(4, 0).repeat(4, 1)
    return encoded((rough if upright else rough.T).astype(np.uint8), ".png")


def runs() -> None:
    """Label an archive of every form, with broken files, and leave the same run as a kill half-way leaves it."""
    fer("sample-archive", PLACE / "sample", "--no-people")
    photos = {path.name: np.asarray(cv2.imread(str(path))) for path in (PLACE / "sample").rglob("*-320.jpg")}
    small = {name: cv2.resize(pixels, None, fx=0.5, fy=0.5) for name, pixels in photos.items()}
    for name in ("hopper-320.jpg", "astronaut-320.jpg", "coffee-320.jpg"):
        put(f"photos/2026/{name}", encoded(small[name]))
    put("photos/mirrored/hopper.jpg", encoded(small["hopper-320.jpg"][:, ::-1]))
    put("photos/broken/truncated.jpg", encoded(small["hopper-320.jpg"])[:2000])
    put("photos/broken/empty.jpg", b"")
    put("photos/notes.txt", b"No image.\n")
    shutil.make_archive(str(PLACE / "photos/three"), "tar", PLACE / "photos/2026")
    shutil.make_archive(str(PLACE / "photos/one"), "zip", PLACE / "photos/mirrored")
    pq.write_table(pa.table({"image": [stripes(2, False), encoded(small["hopper-320.jpg"])]}), PLACE / "photos/rows.parquet")
    with av.open(str(PLACE / "photos/clip.mp4"), "w") as video:
        stream = video.add_stream("mpeg4", rate=1)
        stream.width, stream.height, stream.pix_fmt = 128, 128, "yuv420p"
        for name in ("hopper-320.jpg", "astronaut-320.jpg"):
            frame = np.asarray(cv2.resize(small[name], (128, 128)), np.uint8)
            video.mux(stream.encode(av.VideoFrame.from_ndarray(frame, "bgr24")))
        video.mux(stream.encode())
    fer("label", PLACE / "photos", "--out", PLACE / "run", *LABEL, "--detector", "mtcnn", "--shard-records", 3)
    lost = shutil.ignore_patterns("faces", "00000[134].parquet", "report.html", "_SUCCESS")
    shutil.copytree(PLACE / "run", PLACE / "half", ignore=lost)
    put("half/run.json", json.dumps(json.loads((PLACE / "run/run.json").read_text()) | {"result": None}, indent=2).encode())


def nights() -> None:
    """Publish three nights of a source that changes, and label a fourth without publishing it."""
    options = ("--table", PLACE / "table", "--detector", "none", *LABEL)
    night = ("nightly", "--source", PLACE / "nights", *options, "--accept", "failed", "--page", PLACE / "nights.html", "--out")
    for seed in range(10):
        put(f"nights/{seed}.png", stripes(seed, seed % 2 > 0, 6 * seed))
    shutil.make_archive(str(PLACE / "nights/three"), "tar", PLACE / "photos/2026")
    fer(*night, PLACE / "runs/night-1")
    put("nights/1.png", stripes(31, True))
    put("nights/added.png", stripes(32, False))
    (PLACE / "nights/2.png").rename(PLACE / "nights/moved.png")
    fer(*night, PLACE / "runs/night-2")
    (PLACE / "nights/3.png").unlink()
    put("nights/broken.png", stripes(33, True)[:200])
    fer(*night, PLACE / "runs/night-3")
    put("nights/late.png", stripes(34, False))
    fer("label", PLACE / "nights", "--out", PLACE / "runs/night-4", *options)


def models() -> None:
    """Ingest a dataset, break a training off, train to the end, push two versions, and label with both forms of the model."""
    for number in range(64):
        split, name = "train" if number < 48 else "validation", ("happy", "sad")[number % 2]
        put(f"tree/{split}/{name}/{number}.png", stripes(100 + number, name == "happy"))
    fer("ingest", PLACE / "tree", "--out", PLACE / "dataset")
    put("stripes.toml", RECIPE)
    data, bundle = ("--data", PLACE / "dataset"), PLACE / "bundle"
    training = ("train", PLACE / "stripes.toml", *data, "--allow-missing-classes", "--out")
    break_off(*training, PLACE / "checkpoint/model")
    fer(*training, bundle)
    shutil.rmtree(PLACE / "bundle.checkpoints")
    for has_int8 in (False, True):
        if has_int8:
            fer("models quantize", bundle, *data)
        for name in ("curves.png", "confusion.png", "model_card.html"):
            (bundle / name).unlink(missing_ok=True)
        fer("models push", bundle, "stripes", "--registry", PLACE / "registry", "--alias", "production")
    for precision, model in (("fp32", bundle), ("int8", PLACE / "registry/stripes@production")):
        options = ("--model", model, "--precision", precision, "--detector", "none", "--no-thumbnails")
        fer("label", PLACE / "nights", "--out", PLACE / f"labelled-{precision}", *options)


def break_off(*training: object) -> None:
    """Stop a training once its first epoch has a checkpoint; what the second has begun to write is removed."""
    process = subprocess.Popen([*COMMAND, *map(str, training)], env=ENVIRONMENT)
    while not (found := list(PLACE.glob("checkpoint/*/*/checkpoint_manager_snapshot.json"))):
        assert process.poll() is None, "the training ended too early"
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 143
    for unknown in [path for path in found[0].parent.glob("checkpoint_*/") if path.name not in found[0].read_text()]:
        shutil.rmtree(unknown)


if __name__ == "__main__":
    commit, archive = sys.argv[1:]
    assert subprocess.check_output(["git", "rev-parse", "HEAD"], text=True).startswith(commit), "this is another commit"
    PLACE.mkdir(mode=0o700)
    for write in (runs, nights, models):
        write()
    with tarfile.open(archive, "w:xz", format=tarfile.PAX_FORMAT, preset=9) as tar:
        for path in sorted({*PLACE.iterdir()} - {PLACE / name for name in ("cache", "sample", "tree", "nights.html")}):
            tar.add(path, path.name, filter=lambda info: info.replace(uname="", gname="", mtime=int(info.mtime), deep=False))
    shutil.rmtree(PLACE)
