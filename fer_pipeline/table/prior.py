"""The labels of a run under the class prior of its own archive: a table beside `faces/`, whose rows stay as they are."""

import logging
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from fer_pipeline.core import storage
from fer_pipeline.core.errors import UserError
from fer_pipeline.core.prior import corrected, estimated_prior
from fer_pipeline.core.run import CORRECTED, RunFolder, RunRecord, RunResult
from fer_pipeline.core.schemas import CATEGORY, FACES
from fer_pipeline.models.card import ModelCard

log = logging.getLogger(__name__)

MOST_UNCERTAIN = 0.6
"""Share of uncertain labels; of FER-2013's PublicTest 43 % are."""
FEW = 300
"""Faces below which an estimate is not to be trusted."""
MOST_SAMPLED = 1_000_000
"""Faces from which the prior is estimated, at most."""
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
    """One class: its share that the model's probabilities go by, its share of this archive, and its labels."""

    expression: str
    learned: float
    estimated: float
    labels: int
    """As the rows have them."""
    corrected: int
    """Under the estimated prior."""


def correct_prior(folder: RunFolder, record: RunRecord, card: ModelCard) -> list[PriorShift]:
    """Estimate the class prior of a run's faces, write `CORRECTED` and return what changed, class by class.

    A file there stands for one of `faces/`, a row for each of its faces, in its order. `card`: of the form of the model that
    labelled. Raise UserError for a model whose own prior is not known, and a run without faces.
    """
    learned = np.array(card.calibration.prior)
    if len(learned) != len(card.label_space.classes) or not (learned > 0).all():
        raise UserError(
            f"The card of the model '{card.name}' does not say what class prior it learned: label with one that was trained, or "
            "quantised, by this version."
        )
    files = storage.list_names(folder.path("faces"))
    tables = [storage.read_ours(folder.path("faces", name), FACES, ["record_id", "face_id", "probabilities"]) for name in files]
    found = [_probabilities(faces, len(learned)) for faces in tables]
    if not sum(map(len, found)):
        raise UserError(f"The run in '{folder.url}' found no face: there is no prior to estimate.")
    if record.result and mostly_uncertain(record.result):
        share = record.result.uncertain / record.result.faces
        log.warning("%.0f%% of the labels are uncertain: the prior that is estimated from them is not to be trusted", 100 * share)
    everything = np.concatenate(found)
    if len(everything) < FEW:
        log.warning("%d faces are few: the prior that is estimated from them is not to be trusted", len(everything))
    if len(everything) > MOST_SAMPLED:
        everything = everything[np.random.default_rng(0).choice(len(everything), MOST_SAMPLED, replace=False)]
    prior = estimated_prior(everything, learned)
    names = np.array(card.label_space.classes)
    before, after = (np.zeros(len(names), np.int64) for _ in range(2))
    for name, keys, probabilities in zip(files, tables, found, strict=True):
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
        storage.write_table(folder.path(CORRECTED, name), table.replace_schema_metadata(record.metadata))
    shifts = zip(card.label_space.classes, learned.tolist(), prior.tolist(), before.tolist(), after.tolist(), strict=True)
    return [PriorShift(*shift) for shift in shifts]


def mostly_uncertain(result: RunResult) -> bool:
    """Tell whether so many labels of a run are uncertain that no prior can be estimated from them."""
    return result.uncertain > MOST_UNCERTAIN * result.faces


def _probabilities(faces: pa.Table, classes: int) -> NDArray[np.float32]:
    values = faces["probabilities"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return np.asarray(values, np.float32).reshape(-1, classes)
