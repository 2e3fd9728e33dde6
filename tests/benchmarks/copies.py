"""How many made copies `copies` finds among many images, and how many of its pairs are no copies. Prints JSON.

    python -m tests.benchmarks.copies [--images 100000] [--copies 1000]

The images are photos and scenes, the faces of FER-2013 (48 px), and cells of the photos and scenes (disjoint, of 96 to 320 px, at
six scales; many show a wall or a sky), each by its content once. Of the photos, and of `--copies` of the others, one copy of
each kind is made: half its size, encoded again as a JPEG of quality 30, half as bright, mirrored, and without 2 % of its width at
each side. A pair of images in one group that is not made is a copy that was there if the pixels of both (mirrored, if that fits
better) correlate by .95 or more at 48 px, else it is wrong.
"""

import argparse
import hashlib
import json
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from itertools import combinations, islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fer_pipeline.faces.phash import perceptual_hash
from fer_pipeline.faces.pixels import Pixels
from fer_pipeline.labelling.copies import copies_among
from tests.benchmarks.label import SHARED

CELLS_PX, SIMILAR = (96, 160, 224, 320), 0.95


def _jpeg(image: Pixels) -> Pixels:
    return np.asarray(cv2.imdecode(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 30])[1], cv2.IMREAD_COLOR), np.uint8)


KINDS: dict[str, Callable[[Pixels], Pixels]] = {
    "half the size": lambda image: np.asarray(cv2.resize(image, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA), np.uint8),
    "encoded again": _jpeg,
    "darker": lambda image: np.asarray(image // 2, np.uint8),
    "mirrored": lambda image: image[:, ::-1],
    "cut by 2 %": lambda image: image[:, round(0.02 * image.shape[1]) : round(0.98 * image.shape[1])],
}


PHOTOS = sorted([*(SHARED / "data/photos").rglob("*.jp*g"), *(SHARED / "data/scenes").rglob("*.jp*g")])


def opened(file: Path) -> Pixels:
    photo = cv2.imread(str(file))
    assert photo is not None
    return np.asarray(photo, np.uint8)


def images_of() -> Iterator[tuple[str, Pixels]]:
    """Yield distinct images, each with its kind."""
    seen = set[bytes]()

    def fresh(image: Any) -> bool:
        key = hashlib.sha256(image.tobytes()).digest()
        is_fresh = key not in seen
        seen.add(key)
        return is_fresh

    yield from (("photos", photo) for photo in map(opened, PHOTOS) if fresh(photo))
    for name in ("training", "public_test"):
        for png in pq.read_table(SHARED / f"data/fer2013/{name}.parquet", columns=["png"])["png"].to_pylist():
            face = np.asarray(cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR), np.uint8)
            if fresh(face):
                yield "faces of 48 px", face
    for scale in (1.0, 0.84, 0.7, 0.58, 0.45, 0.35):
        for cell in CELLS_PX:
            for file in PHOTOS:
                photo = np.asarray(cv2.resize(opened(file), None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA), np.uint8)
                for y in range(0, photo.shape[0] - cell + 1, cell):
                    for x in range(0, photo.shape[1] - cell + 1, cell):
                        if fresh(part := np.ascontiguousarray(photo[y : y + cell, x : x + cell])):
                            yield "cells", np.asarray(part, np.uint8)


def _vector(image: Pixels) -> "np.ndarray[tuple[int, ...], np.dtype[np.float32]]":
    grey = cv2.resize(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY), (48, 48), interpolation=cv2.INTER_AREA).astype(np.float32)
    return np.asarray((grey - grey.mean()) / max(1e-6, float(grey.std())))


def is_similar(one: Pixels, other: Pixels) -> bool:
    """Tell whether two images look alike, as they are or mirrored."""
    first, second = _vector(one), _vector(other)
    return max(float((first * second).mean()), float((first[:, ::-1] * second).mean())) >= SIMILAR


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--copies", type=int, default=1000)
    options = parser.parse_args()
    pictures, names, hash_s = list[Pixels](), list[str](), 0.0
    of_kind = list[str]()
    for number, (kind, image) in enumerate(islice(images_of(), options.images)):
        of_kind.append(kind)
        pictures.append(image)
        names.append(f"{number:06d}")
    photos = of_kind.count("photos")
    originals = [
        *range(photos),
        *(photos + np.random.default_rng(0).permutation(len(pictures) - photos)[: options.copies]).tolist(),
    ]
    made = {}
    for original in originals:
        for kind, make in KINDS.items():
            made[f"{original:06d} {kind}"] = (names[original], kind)
            names.append(f"{original:06d} {kind}")
            pictures.append(make(pictures[original]))
    started = time.perf_counter()
    hashes = [perceptual_hash(picture).hex() for picture in pictures]
    hash_s = time.perf_counter() - started
    rows = pa.table(
        {
            "path": names, "uri": names, "member": pa.nulls(len(names), pa.string()), "time_ms": pa.nulls(len(names), pa.int64()),
            "width": [one.shape[1] for one in pictures], "height": [one.shape[0] for one in pictures],
            "size_bytes": [one.nbytes for one in pictures], "content_sha256": names, "phash": hashes,
        }
    )  # fmt: skip
    started = time.perf_counter()
    found = copies_among(rows)
    copies_s = time.perf_counter() - started
    groups = defaultdict[int, list[str]](list)
    for row in found.to_pylist():
        groups[row["group"]].append(row["path"])
    group_of = {name: number for number, group in groups.items() for name in group}
    tried, right = Counter[tuple[str, str]](), Counter[tuple[str, str]]()
    for name, (original, kind) in made.items():
        what = of_kind[int(original)], kind
        tried[what] += 1
        right[what] += group_of.get(name, -1) == group_of.get(original, -2)
    by_name, pairs = dict(zip(names, pictures, strict=True)), Counter[str]()
    for group in groups.values():
        for one, other in combinations(group, 2):
            is_made = made.get(one, (one,))[0] == made.get(other, (other,))[0]
            alike = is_made or is_similar(by_name[one], by_name[other])
            pairs["made" if is_made else "there before" if alike else "wrong"] += 1
    report = {
        "images": len(names), "groups": len(groups), "largest": max(map(len, groups.values())), "pairs": dict(pairs),
        "recall": {", ".join(what): round(right[what] / count, 4) for what, count in sorted(tried.items())},
        "hash_ms": round(1000 * hash_s / len(names), 3), "copies_s": round(copies_s, 1),
    }  # fmt: skip
    print(json.dumps(report))


if __name__ == "__main__":
    main()
