from typing import Annotated

from pydantic import BaseModel

from fer_pipeline.cli.commands import FLAT, Cluster
from fer_pipeline.jobs.cluster import ClusterConfig
from fer_pipeline.jobs.ingest import IngestConfig, run


def ingest(config: Annotated[IngestConfig, FLAT], cluster: Cluster = ClusterConfig()) -> BaseModel:
    return run(config, cluster)
