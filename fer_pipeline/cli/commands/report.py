from typing import Annotated

from pydantic import BaseModel

from fer_pipeline.cli.commands import FLAT
from fer_pipeline.local.report import ReportConfig, run


def report(config: Annotated[ReportConfig, FLAT]) -> BaseModel:
    return run(config)
