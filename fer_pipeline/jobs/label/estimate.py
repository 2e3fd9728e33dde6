"""Estimate what a labelling would take: list the source, compare it with the table, label some records, write nothing."""

import math
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict
from itertools import islice
from random import Random
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fer_pipeline.archive.record import Record, sampled
from fer_pipeline.base import storage
from fer_pipeline.base.config import Config
from fer_pipeline.base.errors import UserError
from fer_pipeline.base.isolated import IsolatedProcess
from fer_pipeline.base.processor import has_native_bf16
from fer_pipeline.jobs.label.config import LabelConfig
from fer_pipeline.jobs.label.job import comparison_of, listing_of, nothing_to_label, to_label
from fer_pipeline.jobs.label.plan import LabelPlan, make_plan, with_normal_places
from fer_pipeline.labelling.labeller import Labeller
from fer_pipeline.labelling.manifest import manifest_table
from fer_pipeline.labelling.run import RunFolder

RUN_RECORDS, RUNS = 8, 25
"""Records that are labelled: runs of neighbours, as a worker gets them, so that a video is not opened for each frame."""
FEWEST_RUNS = 5
"""Runs that an interval needs."""
RESAMPLES = 2000


class Estimate(Config):
    """What a labelling would take. Its interval is of 95 %, over the choice of the records that were labelled."""

    records: int
    """Records that would be labelled."""
    held: int
    """Records that the table already holds labels for."""
    bytes: int
    """Size of the listed files that hold records."""
    measured: int
    """Records that were labelled to measure."""
    core_hours: float
    core_hours_low: float | None
    core_hours_high: float | None
    """None if too few records were labelled to know."""
    hours_here: float
    """With all cores of this machine."""
    price: float | None = None
    """In the currency of the price of an hour of a core."""
    price_low: float | None = None
    price_high: float | None = None


def estimate(config: LabelConfig, price_per_hour: float | None = None) -> Estimate:
    """Return what labelling would take on machines like this one, start-up not included. `price_per_hour`: of one core.

    Raise UserError if there is nothing to label or nothing could be measured, and as the job does.
    """
    if config.gpus_per_worker:
        raise UserError("--estimate measures cores: leave --gpus-per-worker out, or label a --sample to see how fast GPUs are.")
    config = with_normal_places(config)
    storage.require_access(config.source, *config.base)
    plan = _plan_of(config)
    listing = listing_of(plan)
    comparison = comparison_of(plan, listing)
    counted = _Counted()
    with closing(iter(listing)) as listed:
        runs = sampled(counted.runs(to_label(config, comparison, listed)), RUNS, Random(0))
    listing.log_skipped()
    total = min(counted.records, config.sample or counted.records)
    held = comparison.held if comparison else 0
    if not runs and not held:
        raise UserError(nothing_to_label(config, listing))
    seconds, sizes = _measured(config.model_copy(update={"detector": plan.detector.name}), runs)
    if runs and not len(seconds):
        raise UserError("None of the records that were tried can be labelled within its limits: label them to see why.")
    mean_s, low_s, high_s = _interval(seconds, sizes)
    hours, price = total / 3600, price_per_hour
    return Estimate(
        records=total,
        held=held,
        bytes=listing.bytes_listed,
        measured=int(sizes.sum()),
        core_hours=round(mean_s * hours, 6),
        core_hours_low=_product(low_s, hours),
        core_hours_high=_product(high_s, hours),
        hours_here=round(mean_s * hours / (os.cpu_count() or 1), 6),
        price=_product(mean_s, hours, price),
        price_low=_product(low_s, hours, price),
        price_high=_product(high_s, hours, price),
    )


def _product(*factors: float | None) -> float | None:
    known = [one for one in factors if one is not None]
    return round(math.prod(known), 6) if len(known) == len(factors) else None


class _Counted:
    """Counts records that pass in runs of neighbours."""

    records = 0

    def runs(self, records: Iterator[Record]) -> Iterator[list[Record]]:
        while run := list(islice(records, RUN_RECORDS)):
            self.records += len(run)
            yield run


def _plan_of(config: LabelConfig) -> LabelPlan:
    plan = make_plan(config, RunFolder(config.out), None, on_cluster=False)
    return plan.on_processors(has_native_bf16()) if plan.asks_processor else plan


def _measured(config: LabelConfig, runs: list[list[Record]]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return the seconds and the records of each run that was labelled, on all cores at once, as a labelling uses them."""
    cores = max(1, min(os.cpu_count() or 1, len(runs)))
    with ThreadPoolExecutor(cores) as pool:
        parts = pool.map(lambda core: _labelled(config, runs[core::cores]), range(cores))
        found = [one for part in parts for one in part]
    return np.array([one[0] for one in found]), np.array([one[1] for one in found], np.int64)


def _labelled(config: LabelConfig, runs: list[list[Record]]) -> list[tuple[float, int]]:
    """Return the seconds and the records of each run, labelled in another process. A run that kills it is left out."""
    function, settings = f"{timed_runs.__module__}:{timed_runs.__name__}", config.model_dump(mode="json", include=_FIELDS)
    process, found, left = IsolatedProcess(), list[tuple[float, int]](), [[asdict(one) for one in run] for run in runs]
    try:
        while left:
            done = 0
            try:
                for seconds in process.call(function, settings, left, timeout_s=RUN_RECORDS * config.record_timeout_s):
                    found.append((float(seconds), len(left[done])))
                    done += 1
                break
            except ValueError:  # it died, took too long or ran out of memory
                left = left[done + 1 :]
    finally:
        process.close()
    return found


_FIELDS = set(LabelConfig.model_fields)


def timed_runs(settings: dict[str, Any], runs: list[list[dict[str, Any]]]) -> Iterator[float]:
    """Label runs of records and yield the seconds of each. It runs in an isolated process, which a record may kill."""
    plan = _plan_of(LabelConfig.model_validate(settings))
    labeller = Labeller(plan.detector, plan.bundle, plan.settings)
    tables = [manifest_table([Record(**one) for one in run], 0, 0) for run in runs]
    for place, table in enumerate(tables):
        if not place:
            list(labeller([table.slice(0, 1)]))  # what is loaded at the first use
        started = time.perf_counter()
        list(labeller([table]))
        yield time.perf_counter() - started


def _interval(seconds: NDArray[np.float64], sizes: NDArray[np.int64]) -> tuple[float, float | None, float | None]:
    """Return the seconds of a record, and its interval of 95 % by resampling the runs, if there are enough for one."""
    if len(seconds) < FEWEST_RUNS:
        return float(seconds.sum() / max(1, sizes.sum())), None, None
    drawn = np.random.default_rng(0).integers(0, len(seconds), (RESAMPLES, len(seconds)))
    means = seconds[drawn].sum(1) / sizes[drawn].sum(1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(seconds.sum() / sizes.sum()), float(low), float(high)
