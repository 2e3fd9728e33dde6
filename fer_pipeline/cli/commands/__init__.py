"""One module per command."""

from typing import Annotated

from cyclopts import Parameter

from fer_pipeline.jobs.cluster import ClusterConfig

FLAT = Parameter(name="*")
Cluster = Annotated[ClusterConfig, FLAT]
