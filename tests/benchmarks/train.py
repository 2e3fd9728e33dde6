"""Training throughput of Ray Train against a plain torch loop on the same data and machine: one JSON line.

    python tests/benchmarks/train.py [--data DATASET] [--recipe fer2013-small] [--epochs 2] [--workers 1 2]

Without --data, FER-2013 is ingested from ../shared. The plain loop is the dozen lines of `plain_loop`: the recipe's network,
augmentation, optimiser and precision on tensors in memory, all cores of the machine, no checkpoint, no average of the weights,
in a separate process. Ray Train runs `fer_pipeline.jobs.train` with the data held by the workers (`device`), then streamed
from Ray Data (`stream`). Figures are images/s of the training passes, without validation and start-up: the median over the
epochs except the first, which fills caches.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SHARED = Path(__file__).resolve().parents[3] / "shared"


def plain_loop(data: str, recipe_name: str, epochs: int) -> list[float]:
    """Return images/s of each epoch."""
    import torch
    import torch.nn.functional as F

    from fer_pipeline.datasets.training_data import SplitReader
    from fer_pipeline.models.augmentation import augment
    from fer_pipeline.models.networks import build
    from fer_pipeline.models.recipe import load_recipe

    torch.set_num_threads(os.cpu_count() or 1)
    recipe = load_recipe(recipe_name)
    split = SplitReader(data, recipe.train_split, recipe.network, tuple(range(7))).load()
    images, labels, batch = torch.from_numpy(split.images), torch.from_numpy(split.labels), recipe.training.batch_size
    network = build(recipe.network, 7).to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(network.parameters(), 0.01, momentum=0.9, nesterov=True, weight_decay=5e-4)
    generator = torch.Generator().manual_seed(0)
    speeds = []
    for _ in range(epochs):
        started, order = time.perf_counter(), torch.randperm(len(labels)).split(batch)[:-1]
        for indices in order:
            inputs = augment(images[indices], recipe.augmentation, generator)
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=recipe.training.precision == "bf16"):
                logits = network(inputs).float()
            loss = F.cross_entropy(logits, labels[indices], label_smoothing=recipe.training.label_smoothing)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        speeds.append(len(order) * batch / (time.perf_counter() - started))
    return speeds


def under_ray(data: str, recipe: str, epochs: int, workers: int, data_from: str) -> list[float]:
    """Return images/s of each epoch of `fer-pipeline train`."""
    import tomllib

    from fer_pipeline.models.recipe import Recipe, load_recipe, recipe_toml

    with tempfile.TemporaryDirectory() as folder:
        values = tomllib.loads(recipe_toml(load_recipe(recipe)))
        values["training"]["epochs"] = epochs
        Path(folder, "bench.toml").write_text(recipe_toml(Recipe.model_validate(values | {"name": "bench"})))
        command = [sys.executable, "-m", "fer_pipeline.cli", "train", f"{folder}/bench.toml", "--data", data]
        command += ["--out", f"{folder}/model", "--num-workers", str(workers), "--data-from", data_from]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=sys.stderr)
        return [epoch["images_per_s"] for epoch in json.loads(Path(folder, "model", "history.json").read_text())]


def ingested(folder: str) -> str:
    """Return FER-2013 as a dataset."""
    source = str(SHARED / "data" / "fer2013")
    command = [sys.executable, "-m", "fer_pipeline.cli", "ingest", source, "--layout", "parquet", "--out", f"{folder}/data"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return f"{folder}/data"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data")
    parser.add_argument("--recipe", default="fer2013-small")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--plain", action="store_true", help=argparse.SUPPRESS)  # the plain loop's own process
    options = parser.parse_args()
    if options.plain:
        print(json.dumps(plain_loop(options.data, options.recipe, options.epochs)))
        return
    with tempfile.TemporaryDirectory() as folder:
        data = options.data or ingested(folder)

        def median(speeds: list[float]) -> float:
            return round(statistics.median(speeds[1:] or speeds), 1)

        def plain() -> float:
            command = [sys.executable, __file__, "--plain", "--data", data, "--recipe", options.recipe]
            command += ["--epochs", str(options.epochs)]
            return median(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))

        before = plain()
        device = {
            workers: median(under_ray(data, options.recipe, options.epochs, workers, "device")) for workers in options.workers
        }
        stream = median(under_ray(data, options.recipe, options.epochs, 1, "stream"))
        after = plain()
    loop = round((before + after) / 2, 1)
    figures = {
        "plain_images_per_s": loop,
        "plain_before_and_after": [before, after],
        "device_images_per_s": device,
        "device_ratio": {workers: round(speed / loop, 3) for workers, speed in device.items()},
        "stream_images_per_s": stream,
        "stream_ratio": round(stream / loop, 3),
        "recipe": options.recipe,
        "epochs": options.epochs,
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
