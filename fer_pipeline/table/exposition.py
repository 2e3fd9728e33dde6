"""Writes the figures of the last night for Prometheus, which cannot scrape a batch job that has ended."""

from datetime import datetime
from typing import get_args

from prometheus_client import CollectorRegistry, Gauge, generate_latest

from fer_pipeline.table.nights import State, last_nights


def exposition(table: str) -> bytes:
    """Return the figures of the last night of a table, and the time of its last success, in Prometheus' text format.

    The only labels are `table` and `state`. Times are in seconds since 1970. A success before the last 60 nights is ignored.
    """
    registry, nights = CollectorRegistry(), last_nights(table, 60)

    def gauge(name: str, documentation: str, value: float) -> None:
        Gauge(f"fer_night_{name}", documentation, ("table",), registry=registry).labels(table).set(value)

    good = [night for night in nights if night.state in ("published", "unchanged")]
    if good:
        ended = good[-1].ended_at or good[-1].begun_at
        gauge("success_timestamp_seconds", "End of the last successful night.", _timestamp(ended))
    if nights:
        last = nights[-1]
        gauge("begun_timestamp_seconds", "Start of the last night.", _timestamp(last.begun_at))
        gauge("records", "Records labelled or carried over by the last night.", last.records)
        gauge("failed", "Records that failed in the last night.", last.failed)
        gauge("vanished", "Rows whose records the last night did not list any more.", last.vanished)
        gauge("faces", "Faces found in the last night.", last.faces)
        gauge("uncertain", "Faces of the last night with an uncertain label.", last.uncertain)
        gauge("images_per_second", "Throughput of the last night, in images per second.", last.images_per_s)
        state = Gauge("fer_night_state", "1 for the state of the last night, else 0.", ("table", "state"), registry=registry)
        for name in get_args(State):
            state.labels(table, name).set(name == last.state)
        if last.table_rows is not None:
            gauge("table_rows", "Rows of the table after the last night.", last.table_rows)
    return generate_latest(registry)


def _timestamp(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()
