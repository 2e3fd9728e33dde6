from typing import Annotated

from pydantic import BaseModel

from fer_pipeline.cli.commands import FLAT, Cluster
from fer_pipeline.jobs.cluster import ClusterConfig
from fer_pipeline.jobs.train.job import TrainConfig, run


def train(config: Annotated[TrainConfig, FLAT], cluster: Cluster = ClusterConfig()) -> BaseModel:
    return run(config, cluster)
