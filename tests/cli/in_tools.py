"""Open exports with the tools' own packages, in their own environment: `python in_tools.py FOLDER`.

FOLDER holds `coco.json`, `label-studio.json`, `config.xml`, and the folders `cvat`, `fiftyone` and `hf`. Writes `seen.json`, what
each tool holds then, and what FiftyOne and datumaro write as COCO, `from-fiftyone.json` and `from-datumaro.json`.
"""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fiftyone.utils.coco as fouc
from datasets import load_dataset
from datumaro import Dataset
from label_studio_sdk.label_interface import LabelInterface
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

Seen = tuple[str, list[float], str, float]
"""Name of the image, its size and the box in pixels, class and score of a face."""


def in_pycocotools(folder: Path) -> Iterator[Seen]:
    coco = COCO(str(folder / "coco.json"))
    annotations = coco.loadAnns(coco.getAnnIds())
    boxes = [{key: one[key] for key in ("image_id", "category_id", "bbox", "score")} for one in annotations]
    judged = COCOeval(coco, coco.loadRes(boxes), "bbox")
    judged.evaluate()
    judged.accumulate()
    judged.summarize()
    assert judged.stats[1] == 1.0
    for one in annotations:
        image = coco.imgs[one["image_id"]]
        size = [image["width"], image["height"]]
        yield image["file_name"], [*size, *one["bbox"]], coco.cats[one["category_id"]]["name"], one["score"]


def in_label_studio(folder: Path) -> Iterator[Seen]:
    interface = LabelInterface((folder / "config.xml").read_text())
    interface.validate()
    for task in json.loads((folder / "label-studio.json").read_text()):
        assert interface.validate_task({"data": task["data"]})
        for said in task["predictions"]:
            assert interface.validate_prediction(said)
            for one in said["result"]:
                size, value = [one["original_width"], one["original_height"]], one["value"]
                sides = [value[name] * size[place % 2] / 100 for place, name in enumerate(("x", "y", "width", "height"))]
                name = task["data"]["path"] + f"@{task['data'].get('time_ms')}"
                yield name, [*size, *sides], value["rectanglelabels"][0], one["score"]


def in_fiftyone(folder: Path) -> Iterator[Seen]:
    """FiftyOne's importer and exporter, without its database, which is not on the registry."""
    data = folder / "fiftyone/data"
    reader = fouc.COCODetectionDatasetImporter(dataset_dir=str(folder / "fiftyone"), label_types=["detections"])
    writer = fouc.COCODetectionDatasetExporter(export_dir=str(folder / "back"), export_media=False, rel_dir=str(data))
    with reader, writer:
        for path, about, found in reader:
            found = found["detections"] if isinstance(found, dict) else found
            writer.export_sample(path, found, metadata=about)
            size = [about.width, about.height]
            for one in found.detections:
                box = [side * size[place % 2] for place, side in enumerate(one.bounding_box)]
                yield str(Path(path).relative_to(data)), [*size, *box], one.label, one.confidence
    (folder / "back/labels.json").rename(folder / "from-fiftyone.json")


def in_datumaro(folder: Path) -> Iterator[Seen]:
    dataset = Dataset.import_from(str(folder / "cvat"), "coco")
    names = [one.name for one in dataset.categories()[next(iter(dataset.categories()))].items]
    dataset.export(str(folder / "datumaro"), "coco_instances", save_media=False, allow_attributes=True)
    (folder / "datumaro/annotations/instances_default.json").rename(folder / "from-datumaro.json")
    for item in dataset:
        height, width = item.media.size
        name = str(Path(item.media.path).relative_to(folder / "cvat/images/default"))
        for one in item.annotations:
            yield name, [width, height, *one.get_bbox()], names[one.label], one.attributes["score"]


def in_datasets(folder: Path) -> Iterator[Seen]:
    for row in load_dataset("imagefolder", data_dir=str(folder / "hf"), split="train"):
        faces = row["faces"]
        for box, label, score in zip(faces["bbox"], faces["expression"], faces["confidence"], strict=True):
            yield f"{row['uri']}|{row['member']}|{row['time_ms']}", [*row["image"].size, *box], label, score


TOOLS: tuple[Callable[[Path], Iterator[Seen]], ...] = (*(in_pycocotools, in_label_studio, in_fiftyone, in_datumaro, in_datasets),)


def main() -> None:
    folder = Path(sys.argv[1])
    seen: dict[str, Any] = {tool.__name__: list(tool(folder)) for tool in TOOLS}
    (folder / "seen.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    main()
