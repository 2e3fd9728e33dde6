"""The page of the last nights, made for a ten-second look each morning, and the page of one night's audit."""

import shlex
from collections import Counter
from collections.abc import Sequence

import pyarrow.compute as pc
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fer_pipeline.archive.files import name_below
from fer_pipeline.base import storage
from fer_pipeline.base.storage import parquet
from fer_pipeline.labelling.audits import last_score
from fer_pipeline.labelling.run import RunFolder, RunRecord
from fer_pipeline.report.page import data_url, drawn, render
from fer_pipeline.report.plots import BLUE, GREY, RED, png, tidy
from fer_pipeline.table.audit import Audit
from fer_pipeline.table.delta import TABLE_AUDITS
from fer_pipeline.table.nights import Night, last_nights
from fer_pipeline.table.rows import VANISHED

MOST_VANISHED = 20
"""Vanished files that the page of an audit names."""


def audit_page(folder: RunFolder, record: RunRecord, audit: Audit, accepted: Sequence[str]) -> str:
    """Return the page of an audit, with the failed checks first. `accepted` are those that may fail."""
    labels = sorted({*(audit.churn or {}), *(label for row in (audit.churn or {}).values() for label in row)})
    checks = sorted(audit.checks, key=lambda check: check.passed)
    held = [name for name in audit.failing if name not in accepted]
    options = [part for name in held for part in ("--accept", name)]
    return render(
        "audit.html",
        run=record,
        audit=audit,
        checks=checks,
        labels=labels,
        held=held,
        vanished=_vanished(folder, record),
        command=shlex.join(["fer-pipeline", "publish", folder.url, "--table", audit.table, *options]),
    )


def _vanished(folder: RunFolder, record: RunRecord) -> list[str]:
    """Return the first files whose rows vanish with a run."""
    if not record.increment or not record.increment.vanished:
        return []
    uris = parquet.read_own(folder.vanished_path(record.run_id), VANISHED, ["uri"])["uri"]
    return [name_below(record.source, uri) for uri in pc.unique(uris).slice(0, MOST_VANISHED).to_pylist()]


def write_nights_page(table: str, page: str, count: int) -> None:
    """Write the page of the last `count` nights of a table, if there are any."""
    if nights := last_nights(table, count):
        again = f"`fer-pipeline table page {table}` draws it again."
        storage.write_bytes(page, drawn("Nights", lambda: nights_page(table, nights), again).encode())


def nights_page(table: str, nights: list[Night]) -> str:
    """Return the page of these nights; the latest night comes last in `nights`."""
    published = [night for night in nights if night.state == "published"]
    facts = [
        (night, night.model.digest != before.model.digest, night.detector.digest != before.detector.digest)
        for night, before in zip(nights, [nights[0], *nights], strict=False)
    ]
    pictures = {
        "records and failures": _records_png(published),
        "mix of expressions": _mix_png(published),
        "uncertain labels": _shares_png(published),
    }
    return render(
        "nights.html",
        table=table,
        last=nights[-1],
        score=last_score(storage.join(table, TABLE_AUDITS)),
        facts=facts[::-1],
        held=[night for night in nights if night.state == "held"],
        table_rows=next((night.table_rows for night in reversed(published)), 0) or 0,
        pictures={name: data_url(picture) for name, picture in pictures.items()} if len(published) > 1 else {},
    )


def _figure() -> Figure:
    return Figure(figsize=(7, 2.6), layout="constrained")


def _dates(nights: list[Night]) -> list[str]:
    return [night.begun_at[5:10] for night in nights]


def _records_png(nights: list[Night]) -> bytes:
    figure = _figure()
    axes, places = figure.subplots(), range(len(nights))
    axes.bar(places, [night.records - night.failed for night in nights], color=BLUE, label="processed")
    axes.bar(
        places,
        [night.failed for night in nights],
        bottom=[night.records - night.failed for night in nights],
        color=RED,
        label="failed",
    )
    axes.set(ylabel="records")
    return _finished(figure, nights)


def _mix_png(nights: list[Night]) -> bytes:
    figure = _figure()
    axes, places = figure.subplots(), range(len(nights))
    colors = "#2f62c9 #e08f2c #3a9a5c #c4453c #7d5bbe #8a94a6 #c65a9c #3aa0a8 #a08a3c #555f6e".split()
    totals = sum((Counter(night.expressions) for night in nights), Counter[str]())
    for (name, _), color in zip(totals.most_common(), colors * 3, strict=False):
        axes.plot(places, [night.expressions.get(name, 0) / max(1, night.faces) for night in nights], label=name, color=color)
    axes.set(ylabel="share of faces", ylim=(0, None))
    return _finished(figure, nights)


def _shares_png(nights: list[Night]) -> bytes:
    figure = _figure()
    axes, places = figure.subplots(), range(len(nights))
    axes.plot(places, [night.uncertain / max(1, night.faces) for night in nights], color=BLUE, label="uncertain")
    empty = [night.faces_per_image[0] / max(1, sum(night.faces_per_image)) for night in nights]
    axes.plot(places, empty, color=GREY, label="images without faces")
    axes.set(ylabel="share", ylim=(0, None))
    return _finished(figure, nights)


def _finished(figure: Figure, nights: list[Night]) -> bytes:
    """Return the figure as PNG, with the nights on its horizontal axis. A dotted line marks each new model."""
    axes = figure.axes[0]
    for place in range(1, len(nights)):
        if nights[place].model.digest != nights[place - 1].model.digest:
            axes.axvline(place - 0.5, color=GREY, linewidth=0.8, linestyle=":")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=10))
    dates = _dates(nights)
    axes.xaxis.set_major_formatter(lambda place, _: dates[round(place)] if 0 <= round(place) < len(dates) else "")
    tidy(axes)
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    return png(figure)
