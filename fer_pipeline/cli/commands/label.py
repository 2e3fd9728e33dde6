from typing import Annotated

from pydantic import BaseModel

from fer_pipeline.cli.commands import FLAT, Cluster
from fer_pipeline.jobs.cluster import ClusterConfig
from fer_pipeline.jobs.label.job import LabelConfig, run


def label(config: Annotated[LabelConfig, FLAT], cluster: Cluster = ClusterConfig()) -> BaseModel:
    return run(config, cluster)
