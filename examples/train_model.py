"""Ingest an image folder and train a small network on it from Python: python examples/train_model.py IMAGES FOLDER"""

import sys
from pathlib import Path

from fer_pipeline.jobs import ingest
from fer_pipeline.jobs.ingest import IngestConfig
from fer_pipeline.jobs.train import job as train
from fer_pipeline.jobs.train.config import TrainConfig

RECIPE = """
extends = "fer2013-small"
[training]
epochs = 3
batch_size = 32
"""


def main(images: str, folder: str) -> None:
    data, recipe = f"{folder}/data", Path(folder) / "short.toml"
    dataset = ingest.run(IngestConfig(source=images, out=data, validation_share=0.2))
    print(f"{dataset.samples} samples, {dataset.dropped} dropped, {dataset.quarantined} quarantined")
    recipe.write_text(RECIPE)
    result = train.run(TrainConfig(recipe=str(recipe), data=data, out=f"{folder}/model", allow_missing_classes=True))
    print(f"{result.validation_accuracy:.3f} validation accuracy after epoch {result.selected_epoch}: {result.out}")


if __name__ == "__main__":
    main(*sys.argv[1:])
