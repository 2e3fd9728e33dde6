from typing import Annotated

from pydantic import BaseModel

from fer_pipeline.cli.commands import FLAT
from fer_pipeline.local.predict import PredictConfig, run


def predict(image: str, *more: str, config: Annotated[PredictConfig, FLAT] = PredictConfig()) -> BaseModel:
    return run((image, *more), config)
