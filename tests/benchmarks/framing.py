"""Difference between the crop that labelling uses and the crop that training uses of the same face: one JSON line.

    python -m tests.benchmarks.framing [PHOTOS ...]

Training sees a face cut at --crop-px from the whole photo and shrunk to the network's input; labelling decodes large JPEGs at a
reduced size and cuts at the input's size. `detection` is the difference for the same detection, `all` the total.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from fer_pipeline.faces.align import align, cut_face, resize_whole
from fer_pipeline.faces.classify import Classifier
from fer_pipeline.faces.decode import decode
from fer_pipeline.faces.detectors import DETECTORS, load_detector, resolve_detector
from fer_pipeline.models.bundle import EMBEDDED, read_bundle
from tests.benchmarks.label import SHARED

DETECT_PX = 640


def compared(training: Any, labelling: Any, classify: Classifier) -> dict[str, float]:
    """Return the difference of crops uint8 (n, channels, side, side) in grey levels and in labels."""
    one, other = classify(training), classify(labelling)
    return {
        "faces": len(training),
        "mean_grey_levels": round(float(np.abs(training.astype(int) - labelling).mean()), 2),
        "same_label": round(float((one.argmax(1) == other.argmax(1)).mean()), 4),
        "mean_difference_of_confidence": round(float(np.abs(one.max(1) - other.max(1)).mean()), 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    folders = [str(SHARED / "data" / name) for name in ("photos", "groups", "expressions", "scenes")]
    parser.add_argument("photos", nargs="*", default=folders)
    parser.add_argument("--crop-px", type=int, default=224, help="side at which an ingest cuts faces")
    options = parser.parse_args()
    bundle = read_bundle(EMBEDDED)
    card, classify = bundle.card, Classifier(bundle, "fp32")
    detect = load_detector(resolve_detector("auto"), DETECT_PX, DETECTORS["yunet"].threshold)
    training, same_detection, labelling, matched = [], [], [], []
    for path in (path for folder in options.photos for path in sorted(Path(folder).rglob("*.jpg"))):
        whole, reduced = (decode(path.read_bytes(), 10**8, enough).pixels for enough in (None, DETECT_PX))
        faces, again = detect(whole), detect(reduced)
        crops = [
            resize_whole(cut_face(whole, faces, index, card.framing, options.crop_px), card.network)
            for index in range(len(faces))
        ]
        scale = whole.shape[1] / reduced.shape[1]
        same_detection += list(align(reduced, faces.scaled(1 / scale), card.network, card.framing))
        training += crops
        found = align(reduced, again, card.network, card.framing)
        for index, box in enumerate(again.boxes_xywh * scale):
            near = np.abs(faces.boxes_xywh - box).max(1) if len(faces) else np.array([np.inf])
            if near.min() < 0.3 * box[2]:
                labelling.append(found[index])
                matched.append(crops[int(near.argmin())])
    result = {
        "detection": compared(np.array(training), np.array(same_detection), classify),
        "all": compared(np.array(matched), np.array(labelling), classify),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
