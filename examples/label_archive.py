"""Label a folder of photos from Python and count the apparent expressions: python examples/label_archive.py PHOTOS RUN"""

import sys

import fer_pipeline as fer


def main(photos: str, out: str) -> None:
    run = fer.label(photos, out, num_cpus=2)
    result = run.record.result
    assert result is not None
    print(f"{run.record.records} images, {result.faces} faces, {result.failed} failed: {run.report}")
    for row in run.faces(certain=True).group_by("expression").aggregate([([], "count_all")]).to_pylist():
        print(f"{row['count_all']:6d} {row['expression']}")


if __name__ == "__main__":
    main(*sys.argv[1:])
