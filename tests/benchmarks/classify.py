"""Throughput of the classifier alone, without Ray, on one core or one GPU: one JSON line.

    python -m tests.benchmarks.classify [--model embedded|resnet50|...] [--device cpu|cuda] [--crops 4096] [--precision bf16]

A torchvision name selects that network with random weights, 224 px RGB crops and 8 classes. On a GPU, nvidia-smi reports the
utilisation every 0.1 s during classification.
"""

import argparse
import json
import subprocess
import tempfile
import threading
import time

import numpy as np
import torch

from fer_pipeline.faces.classify import Classifier
from fer_pipeline.models.bundle import EMBEDDED, read_bundle, save_bundle
from fer_pipeline.models.card import ModelCard
from fer_pipeline.models.label_space import AFFECTNET8
from fer_pipeline.models.network_config import NetworkConfig
from fer_pipeline.models.networks import build
from fer_pipeline.models.weights import pack


def bundle_of(name: str, folder: str) -> str:
    """Return the path of the bundle of this name. Create the bundle unless it is the embedded one."""
    if name == EMBEDDED:
        return name
    network = NetworkConfig(architecture=name, channels=3, image_px=224)
    card = ModelCard(name=name, network=network, label_space=AFFECTNET8)
    save_bundle(folder, pack(build(network, len(AFFECTNET8.classes)), card))
    return folder


def utilisation(stop: threading.Event, found: list[int]) -> None:
    query = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits"]
    while not stop.wait(0.1):
        found.append(int(subprocess.run(query, capture_output=True, text=True, check=True).stdout.split()[0]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=EMBEDDED)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--crops", type=int, default=4096)
    parser.add_argument("--precision", default="bf16", choices=("fp32", "bf16"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        classify = Classifier(read_bundle(bundle_of(options.model, folder)), options.precision, options.device)
    network = classify.card.network
    shape = (options.crops, network.channels, network.image_px, network.image_px)
    crops = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    classify(crops[: classify.batches.size])
    stop, busy = threading.Event(), list[int]()
    if options.device == "cuda":
        threading.Thread(target=utilisation, args=(stop, busy), daemon=True).start()
    rates = []
    for _ in range(3):
        started = time.perf_counter()
        classify(crops)
        rates.append(options.crops / (time.perf_counter() - started))
    stop.set()
    name = torch.cuda.get_device_name() if options.device == "cuda" else "one core"
    figures = {
        "crops_per_s": [round(rate) for rate in rates],
        "on": name,
        "gpu_utilisation": round(sum(busy) / len(busy)) if busy else None,
    }
    print(json.dumps(figures | vars(options)))


if __name__ == "__main__":
    main()
