"""Throughput on a GPU without Ray: each part alone, and whole shards end to end. One JSON line (make bench-gpu).

    python -m tests.benchmarks.gpu [--device cuda] [--images 2000] [--megapixels 1.0] [--threads 16] [--precision bf16]

Photos are JPEGs of noise and drawn shapes beside real faces of ../shared, in memory-backed files; a shard has 64. The classifier
uses the embedded network. `resnet50` is measured with random weights at 224 px, and trained with the recipe `resnet50-224` and
its augmentation, compared with the network alone on one batch. Needs torch, torchvision, OpenCV, pyarrow, onnx,
pydantic and s3fs.
"""

import argparse
import json
import os
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F

from fer_pipeline.archive.record import Record
from fer_pipeline.base import stage_clock
from fer_pipeline.faces.classify import Classifier
from fer_pipeline.faces.decode import decode
from fer_pipeline.faces.detectors import resolve_detector
from fer_pipeline.faces.detectors.torch_yunet import TorchYuNet
from fer_pipeline.faces.detectors.yunet import WEIGHTS
from fer_pipeline.labelling.device_labeller import DeviceLabeller
from fer_pipeline.labelling.labeller import LabelSettings
from fer_pipeline.labelling.schemas import MANIFEST
from fer_pipeline.models.bundle import EMBEDDED, read_bundle
from fer_pipeline.models.labelled_images import LabelledImages
from fer_pipeline.models.networks import build
from fer_pipeline.models.recipe import load_recipe
from fer_pipeline.models.training.feed import Resident
from fer_pipeline.models.training.optimizer import make_optimizer
from fer_pipeline.models.training.trainer import Epoch, Trainer
from tests.benchmarks.classify import bundle_of, utilisation

SHARED = Path(__file__).resolve().parents[3] / "shared"
SHARD = 64


def photos(folder: Path, count: int, megapixels: float) -> list[Path]:
    """Write `count` different JPEGs. Each is a scene of ../shared, scaled to `megapixels`, shifted, with noise."""
    scenes = [cv2.imread(str(file)) for file in sorted((SHARED / "data" / "scenes" / "images").iterdir())[:50]]
    rng, files = np.random.default_rng(0), []
    for number in range(count):
        scene = np.asarray(scenes[number % len(scenes)], np.uint8)
        scale = float(np.sqrt(megapixels * 1e6 / (scene.shape[0] * scene.shape[1])))
        scene = np.asarray(cv2.resize(scene, None, fx=scale, fy=scale), np.uint8)
        moved = np.roll(scene, int(rng.integers(0, 40)), axis=1)
        noisy = cv2.add(moved, rng.integers(0, 12, moved.shape, np.uint8))
        files.append(folder / f"{number:06d}.jpg")
        cv2.imwrite(str(files[-1]), noisy, [cv2.IMWRITE_JPEG_QUALITY, 88])
    return files


def rate(function: Callable[[], Any], items: int, device: str, times: int = 3) -> float:
    """Return items per second, the median of several calls after one warm-up call."""
    function()
    seconds = []
    for _ in range(times):
        started = time.perf_counter()
        function()
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return round(items / sorted(seconds)[len(seconds) // 2], 1)


def end_to_end(files: list[Path], options: argparse.Namespace) -> dict[str, Any]:
    """Label the files in shards, three at once as an actor does. Return images per second and the time of each thread step."""
    blank = dict.fromkeys(MANIFEST.names)
    rows = [blank | asdict(Record(str(file))) | {"record_id": i, "shard": i // SHARD} for i, file in enumerate(files)]
    table = pa.Table.from_pylist(rows, schema=MANIFEST)
    shards = [table.slice(start, SHARD) for start in range(0, len(table), SHARD)]
    settings = LabelSettings(640, 0.6, 10**8, 10**9, options.precision, 0.5)
    detector = resolve_detector("yunet", str(SHARED / "models" / WEIGHTS.name))
    labeller = DeviceLabeller(detector, read_bundle(EMBEDDED), settings, options.device, options.threads)
    labeller(shards[0])
    stage_clock.take()
    stop, busy = threading.Event(), list[int]()
    if options.device == "cuda":
        threading.Thread(target=utilisation, args=(stop, busy), daemon=True).start()
    started = time.perf_counter()
    with ThreadPoolExecutor(3) as callers:
        faces = sum(len(row) for done in callers.map(labeller, shards) for row in done["faces"].to_pylist())
    seconds = time.perf_counter() - started
    stop.set()
    return {
        "images_per_s": round(len(files) / seconds, 1),
        "faces_per_image": round(faces / len(files), 2),
        "ms_per_image_by_stage": {name: round(1e3 * spent / len(files), 3) for name, spent in stage_clock.take().items()},
        "gpu_utilisation": round(sum(busy) / len(busy)) if busy else None,
    }


def training(recipe_name: str, steps: int, options: argparse.Namespace) -> dict[str, float]:
    """Return images/s of the trainer on random images in device memory, and of the same network on one batch of them."""
    recipe, device = load_recipe(recipe_name), torch.device(options.device)
    config = recipe.training.model_copy(update={"epochs": 3, "batch_size": options.batch, "precision": options.precision})
    network = build(recipe.network, 7).to(device)
    generator = torch.Generator().manual_seed(0)
    shape = (steps * options.batch, recipe.network.channels, recipe.network.image_px, recipe.network.image_px)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, 7, (len(images),), generator=generator)
    data = LabelledImages(images, labels, torch.zeros(len(images), 0)).to(device)
    trainer = Trainer(network, [1] * 7, config, recipe.augmentation, Resident(data, options.batch), device)
    epochs: list[Epoch] = []
    trainer.fit([data[: options.batch]], epochs.append)

    batch, targets = data.images[: options.batch].float(), data.labels[: options.batch]
    optimizer = make_optimizer(trainer.network.train(), config)

    def plain() -> None:
        for _ in range(steps):
            with torch.autocast(options.device, dtype=torch.bfloat16, enabled=options.precision == "bf16"):
                loss = F.cross_entropy(trainer.network(batch).float(), targets)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

    limit = rate(plain, len(images), options.device)
    ours = epochs[-1].images_per_s
    return {"images_per_s": round(ours, 1), "limit_images_per_s": limit, "ratio": round(ours / limit, 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--megapixels", type=float, default=1.0)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--precision", default="bf16", choices=("fp32", "bf16"))
    parser.add_argument("--batch", type=int, default=256, help="of the training of a ResNet50 at 224 px")
    parser.add_argument("--steps", type=int, default=30, help="of an epoch of it")
    options = parser.parse_args()
    device, rng = options.device, np.random.default_rng(0)
    batch = [rng.integers(0, 256, (480, 640, 3), np.uint8) for _ in range(SHARD)]
    detect = TorchYuNet((SHARED / "models" / WEIGHTS.name).read_bytes(), 0.6, device, options.precision)
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        files = photos(Path(folder), options.images, options.megapixels)
        encoded = [file.read_bytes() for file in files[:SHARD]]
        figures = {
            "on": torch.cuda.get_device_name() if device == "cuda" else f"{torch.get_num_threads()} threads of a CPU",
            "decode_images_per_s_one_thread": rate(lambda: [decode(one, 10**8, 640) for one in encoded], len(encoded), "cpu"),
            "detect_images_per_s": rate(lambda: detect(batch), SHARD, device),
            "end_to_end": end_to_end(files, options),
        }
        for name, count in ((EMBEDDED, 4096), ("resnet50", 512 if device == "cuda" else 16)):
            with tempfile.TemporaryDirectory() as bundle:
                classify = Classifier(read_bundle(bundle_of(name, bundle)), options.precision, device)
            network = classify.card.network
            crops = rng.integers(0, 256, (count, network.channels, network.image_px, network.image_px), np.uint8)
            figures[f"{name}_crops_per_s"] = rate(lambda: classify(crops), count, device)  # noqa: B023 (called at once)
    figures["train_resnet50_224"] = training("resnet50-224", options.steps, options)
    print(json.dumps(figures | vars(options)))


if __name__ == "__main__":
    main()
