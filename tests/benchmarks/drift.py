"""Audit alarms on simulated nights: false alarms, and the smallest shifts detected 9 times in 10. Prints one JSON line."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np

from fer_pipeline.base.identity import Identity
from fer_pipeline.labelling.run import RunRecord
from tests.table.test_audit import alarms, nights, result
from tests.table.test_drift import MIX

UNDRIFTED, SHIFTED, FACES = 1000, 100, (1_000, 10_000, 100_000)
SHIFTS: dict[str, Callable[[int], dict[str, Any]]] = {
    "expressions": lambda step: {"mix": [MIX[0] - step / 100, *MIX[1:-1], MIX[-1] + step / 100]},  # hundredths of the faces
    "uncertain": lambda step: {"unsure": 0.27 + step / 100},
    "confidence": lambda step: {"shift": step},  # twentieths
}

if __name__ == "__main__":
    someone = Identity(name="m", digest="m")
    record = RunRecord(run_id="r", created_at="2026-01-01", source="/s", settings={}, model=someone, detector=someone, records=1)
    figures: dict[str, Any] = {}
    for faces in FACES:
        rng = np.random.default_rng(0)
        held = sum(bool(alarms(record, nights(record, rng, faces), result(rng, faces))) for _ in range(UNDRIFTED))
        figures[f"held_of_{UNDRIFTED}_undrifted_at_{faces}"] = held
        usual = nights(record, rng, faces)
        for check, shifted in SHIFTS.items():
            found = (
                step
                for step in range(1, 35)
                if sum(check in alarms(record, usual, result(rng, faces, **shifted(step))) for _ in range(SHIFTED))
                >= 0.9 * SHIFTED
            )
            figures[f"{check}_at_{faces}"] = next(found, None)
    print(json.dumps(figures))
