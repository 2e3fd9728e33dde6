from typing import Annotated

from pydantic import BaseModel

from fer_pipeline.cli.commands import FLAT
from fer_pipeline.local.export import ExportConfig, run


def export(config: Annotated[ExportConfig, FLAT]) -> BaseModel:
    return run(config)
