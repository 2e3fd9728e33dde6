from typing import Annotated

from pydantic import BaseModel

from fer_pipeline.cli.commands import FLAT
from fer_pipeline.local.sample_archive import SampleArchiveConfig, run


def sample_archive(config: Annotated[SampleArchiveConfig, FLAT]) -> BaseModel:
    return run(config)
