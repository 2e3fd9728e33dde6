"""Mutated files through the code that reads strangers' files: one JSON line of counts by kind and outcome.

    python -m tests.fuzz [--images 4000] [--others 200] [--seed 0] [--keep FOLDER] [--kinds card zip]

Every input is made from a sound file by a seeded generator, so a finding can be made again. All run in a process of its own,
under the limits of memory and time that labelling has. A row's status is an outcome, and so are a process that dies (`crashed`,
which the probe of a run finds) and one that takes too long. An exception that the boundaries let through is an escape: its input
is kept, and the exit code is 1.
"""

import argparse
import io
import json
import lzma
import random
import sys
import tarfile
import tempfile
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

import av
import numpy as np
import pillow_heif
import pillow_jxl  # noqa: F401 (Pillow writes JPEG XL)
import pyarrow as pa
import pyarrow.parquet as pq
from backports import zstd
from PIL import Image

import fer_pipeline.faces.torch_network  # noqa: F401 (torch is loaded before the limit stands, as in a worker)
from fer_pipeline.archive.fetch import fetch
from fer_pipeline.archive.files import File, Selection
from fer_pipeline.archive.formats import format_of
from fer_pipeline.archive.index import INDEX, STATE, error_of, is_kept, read_index, write_index
from fer_pipeline.archive.record import Record
from fer_pipeline.base.boundary import as_record_error
from fer_pipeline.base.errors import RecordError, UserError
from fer_pipeline.base.isolated import IsolatedProcess
from fer_pipeline.base.memory import ReadTooLargeError
from fer_pipeline.cli import explain, report
from fer_pipeline.cli.explain import ExplainConfig
from fer_pipeline.cli.report import ReportConfig
from fer_pipeline.faces.classify import Classifier
from fer_pipeline.faces.detectors import resolve_detector
from fer_pipeline.labelling.labeller import FaceExtractor, LabelSettings
from fer_pipeline.labelling.manifest import read_shards
from fer_pipeline.labelling.run import RunFolder
from fer_pipeline.models.bundle import EMBEDDED, INT8_FILE, MODEL_FILE, read_bundle, read_files
from fer_pipeline.models.registry import Registry
from fer_pipeline.table.nights import keep_night, kept_night, night_of
from tests.archive.test_zips import deflate64, zip_of
from tests.faces.dng import dng
from tests.table.runs import finished_run, record_of

CODECS = {
    "jpg": "JPEG", "png": "PNG", "webp": "WEBP", "bmp": "BMP", "gif": "GIF", "tiff": "TIFF", "jp2": "JPEG2000", "avif": "AVIF",
    "ppm": "PPM", "heic": "HEIF", "jxl": "JXL", "dng": "DNG",
}  # fmt: skip
TAR_MODES = {"tar": "w", "tar.gz": "w:gz", "tar.bz2": "w:bz2", "tar.xz": "w:xz", "tar.zst": "w", "video.tar": "w"}
ZIP_METHODS = {"deflate64.zip": (9, deflate64), "zstd.zip": (93, zstd.compress), "xz.zip": (95, lzma.compress)}
CONTAINERS = (
    *TAR_MODES, "zip", *ZIP_METHODS, "video.zip", "parquet", "lists.parquet", "arrow", "stream.arrow", "mp4", "avi", "mkv", "mts",
    "ogv",
)  # fmt: skip
VIDEO_CODECS = {"mts": ("mpegts", "mpeg2video"), "ogv": ("ogg", "libvpx")}
"""FFmpeg's format and codec of some containers."""
RECORDS_READ = 8
"""Of a container that could be listed."""
PLANTED = ("run", "night", "images", "manifest", "index", "onnx")
"""Files of this project that somebody else may have written: of a run folder, a table, a container's index, a model."""
JSON = ("card", "version", "run", "night")
LIMIT_S = 60.0
BATCH = 100


def photo() -> np.ndarray:
    y, x = np.mgrid[0:60, 0:80]
    return np.stack([x * 3, y * 4, (x + y) * 2], 2).astype(np.uint8)


@lru_cache
def sound(kind: str) -> bytes:
    """Return a sound file of a kind."""
    out = io.BytesIO()
    if kind in PLANTED:
        return planted()[kind]
    if kind in ("card", "version"):
        return read_files(EMBEDDED)[MODEL_FILE] if kind == "card" else VERSION
    if kind == "heic":
        pillow_heif.from_pillow(Image.fromarray(photo())).save(out)
    elif kind == "dng":
        return dng((64, 48))
    elif kind == "tiff":  # a small copy first
        small, large = Image.fromarray(photo()[::4, ::4]), Image.fromarray(photo())
        small.save(out, "TIFF", save_all=True, append_images=[large, large], tiffinfo={254: 1})
    elif kind in CODECS:
        Image.fromarray(photo()).save(out, CODECS[kind], exif=b"Exif\0\0II*\0\x08\0\0\0\0\0" if kind == "jpg" else b"")
    elif kind in TAR_MODES:
        ending = "avi" if kind == "video.tar" else "jpg"
        with tarfile.open(fileobj=out, mode=TAR_MODES[kind]) as tar:  # type: ignore[call-overload]
            for number in range(4):
                info = tarfile.TarInfo(f"{'n' * 120 if number == 3 else ''}{number}.{ending}")
                info.size = len(sound(ending))
                tar.addfile(info, io.BytesIO(sound(ending)))
        return zstd.compress(out.getvalue()) if kind == "tar.zst" else out.getvalue()
    elif kind in ZIP_METHODS:
        method, pack = ZIP_METHODS[kind]
        return zip_of(b"0.jpg", method, pack(sound("jpg")), sound("jpg"))
    elif kind == "video.zip":
        with zipfile.ZipFile(out, "w") as archive:
            for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                archive.writestr(f"{method}.mp4", sound("mp4"), method)
    elif kind in ("lists.parquet", "arrow", "stream.arrow"):
        struct = {"bytes": sound("jpg"), "path": "x"}
        table = pa.table({"images": [[struct, struct], [], None, [struct]] * 5})
        if kind == "lists.parquet":
            pq.write_table(table, out, row_group_size=8)
        else:
            with (pa.ipc.new_file if kind == "arrow" else pa.ipc.new_stream)(out, table.schema) as writer:
                writer.write_table(table, 8)
    elif kind == "zip":
        with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
            for number in range(4):
                archive.writestr(f"{number}.jpg", sound("jpg"))
    elif kind == "parquet":
        pq.write_table(pa.table({"image": [sound("jpg")] * 40, "label": list(range(40))}), out, row_group_size=16)
    else:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"a.{kind}"
            format_name, codec = VIDEO_CODECS.get(kind, (None, "mpeg4"))
            with av.open(str(path), "w", format=format_name) as container:
                stream: Any = container.add_stream(codec, rate=25)
                stream.width, stream.height = 80, 60
                for _ in range(25):
                    container.mux(stream.encode(av.VideoFrame.from_ndarray(photo(), format="rgb24")))
                container.mux(stream.encode(None))
            return path.read_bytes()
    return out.getvalue()


@lru_cache
def planted() -> dict[str, bytes]:
    """Return a sound file of each kind that is planted."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder)
        record = finished_run(folder, [record_of(f"/source/{number}.jpg") for number in range(3)])
        (images,), (manifest,) = (run / "images").iterdir(), (run / "manifest").iterdir()
        keep_night(folder, night_of(folder, record, "published", [], []))
        (night,) = (run / "_nights").iterdir()
        rows = {"name": "a.jpg", "is_record": True, "offset": 0, "stored_bytes": 9, "size_bytes": 9, "time_ms": None}
        index = pa.Table.from_pylist([rows], INDEX.with_metadata({STATE: b"1000|1"}))
        pq.write_table(index, run / "index")
        return {
            "run": (run / "run.json").read_bytes(),
            "images": images.read_bytes(),
            "manifest": manifest.read_bytes(),
            "night": night.read_bytes(),
            "index": (run / "index").read_bytes(),
            "onnx": read_files(EMBEDDED)[INT8_FILE],
        }


def mutated(data: bytes, rng: random.Random) -> bytes:
    """Return data with a few bytes, numbers or stretches changed."""
    found = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        place, size = rng.randrange(len(found) or 1), rng.choice((1, 2, 4, 8))
        match rng.randrange(6):
            case 0:
                found[place : place + 1] = bytes([rng.randrange(256)])
            case 1:
                extreme = rng.choice((0, 1, 0x7F, 0x80, 0xFF))
                found[place : place + size] = bytes([extreme]) * size
            case 2:
                found[place : place + size] = rng.randrange(256**size).to_bytes(size, rng.choice(("little", "big")))
            case 3:
                del found[place : place + rng.randrange(1, 200)]
            case 4:
                found[place:place] = found[place : place + rng.randrange(1, 200)]
            case 5:
                found = found[: max(1, place)] if rng.random() < 0.3 else found
        found = found or bytearray(b"\0")
    return bytes(found)


def made(kind: str, number: int, seed: int) -> bytes:
    """Return the input of a number."""
    rng = random.Random(f"{seed} {kind} {number}")
    if kind in JSON:
        text = sound(kind).decode()
        words = (
            "NaN",
            "-1",
            "1e999",
            "0",
            '""',
            "null",
            "[]",
            "{}",
            "99999999999999999999",
            '"../../x"',
            "true",
            '"$\\\\frac{$"',
        )
        parts = text.split(",")
        for _ in range(rng.choice((1, 2, 3))):
            place = rng.randrange(len(parts))
            head, colon, _ = parts[place].partition(":")
            parts[place] = f"{head}{colon}{rng.choice(words)}" if rng.random() < 0.8 else ""
        return ",".join(parts).encode()
    return mutated(sound(kind), rng)


VERSION = json.dumps({"name": "face", "version": "1", "files": {"model.json": "0" * 64}, "created_at": "now"}).encode()


@lru_cache
def extractor() -> FaceExtractor:
    settings = LabelSettings(detect_px=640, threshold=0, max_pixels=10**8, max_bytes=2**28, precision="fp32", uncertain_below=0.5)
    return FaceExtractor(resolve_detector("none"), read_bundle(EMBEDDED).card, settings)


def outcome(kind: str, data: bytes, folder: Path) -> str:
    """Run one input through the code that reads it; what is raised here has escaped."""
    if kind in CODECS:
        return extractor().extract(data)[0].status
    if kind == "card":
        for name, content in (read_files(EMBEDDED) | {MODEL_FILE: data}).items():
            (folder / name).write_bytes(content)
        return refusal(lambda: Classifier(read_bundle(str(folder)), "fp32"))
    if kind == "version":
        place = folder / "face" / "versions" / "1.json"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(data)
        return refusal(lambda: Registry(str(folder)).resolve("face", "1"))
    if kind in PLANTED:
        return refusal(lambda: look_at_planted(kind, data, folder))
    path = folder / f"a.{kind}"
    path.write_bytes(data)
    file, selection = File(str(path), len(data), ""), Selection(fps=1.0, max_members=10 * RECORDS_READ)
    source_format = format_of(str(path))
    assert source_format
    index = folder / "index"
    for _ in write_index(source_format.name, asdict(file), asdict(selection), str(index)):
        pass
    records = [entry for entry in islice(read_index(index, file), RECORDS_READ) if isinstance(entry, Record)]
    found = "unreadable" if error_of(index) else "ok"
    with fetch(records, 2**28) as fetched:
        for one in fetched:
            status = one.status if isinstance(one, RecordError) else extractor().extract(one)[0].status
            found = found if status in ("ok", "no_face") else status
    return found


def look_at_planted(kind: str, data: bytes, folder: Path) -> None:
    """Do what reads a planted file, beside others that are sound."""
    if kind == "onnx":
        card = json.loads(read_files(EMBEDDED)[MODEL_FILE]) | {"format": "onnx", "int8": None}
        (folder / MODEL_FILE).write_text(json.dumps(card))
        (folder / "model.onnx").write_bytes(data)
        Classifier(read_bundle(str(folder)), "fp32")
        return
    if kind == "index":
        (folder / "index.parquet").write_bytes(data)
        file = File(str(folder / "a.zip"), 1000, "1")
        if is_kept(folder / "index.parquet", file, None):
            try:
                list(read_index(folder / "index.parquet", file))
            except Exception as error:
                raise UserError(as_record_error(error, "unreadable").reason) from error
        return
    files = planted() | {kind: data}
    run_id = json.loads(planted()["run"])["run_id"]
    for name in ("images", "manifest", "_nights"):
        (folder / name).mkdir(exist_ok=True)
    (folder / "run.json").write_bytes(files["run"])
    (folder / "images" / "000000.parquet").write_bytes(files["images"])
    (folder / "manifest" / f"{run_id}-00000.parquet").write_bytes(files["manifest"])
    (folder / "_nights" / f"{run_id}.json").write_bytes(files["night"])
    kept_night(str(folder), run_id)
    explain.run(ExplainConfig(run=str(folder), uri="/source/1.jpg"))
    report.run(ReportConfig(run=str(folder)))
    list(read_shards(RunFolder(str(folder)).manifest_prefix(run_id), [0]))


def refusal(action: Callable[[], object]) -> str:
    try:
        action()
    except (UserError, ReadTooLargeError) as error:
        assert "\n" not in str(error), "more than one line"
        return "refused"
    return "ok"


def batch(kind: str, first: int, count: int, seed: int, keep: str) -> Iterator[list[Any]]:
    """Yield number and outcome of some inputs; an escape as `escaped` with what it was. Its input is kept."""
    with tempfile.TemporaryDirectory() as folder:
        for number in range(first, first + count):
            data = made(kind, number, seed)
            try:
                yield [number, outcome(kind, data, Path(folder)), ""]
            except Exception as error:  # noqa: BLE001 (what is looked for)
                place = Path(keep) / f"{seed}-{number}.{kind}"
                place.parent.mkdir(exist_ok=True)
                place.write_bytes(data)
                yield [number, "escaped", f"{place}: {type(error).__name__}: {error}"[:300]]


def run(kind: str, count: int, seed: int, keep: str) -> tuple[Counter[str], list[str]]:
    """Return the outcomes of a kind's inputs, and the escapes. Each kind has its own process, which has its own memory limit."""
    outcomes, escapes, process = Counter[str](), list[str](), IsolatedProcess()
    pending = [(first, min(BATCH, count - first)) for first in range(0, count, BATCH)]
    while pending:
        first, size = pending.pop()
        done: list[Any] = []
        try:
            done += process.call(f"{__spec__.name}:{batch.__name__}", kind, first, size, seed, keep, timeout_s=LIMIT_S)
        except ValueError as error:  # the process died or hung: which input was it?
            if size > 1:
                pending += [(number, 1) for number in range(first, first + size)]
                continue
            done = [[first, "crashed" if "dies" in str(error) else "timed_out", ""]]
        for _, status, what in done:
            outcomes[status] += 1
            if status == "escaped":
                escapes.append(what)
    process.close()
    return outcomes, escapes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=4000)
    parser.add_argument("--others", type=int, default=100, help="inputs of each kind of container, card and registry file")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", default="fuzz-escapes")
    parser.add_argument("--kinds", nargs="+", help="only these: file endings, `card`, `run` and so on")
    options = parser.parse_args()
    kinds = {kind: options.images // len(CODECS) for kind in CODECS}
    kinds |= dict.fromkeys((*CONTAINERS, *PLANTED, "card", "version"), options.others)
    kinds = {kind: count for kind, count in kinds.items() if kind in (options.kinds or kinds)}
    figures, escaped = {}, 0
    for kind, count in kinds.items():
        outcomes, escapes = run(kind, count, options.seed, str(Path(options.keep).resolve()))
        figures[kind] = dict(sorted(outcomes.items()))
        print(*escapes, sep="\n", end="\n" if escapes else "", file=sys.stderr)
        escaped += len(escapes)
        print(f"{kind}: {figures[kind]}", file=sys.stderr, flush=True)
    print(json.dumps({"inputs": sum(kinds.values()), "escaped": escaped, "outcomes": figures}))
    sys.exit(1 if escaped else 0)


if __name__ == "__main__":
    main()
