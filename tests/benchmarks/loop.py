"""The loop of corrections: a model that never saw one kind of faces, 300 answers about such faces, and a training on them.

    python -m tests.benchmarks.loop --kind turned|dark|small --work DIR [--epochs 12] [--answers 300] [--weights 1,4,16]

The faces are FER-2013's Training images. Those of the kind (a tenth of all) are kept from the first training: one half is an
archive, which is labelled, reviewed by picks (answered by the labels of FER-2013) and ingested; the other half judges. Each seed
picks anew and trains `--more` epochs further, with the corrections and, to compare, without. Prints JSON.
"""

import argparse
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

import fer_pipeline as fer
from fer_pipeline.api.labels import Labels, open_labels
from fer_pipeline.api.reviews import picks_of
from fer_pipeline.cli import review
from fer_pipeline.cli.review import CorrectConfig
from fer_pipeline.faces.detectors import load_detector, resolve_detector
from fer_pipeline.jobs import evaluate, ingest
from fer_pipeline.jobs.evaluate import EvaluateConfig
from fer_pipeline.jobs.ingest import IngestConfig
from fer_pipeline.jobs.train import job as train
from fer_pipeline.jobs.train.config import TrainConfig
from tests.benchmarks.label import SHARED

SHARE = 0.1
"""Share of all faces that are of the kind."""
Images = NDArray[np.uint8]
MORE = """
extends = "fer2013-small-tuned"
name = "more"
[training]
learning_rate = 0.02
seed = {seed}
"""


def darkness(images: Images) -> NDArray[np.float64]:
    return np.asarray(-images.mean((1, 2)), np.float64)


def turn(images: Images) -> NDArray[np.float64]:
    """Return the nose's distance from the middle between the eyes, in distances of the eyes; NaN without a face."""
    detector, found = load_detector(resolve_detector("yunet", None), 144, 0.3), np.full(len(images), np.nan)
    for index, image in enumerate(images):
        large = cv2.resize(image, (96, 96), interpolation=cv2.INTER_CUBIC)
        bordered = cv2.copyMakeBorder(large, 24, 24, 24, 24, cv2.BORDER_REPLICATE)
        faces = detector(np.asarray(cv2.cvtColor(bordered, cv2.COLOR_GRAY2BGR), np.uint8))
        if len(faces):
            right, left, nose = faces.attributes["landmarks"][faces.scores.argmax()][:3]
            axis = left - right
            found[index] = abs(float((nose - (right + left) / 2) @ axis)) / max(float(axis @ axis), 1e-6)
    return found


def chance(images: Images) -> NDArray[np.float64]:
    return np.random.default_rng(7).random(len(images))


KINDS: dict[str, Callable[[Images], NDArray[np.float64]]] = {"turned": turn, "dark": darkness, "small": chance}


def shrunk(image: Images) -> Images:
    return np.asarray(cv2.resize(cv2.resize(image, (12, 12), interpolation=cv2.INTER_AREA), (48, 48)), np.uint8)


def write(images: Images, names: list[str], folder: Path, split: str | None) -> None:
    """Write pictures as `split/class/number.png`, or as `number.png` whose name does not tell the class."""
    for number, (image, name) in enumerate(zip(images, names, strict=True)):
        path = folder / split / name / f"{number}.png" if split else folder / f"{number:05d}.png"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), image)


def prepare(kind: str, work: Path) -> list[str]:
    """Write the datasets `base` and `of_kind` and the archive `pool`. Return the classes of the pool's images."""
    rows = {one: pq.read_table(SHARED / "data" / "fer2013" / f"{one}.parquet") for one in ("training", "public_test")}
    images = {
        one: np.stack([np.asarray(cv2.imdecode(np.frombuffer(png, np.uint8), 0), np.uint8) for png in table["png"].to_pylist()])
        for one, table in rows.items()
    }
    names = {one: table["emotion_name"].to_pylist() for one, table in rows.items()}
    degrees = {one: np.nan_to_num(KINDS[kind](pictures), nan=-np.inf) for one, pictures in images.items()}
    least = np.quantile(degrees["training"], 1 - SHARE)
    chosen = {one: found >= least for one, found in degrees.items()}

    def some(one: str, places: NDArray[np.intp]) -> tuple[Images, list[str]]:
        return images[one][places], [names[one][place] for place in places]

    for one, split in (("training", "train"), ("public_test", "validation")):
        write(*some(one, np.flatnonzero(~chosen[one])), work / "base", split)
    rare = np.random.default_rng(0).permutation(np.flatnonzero(chosen["training"]))
    pool, test = (some("training", half) for half in (rare[::2], rare[1::2]))
    if kind == "small":
        pool, test = (
            (np.stack([shrunk(image) for image in pool[0]]), pool[1]),
            (
                np.stack([shrunk(image) for image in test[0]]),
                test[1],
            ),
        )
    write(*pool, work / "pool", None)
    write(*test, work / "of_kind", "test")
    ingest.run(IngestConfig(source=str(work / "base"), out=str(work / "data")))
    ingest.run(IngestConfig(source=str(work / "of_kind"), out=str(work / "judge")))
    return pool[1]


def answered(run: Path, faces: pa.Table, truth: list[str]) -> None:
    """Add the answer of one person who knows the labels of FER-2013."""
    lines = []
    for face in faces.to_pylist():
        facts = {name: face[name] for name in ("content_sha256", "uri", "member", "time_ms", *"xywh", "chosen")}
        answer = truth[int(Path(face["uri"]).stem)]
        lines.append(json.dumps(facts | {"answer": answer, "by": "fer2013", "at": "2026-11-30T09:00:00Z"}))
    file = run.parent / f"{run.name}.jsonl"
    file.write_text("\n".join(lines))
    review.correct(CorrectConfig(labels=str(run), file=(str(file),)))


def figures_of(model: Path, work: Path) -> dict[str, float]:
    """Return the accuracy on the kind and on all other images, without copies of what was learned."""
    found = {}
    for name, data, split in (("of_kind", "judge", "test"), ("others", "data", "validation")):
        out = f"{model}.{name}"
        config = EvaluateConfig(model=str(model), data=str(work / data), split=split, out=out, precision="fp32")
        figures = evaluate.run(config)
        without = figures.accuracy_without_training_images
        found[name] = round(figures.accuracy if without is None else without, 4)
    return found


def random_of(labels: Labels, count: int, seed: int) -> pa.Table:
    """Return faces at random, as if they were picked."""
    faces = pa.concat_tables(labels.faces_to_find(False, None, False), promote_options="permissive")
    order = np.random.default_rng(seed).permutation(len(faces))[:count]
    chosen = ["random" if place < count // 10 else "margin" for place in range(len(order))]
    return faces.take(pa.array(order)).append_column("chosen", pa.array(chosen))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", choices=list(KINDS), required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--more", type=int, default=3)
    parser.add_argument("--answers", type=int, default=300)
    parser.add_argument("--weights", default="1,4,16")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--random", action="store_true", help="answers about faces at random, of which a tenth is not learned")
    options = parser.parse_args()
    work: Path = options.work
    truth = prepare(options.kind, work)  # and what was done before is not done again
    base, pool, how = work / "before", work / "run", "random" if options.random else "picked"
    data = {"data": str(work / "data")}
    train.run(TrainConfig.model_validate({"recipe": "fer2013-small", "epochs": options.epochs, "out": str(base)} | data))
    fer.label(work / "pool", pool, detector="none", model=str(base))
    facts: dict[str, Any] = {"kind": options.kind, "pool": len(truth), "before": figures_of(base, work)}
    print(json.dumps(facts), flush=True)
    for seed in range(options.seeds):
        run = Path(shutil.copytree(pool, work / f"run-{how}-{seed}"))
        labels = open_labels(str(run))
        faces = random_of(labels, options.answers, seed) if options.random else picks_of(labels, options.answers)
        assert faces is not None
        answered(run, faces, truth)
        mix = str(work / f"{how}-{seed}")
        found = ingest.run(IngestConfig(source=str(run), out=mix, layout="corrections"))
        recipe = work / f"more-{seed}.toml"
        recipe.write_text(MORE.format(seed=seed))
        further: dict[str, Any] = {"seed": seed, "learned": sum(found.counts["train"].values())}
        for weight in (0, *map(int, options.weights.split(","))):
            out = work / f"after-{how}-{seed}-{weight}"
            mixed = {"mix": mix, "mix_weight": weight} if weight else {}
            more = {"recipe": str(recipe), "epochs": options.more, "out": str(out), "initial": str(base)}
            train.run(TrainConfig.model_validate(more | data | mixed))
            further[f"weight {weight}"] = figures_of(out, work)
        print(json.dumps(further), flush=True)


if __name__ == "__main__":
    main()
