"""Corrects the labels of a run for the class prior of its archive: a new table beside `faces/`, which does not change."""

import logging
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from fer_pipeline.base import storage
from fer_pipeline.base.errors import UserError
from fer_pipeline.base.storage import parquet
from fer_pipeline.labelling.run import CORRECTED, RunFolder, RunRecord, RunResult
from fer_pipeline.labelling.schemas import CATEGORY, FACES
from fer_pipeline.models.card import ModelCard
from fer_pipeline.models.prior import corrected, estimated_prior

log = logging.getLogger(__name__)

MAX_UNCERTAIN_SHARE = 0.6
"""Above this share of uncertain labels an estimate is unreliable. On FER-2013's PublicTest the share is 43 %."""
MIN_FACES = 300
"""With fewer faces an estimate is unreliable."""
MAX_SAMPLED_FACES = 1_000_000
SCHEMA = pa.schema(
    [
        pa.field("record_id", pa.int64(), nullable=False),
        pa.field("face_id", pa.int32(), nullable=False),
        pa.field("expression", CATEGORY, nullable=False),
        pa.field("confidence", pa.float32(), nullable=False),
        pa.field("probabilities", pa.list_(pa.float32()), nullable=False),
    ]
)


@dataclass(frozen=True)
class PriorShift:
    """One class: the share that the model's probabilities assume, the estimated share in this archive, and the labels."""

    expression: str
    learned: float
    estimated: float
    labels: int
    """Number of labels in `faces/`."""
    corrected: int
    """Number of labels under the estimated prior."""


def correct_prior(folder: RunFolder, record: RunRecord, card: ModelCard) -> list[PriorShift]:
    """Estimate the class prior of a run's faces, write the folder `CORRECTED` and return the changes by class.

    Each file there has the rows of the file of that name in `faces/`, in the same order. `card` is that of the model form which
    labelled. Raise UserError if the prior of the model is unknown, or the run has no faces.
    """
    learned = np.array(card.calibration.prior)
    if len(learned) != len(card.label_space.classes) or not (learned > 0).all():
        raise UserError(
            f"The card of the model '{card.name}' does not give its class prior: label with a model that this version trained or "
            "quantised."
        )
    files = storage.list_names(folder.path("faces"))
    tables = [parquet.read_own(folder.path("faces", name), FACES, ["record_id", "face_id", "probabilities"]) for name in files]
    per_file = [_probabilities(faces, len(learned)) for faces in tables]
    if not sum(map(len, per_file)):
        raise UserError(f"The run in '{folder.url}' found no face, so its prior cannot be estimated.")
    if record.result and mostly_uncertain(record.result):
        share = record.result.uncertain / record.result.faces
        log.warning("%.0f%% of the labels are uncertain: the prior that is estimated from them is unreliable", 100 * share)
    sample = np.concatenate(per_file)
    if len(sample) < MIN_FACES:
        log.warning("The run has only %d faces: the prior that is estimated from them is unreliable", len(sample))
    if len(sample) > MAX_SAMPLED_FACES:
        sample = sample[np.random.default_rng(0).choice(len(sample), MAX_SAMPLED_FACES, replace=False)]
    prior = estimated_prior(sample, learned)
    names = np.array(card.label_space.classes)
    before, after = (np.zeros(len(names), np.int64) for _ in range(2))
    for name, keys, probabilities in zip(files, tables, per_file, strict=True):
        under_prior = corrected(probabilities, learned, prior)
        best = under_prior.argmax(1)
        before += np.bincount(probabilities.argmax(1), minlength=len(names))
        after += np.bincount(best, minlength=len(names))
        values = pa.array(under_prior.ravel(), pa.float32())
        columns = {
            "record_id": keys["record_id"],
            "face_id": keys["face_id"],
            "expression": pa.array(names[best]),
            "confidence": pa.array(under_prior.max(1), pa.float32()),
            "probabilities": pa.ListArray.from_arrays(np.arange(len(best) + 1, dtype=np.int32) * len(names), values),
        }
        table = pa.table(columns).cast(SCHEMA)
        parquet.write_table(folder.path(CORRECTED, name), table.replace_schema_metadata(record.metadata))
    shifts = zip(card.label_space.classes, learned.tolist(), prior.tolist(), before.tolist(), after.tolist(), strict=True)
    return [PriorShift(*shift) for shift in shifts]


def mostly_uncertain(result: RunResult) -> bool:
    """Return whether too many labels of a run are uncertain to estimate a prior from them."""
    return result.uncertain > MAX_UNCERTAIN_SHARE * result.faces


def _probabilities(faces: pa.Table, classes: int) -> NDArray[np.float32]:
    values = faces["probabilities"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return np.asarray(values, np.float32).reshape(-1, classes)
