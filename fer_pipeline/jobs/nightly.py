"""One night: label what is new, audit it, publish it, and write the page of the last nights. Run again, it goes on."""

from pydantic import Field

from fer_pipeline.core import storage
from fer_pipeline.core.config import with_date
from fer_pipeline.jobs import publish
from fer_pipeline.jobs.cluster import ClusterConfig, connected
from fer_pipeline.jobs.label import job as label
from fer_pipeline.jobs.label.job import LabelConfig
from fer_pipeline.jobs.publish import Accepted, PublishConfig
from fer_pipeline.report.nights import write_nights_page
from fer_pipeline.table.exposition import exposition
from fer_pipeline.table.nights import Night
from fer_pipeline.table.thresholds import Thresholds


class NightlyConfig(LabelConfig):
    """Label what the table does not hold, audit and publish it. `{date}` in any path stands for the night's date."""

    table: str
    """Folder or s3:// URL of the published table; made where there is none."""
    out: str = "runs/{date}"
    """Run folder of the night."""
    page: str = "nights.html"
    """Page over the last nights."""
    nights: int = Field(30, ge=1)
    """Nights on the page."""
    metrics: str | None = None
    """File of the last night's figures for Prometheus, such as one that the node exporter reads (`*.prom`)."""
    date: str | None = None
    """Night to run, or to finish, as YYYY-MM-DD; by default today's, in UTC."""
    accept: tuple[Accepted, ...] = ()
    """Checks of the audit that the night may fall short of."""
    audit: Thresholds = Thresholds()


def run(config: NightlyConfig, cluster: ClusterConfig = ClusterConfig()) -> Night:
    """Run the night and return what is kept of it. Raise HeldError where its audit holds it; the page says so too."""
    config = dated(config)
    wanted = LabelConfig.model_validate({name: getattr(config, name) for name in LabelConfig.model_fields})
    with connected(cluster, *(storage.normalize(url) for url in (config.source, config.out, config.table))):
        label.run(wanted, cluster)
        try:
            return publish.run(
                PublishConfig(run=config.out, table=config.table, accept=config.accept, audit=config.audit), cluster
            )
        finally:
            write_nights_page(storage.normalize(config.table), storage.normalize(config.page), config.nights)
            if config.metrics:
                storage.write_bytes(storage.normalize(config.metrics), exposition(storage.normalize(config.table)))


def dated(config: NightlyConfig) -> NightlyConfig:
    """Return the configuration with the night's date in the place of `{date}`, wherever it stands in a text."""
    return with_date(config, config.date)
