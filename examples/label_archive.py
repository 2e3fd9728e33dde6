"""Label a folder of photos from Python and count the apparent expressions: python examples/label_archive.py PHOTOS RUN"""

import sys

import pyarrow.parquet as pq

from fer_pipeline.engine.connect import ClusterConfig
from fer_pipeline.jobs.label.config import LabelConfig
from fer_pipeline.jobs.label.job import run


def main(photos: str, out: str) -> None:
    record = run(LabelConfig(source=photos, out=out), ClusterConfig(num_cpus=2))
    assert record.result is not None
    print(f"{record.records} images, {record.result.faces} faces, {record.result.failed} failed: {out}/report.html")
    faces = pq.read_table(f"{out}/faces", columns=["expression", "uncertain"])
    certain = faces.filter([not uncertain for uncertain in faces["uncertain"].to_pylist()])
    for row in certain.group_by("expression").aggregate([([], "count_all")]).to_pylist():
        print(f"{row['count_all']:6d} {row['expression']}")


if __name__ == "__main__":
    main(*sys.argv[1:])
