"""Seconds and memory of `fer-pipeline export`, of a run and a table with a million faces; one JSON line.

    python -m tests.benchmarks.export [--faces 1000000]

The rows are those of the sample archive, labelled with MTCNN, repeated in shards of 64 records. Whole processes are timed.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.compute as pc

import fer_pipeline as fer
from fer_pipeline.base.storage import parquet
from fer_pipeline.cli import sample_archive
from fer_pipeline.cli.sample_archive import SampleArchiveConfig
from fer_pipeline.labelling.run import RunFolder
from fer_pipeline.labelling.schemas import IMAGES
from fer_pipeline.table.delta import Changes, LabelTable, file_of
from fer_pipeline.table.rows import rows_of

ROWS_A_FILE = 20_000


def made(folder: Path, faces: int) -> tuple[str, str]:
    """Write a run and a table of about that many faces; return their paths."""
    sample_archive.run(SampleArchiveConfig(dest=str(folder / "archive")))
    run = fer.label(folder / "archive", folder / "run", detector="mtcnn")
    images = parquet.read_own(run.folder.images_path(0), IMAGES)
    shard = pa.concat_tables([images] * 64)[:64]
    count = faces // pc.sum(pc.list_value_length(shard["faces"])).as_py()
    first = parquet.table_bytes(shard)
    for number in range(count):
        Path(run.folder.images_path(number)).write_bytes(first)
    table = LabelTable(str(folder / "table")).make(run.classes)
    rows, files = rows_of(pa.concat_tables([shard] * (ROWS_A_FILE // 64)), run.record.source, run.record.run_id), []
    for number in range(-(-count * 64 // len(rows))):
        size = parquet.write_table(table.path(f"{number:05d}.parquet"), rows)
        files.append(file_of(f"{number:05d}.parquet", size, rows))
    table.commit(Changes(added=files), None, {})
    return RunFolder(run.url).url, table.url


def timed(labels: str, to: Path, *options: str) -> dict[str, Any]:
    started, peak = time.perf_counter(), 0
    process = subprocess.Popen(
        [sys.executable, "-m", "fer_pipeline.cli", "export", labels, "--to", str(to), *options], stdout=subprocess.PIPE, text=True
    )
    while process.poll() is None:
        try:
            peak = max(peak, psutil.Process(process.pid).memory_full_info().uss)
        except psutil.Error:
            break
        time.sleep(0.1)
    assert process.stdout is not None
    said = json.loads(process.stdout.read())
    seconds = time.perf_counter() - started
    return {"faces": said["faces"], "s": round(seconds, 1), "mb": round(peak / 1e6), "file_mb": round(to.stat().st_size / 1e6)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faces", type=int, default=1_000_000)
    folder = Path(tempfile.mkdtemp())
    try:
        run, table = made(folder, parser.parse_args().faces)
        figures = {
            f"{name} to {kind}": timed(labels, folder / f"faces.{kind}")
            for name, labels in (("run", run), ("table", table))
            for kind in ("csv", "parquet")
        }
        figures["table to csv, by --where"] = timed(
            table, folder / "some.csv", "--where", "expression = 'happy' and not uncertain"
        )
        print(json.dumps(figures))
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
