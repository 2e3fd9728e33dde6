"""Audits a finished run before it is published: about ten checks against its manifest and the last nights."""

import random
from collections import Counter
from collections.abc import Iterable, Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fer_pipeline.base.config import Config
from fer_pipeline.base.identity import Identity
from fer_pipeline.base.storage import parquet
from fer_pipeline.labelling.manifest import SHARDS_PER_FILE, read_manifest_file
from fer_pipeline.labelling.run import RunFolder, RunRecord
from fer_pipeline.labelling.schemas import IMAGES
from fer_pipeline.table.delta import LabelTable, TableFile
from fer_pipeline.table.drift import excess, jensen_shannon, population_stability, share_difference
from fer_pipeline.table.nights import Night, filters_of, last_nights, night_of
from fer_pipeline.table.rows import KEY, Digests, DigestSet, concatenated, digests_of
from fer_pipeline.table.thresholds import Thresholds

AUDIT, PAGE = "audit.json", "audit.html"
REFERENCE_NIGHTS = 7
"""Number of published nights that a night is compared with. Their figures are summed."""
NIGHTS_LOOKED_AT = 200
"""Number of nights that are searched to find the reference nights, because a table may have several sources."""
CHURN_SAMPLE = 50_000
"""Largest number of rows of unchanged images on which two models are compared."""

Matrix = dict[str, dict[str, int]]


class Check(Config):
    """One check: the value and the largest value that passes. `value` is None if there was nothing to compare with."""

    name: str
    says: str
    value: float | None
    limit: float
    passed: bool

    def under(self, limit: float) -> "Check":
        """Return this check with another limit."""
        return _check(self.name, self.says, self.value, limit)


class Audit(Config):
    """`audit.json`."""

    run_id: str
    table: str
    reference: list[str]
    """Run ids of the nights that this one was compared with."""
    checks: list[Check]
    churn: Matrix | None
    """Number of faces by old and new label, for images that did not change while the model did."""

    @property
    def failing(self) -> list[str]:
        return [check.name for check in self.checks if not check.passed]


def audit(folder: RunFolder, record: RunRecord, table: LabelTable, thresholds: Thresholds) -> Audit:
    """Return the checks of a finished run against its manifest and the last nights of the table."""
    churn = _churn(folder, record, table)
    ours = night_of(table.url, record, "held", [], [])
    nights = last_nights(table.url, NIGHTS_LOOKED_AT)
    nights = [night for night in nights if night.state == "published" and night.order < ours.order]
    # If no night has the same source, use all: a source whose name contains a date changes every night.
    scope = record.source, filters_of(record)[2:]
    nights = [night for night in nights if (night.source, night.filters[2:]) == scope] or nights
    before = nights[-1].detector if nights else None
    faces = [night for night in nights if night.faces][-REFERENCE_NIGHTS:]
    labels = [
        night for night in faces if night.model.digest == ours.model.digest and night.settings_digest == ours.settings_digest
    ]
    return Audit(
        run_id=record.run_id,
        table=table.url,
        reference=[night.run_id for night in faces],
        checks=[*_checks(folder, record, thresholds, faces, labels, churn), detector_check(record.detector, before)],
        churn=churn,
    )


def _checks(
    folder: RunFolder, record: RunRecord, thresholds: Thresholds, faces: list[Night], labels: list[Night], churn: Matrix | None
) -> Iterator[Check]:
    """Yield the checks of how far the figures of a run are from those of the last nights: `faces` and `labels`."""
    result = record.result
    assert result
    doubled = record.records - len(_distinct(folder, record))
    yield _check("keys", "records whose key another record has too", doubled, 0)
    missing = abs(record.records - sum(result.counts.values())) + record.shards - len(folder.committed())
    yield _check("rows", "records or shards that are missing", missing, 0)
    failed, of = result.failed - result.failed_again, record.records - (record.increment.retried if record.increment else 0)
    share = excess(failed, of, thresholds.failed)
    yield _check("failed", "share of records that failed for the first time", share, thresholds.failed)
    increment = record.increment
    vanished = increment.vanished / max(1, increment.scope) if increment else 0.0
    yield _check("vanished", "share of the source's rows that vanished", vanished, thresholds.vanished)
    yield from drifts(record, thresholds, faces, labels)
    moved = None
    if churn is not None:
        total = sum(sum(row.values()) for row in churn.values())
        moved = 1 - sum(row.get(old, 0) for old, row in churn.items()) / total if total else None
    yield _check("churn", "share of labels that differ from the old model's for the same bytes", moved, thresholds.churn)


def detector_check(detector: Identity, before: Identity | None) -> Check:
    """Check that the detector is that of the last published night. A different detector finds different faces."""
    says = "the detector differs from that of the last published night"
    if before and before.digest != detector.digest:
        says = f"this run used {detector.name}, the last published night used {before.name}"
    return _check("detector", says, float(before.digest != detector.digest) if before else None, 0)


def drifts(record: RunRecord, thresholds: Thresholds, faces: list[Night], labels: list[Night]) -> Iterator[Check]:
    """Yield the checks of how far the figures of a run are from those of the last nights: `faces` and `labels`."""
    result = record.result
    assert result
    per_image, usual = result.faces_per_image, _summed(night.faces_per_image for night in faces)
    empty = share_difference(per_image[0], sum(per_image), usual[0], sum(usual)) if usual else None
    yield _check("without_faces", "difference between the shares of images without faces", empty, thresholds.without_faces)
    number = population_stability(per_image, usual) if usual else None
    yield _check("faces_per_image", "stability index of the number of faces in an image", number, thresholds.faces_per_image)
    unsure = None
    if labels:
        of = sum(night.faces for night in labels)
        unsure = share_difference(result.uncertain, result.faces, sum(night.uncertain for night in labels), of)
    yield _check("uncertain", "difference between the shares of uncertain labels", unsure, thresholds.uncertain)
    mix: Counter[str] = sum((Counter(night.expressions) for night in labels), Counter())
    classes = sorted({*mix, *result.expressions})
    found, before = [result.expressions.get(name, 0) for name in classes], [mix[name] for name in classes]
    divergence = jensen_shannon(found, before) if labels else None
    yield _check("expressions", "divergence of the mix of expressions, in bits", divergence, thresholds.expressions)
    usual = _summed(night.confidences for night in labels)
    stability = population_stability(result.confidences, usual) if labels else None
    yield _check("confidence", "stability index of confidences", stability, thresholds.confidence)


def _check(name: str, says: str, value: float | None, limit: float) -> Check:
    return Check(name=name, says=says, value=value, limit=limit, passed=value is None or value <= limit)


def _summed(histograms: Iterable[list[int]]) -> list[int]:
    return [sum(bin_) for bin_ in zip(*histograms, strict=True)]


def _distinct(folder: RunFolder, record: RunRecord) -> Digests:
    digests = concatenated(digests_of(keys) for keys in _keys(folder, record))
    return np.unique(digests, axis=0)


def _keys(folder: RunFolder, record: RunRecord) -> Iterator[pa.Table]:
    for number in range(-(-record.shards // SHARDS_PER_FILE)):
        yield pa.concat_tables(read_manifest_file(folder.manifest_prefix(record.run_id), number)).select(KEY)


def _churn(folder: RunFolder, record: RunRecord, table: LabelTable) -> Matrix | None:
    """Return the numbers of old and new labels in unchanged images; None if the run relabelled no rows of an older model."""
    if not (record.increment and record.increment.outdated):
        return None
    matrix: dict[str, Counter[str]] = {}
    new = _labels_of_run(folder, record)
    for file in table.files:
        for old_labels, new_labels in _label_pairs(table, file, new, record.model.digest):
            for old, label in zip(old_labels, new_labels, strict=True):
                matrix.setdefault(old, Counter())[label] += 1
    return {old: dict(row) for old, row in sorted(matrix.items())}


def _labels_of_run(folder: RunFolder, record: RunRecord) -> tuple[DigestSet, pa.Table]:
    """Return the keys and rows of randomly drawn shards, about `CHURN_SAMPLE` rows."""
    rows: list[pa.Table] = [IMAGES.empty_table().select([*KEY, "content_sha256", "faces"])]
    for shard in random.Random(record.run_id).sample(range(record.shards), record.shards):
        if sum(map(len, rows)) >= CHURN_SAMPLE:
            break
        images = parquet.read_own(folder.images_path(shard), IMAGES, [*KEY, "content_sha256", "faces"])
        rows.append(images.filter(pc.is_valid(images["content_sha256"])))
    sample = pa.concat_tables(rows)
    return DigestSet(digests_of(sample)), sample


def _label_pairs(
    table: LabelTable, file: TableFile, new: tuple[DigestSet, pa.Table], model_digest: str
) -> Iterator[tuple[list[str], list[str]]]:
    """For each image with unchanged bytes and number of faces, yield its faces' old labels (by another model) and new labels."""
    keys, sample = new
    old = parquet.read_columns(table.path(file.path), [*KEY, "content_sha256", "model_digest", "faces"])
    index = keys.find(digests_of(old))
    other = pc.not_equal(old["model_digest"], model_digest).to_numpy()
    rows = np.flatnonzero((index >= 0) & other)
    pairs = zip(old.take(rows).to_pylist(), sample.take(index[rows]).to_pylist(), strict=True)
    for before, now in pairs:
        if before["content_sha256"] == now["content_sha256"] and len(before["faces"]) == len(now["faces"]):
            yield [face["expression"] for face in before["faces"]], [face["expression"] for face in now["faces"]]
