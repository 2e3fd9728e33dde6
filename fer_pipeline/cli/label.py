"""`label`, and what it would take."""

from pydantic import Field

from fer_pipeline.base.errors import UserError
from fer_pipeline.engine.connect import ClusterConfig
from fer_pipeline.jobs.label import job
from fer_pipeline.jobs.label.config import LabelConfig
from fer_pipeline.jobs.label.estimate import Estimate, estimate
from fer_pipeline.labelling.run import RunRecord


class LabelCommandConfig(LabelConfig):
    """Label the apparent expression of every face in an archive. Run the same command again to continue."""

    estimate: bool = False
    """Print what it would take, from a listing and 200 labelled records, and write nothing."""
    price_per_hour: float | None = Field(None, ge=0)
    """With --estimate: the price of one core for an hour."""


def run(config: LabelCommandConfig, cluster: ClusterConfig = ClusterConfig()) -> RunRecord | Estimate:
    """Label the archive, or estimate what that would take."""
    if config.estimate:
        return estimate(config, config.price_per_hour)
    if config.price_per_hour is not None:
        raise UserError("--price-per-hour is for --estimate.")
    return job.run(config, cluster)
