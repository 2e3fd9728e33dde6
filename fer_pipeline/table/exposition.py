"""A table's nights as Prometheus reads them: what a batch job, which no scrape finds alive, leaves for the monitoring."""

from datetime import datetime
from typing import get_args

from prometheus_client import CollectorRegistry, Gauge, generate_latest

from fer_pipeline.table.nights import State, last_nights

NIGHTS = 60
"""Nights that are looked at: an older success is none to speak of."""


def exposition(table: str) -> bytes:
    """Return the figures of a table's last night, and when one ended well, in Prometheus' text format.

    The only tag besides `table` is the state. Times are in seconds since 1970.
    """
    registry, nights = CollectorRegistry(), last_nights(table, NIGHTS)

    def gauge(name: str, what: str, value: float) -> None:
        Gauge(f"fer_night_{name}", what, ("table",), registry=registry).labels(table).set(value)

    good = [night for night in nights if night.state in ("published", "unchanged")]
    if good:
        ended = good[-1].ended_at or good[-1].begun_at
        gauge("success_timestamp_seconds", "When the last night that ended well ended.", _moment(ended))
    if nights:
        last = nights[-1]
        gauge("begun_timestamp_seconds", "When the last night began.", _moment(last.begun_at))
        gauge("records", "Records labelled or carried over by the last night.", last.records)
        gauge("failed", "Records that the last night could not look at.", last.failed)
        gauge("vanished", "Rows whose records the last night did not find any more.", last.vanished)
        gauge("faces", "Faces of the last night.", last.faces)
        gauge("uncertain", "Faces of the last night whose label is uncertain.", last.uncertain)
        gauge("images_per_second", "Throughput of the last night.", last.images_per_s)
        state = Gauge("fer_night_state", "1 for the state that the last night ended in.", ("table", "state"), registry=registry)
        for name in get_args(State):
            state.labels(table, name).set(name == last.state)
        if last.table_rows is not None:
            gauge("table_rows", "Rows of the table after the last night.", last.table_rows)
    return generate_latest(registry)


def _moment(said: str) -> float:
    return datetime.fromisoformat(said).timestamp()
