"""Open exports with the tools' own packages, in their own environment: `python in_tools.py COCO TASKS CONFIG`. Prints JSON."""

import json
import sys
from pathlib import Path

from label_studio_sdk.label_interface import LabelInterface
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval


def main() -> None:
    coco = COCO(sys.argv[1])
    annotations = coco.loadAnns(coco.getAnnIds())
    boxes = [{key: one[key] for key in ("image_id", "category_id", "bbox", "score")} for one in annotations]
    judged = COCOeval(coco, coco.loadRes(boxes), "bbox")
    judged.evaluate()
    judged.accumulate()
    judged.summarize()
    interface = LabelInterface(Path(sys.argv[3]).read_text())
    interface.validate()
    tasks = json.loads(Path(sys.argv[2]).read_text())
    facts = {
        "faces": len(annotations),
        "images": len(coco.imgs),
        "precision_of_itself": float(judged.stats[1]),
        "tasks": sum(interface.validate_task({"data": one["data"]}) for one in tasks),
        "predictions": sum(interface.validate_prediction(said) for one in tasks for said in one["predictions"]),
    }
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
