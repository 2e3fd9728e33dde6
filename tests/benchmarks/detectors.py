"""Recall and cost of the detectors on real scenes, by size: a table for `docs/detectors.md`, then one JSON line.

    python -m tests.benchmarks.detectors

100 WIDER FACE validation scenes (../shared/data/scenes), one core, decoded beforehand: ms/image is resizing and detection.
A face counts as found if a box has an IoU of at least .4 with it. `recall >= 40 px` counts faces whose shorter side has at least
40 px in the 1,024 px scene; the other columns use the shorter side after resizing, with the number of faces in brackets. A box
is false if it matches no face.
"""

import json
import time
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from fer_pipeline.faces.detectors import DETECTORS, load_detector, resolve_detector
from tests.benchmarks.label import SHARED

IOU, SCORED_PX = 0.4, 40
BINS = ((0, 12), (12, 16), (16, 24), (24, 40), (40, 10_000))
TRIED = [("yunet", size) for size in (320, 416, 480, 640, 800, 1024)] + [("mtcnn", size) for size in (416, 640)]

Floats = NDArray[np.float64]


def overlaps(a: Floats, b: Floats) -> Floats:
    """Return the IoU (n, m) of boxes_xyxy (n, 4) and (m, 4)."""
    low, high = np.maximum(a[:, None, :2], b[None, :, :2]), np.minimum(a[:, None, 2:], b[None, :, 2:])
    shared = np.prod(np.clip(high - low, 0, None), 2)
    areas = [np.prod(boxes[:, 2:] - boxes[:, :2], 1) for boxes in (a, b)]
    return np.asarray(shared / (areas[0][:, None] + areas[1][None] - shared + 1e-9))


def measure(name: str, size_px: int, scenes: list[tuple[Any, Floats]]) -> dict[str, Any]:
    detect = load_detector(resolve_detector(name), size_px, DETECTORS[name].threshold)
    detect(scenes[0][0])
    seconds, false, found, sides, scored = 0.0, 0, [], [], []
    for pixels, truth in scenes:
        started = time.perf_counter()
        faces = detect(pixels)
        seconds += time.perf_counter() - started
        xywh = faces.boxes_xywh.astype(np.float64)
        iou = overlaps(truth, np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], 1))
        side = np.minimum(truth[:, 2] - truth[:, 0], truth[:, 3] - truth[:, 1])
        found += (iou.max(1, initial=0) >= IOU).tolist()
        false += int((iou.max(0, initial=0) < IOU).sum())
        sides += (side * min(1, size_px / max(pixels.shape[:2]))).tolist()
        scored += (side >= SCORED_PX).tolist()
    hits, after, large = np.array(found), np.array(sides), np.array(scored)
    by_size = {f"{a}-{b} px" if b < 10_000 else f">= {a} px": hits[(after >= a) & (after < b)] for a, b in BINS}
    return {
        "detector": name,
        "size_px": size_px,
        "ms_per_image": round(1000 * seconds / len(scenes), 1),
        "recall": round(float(hits[large].mean()), 3),
        "false_per_image": round(false / len(scenes), 2),
        "by_size": {label: [round(float(some.mean()), 2), len(some)] if len(some) else None for label, some in by_size.items()},
    }


def main() -> None:
    cv2.setNumThreads(1)
    folder = SHARED / "data" / "scenes"
    truth = json.loads((folder / "boxes.json").read_text())
    scenes = [
        (cv2.imread(str(folder / "images" / name)), np.array(entry["boxes_xyxy"], np.float64).reshape(-1, 4))
        for name, entry in truth.items()
    ]
    results = [measure(name, size, scenes) for name, size in TRIED]
    labels = list(results[0]["by_size"])
    print(f"| detector | size | ms/image | recall >= {SCORED_PX} px | false/image | {' | '.join(labels)} |")
    print("|---|--:|--:|--:|--:|" + "--:|" * len(labels))
    for one in results:
        cells = [f"{cell[0]:.2f} ({cell[1]})" if cell else "-" for cell in one["by_size"].values()]
        figures = f"{one['ms_per_image']} | {one['recall']:.3f} | {one['false_per_image']:.2f}"
        print(f"| {one['detector']} | {one['size_px']} | {figures} | {' | '.join(cells)} |")
    print(json.dumps(results))


if __name__ == "__main__":
    main()
