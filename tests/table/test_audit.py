"""The whole audit: it does not hold a thousand nights of one distribution, and it finds shifts of a stated size."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fer_pipeline.base.identity import Identity
from fer_pipeline.labelling.run import BINS, RunFolder, RunRecord, RunResult
from fer_pipeline.table.audit import audit, drifts
from fer_pipeline.table.delta import LabelTable
from fer_pipeline.table.drift import excess
from fer_pipeline.table.nights import Night, keep_night, night_of
from fer_pipeline.table.thresholds import Thresholds
from tests.table.runs import finished_run, multinomial, record_of
from tests.table.test_drift import MIX

NAMES = ["happy", "neutral", "sad", "angry", "surprise", "fear", "disgust"]
CONFIDENCES = list(np.linspace(0.2, 3, BINS) ** 2)
PER_IMAGE = [0.3, 0.45, 0.15, 0.05, 0.03, 0.02]


def result(rng: np.random.Generator, faces: int, mix: list[float] = MIX, shift: int = 0, unsure: float = 0.27) -> RunResult:
    """Return a result with `faces` faces. `shift` moves the confidences down by this number of bins."""
    return RunResult(
        counts={"ok": faces},
        failed=0,
        faces=faces,
        uncertain=int(rng.binomial(faces, unsure)),
        expressions=dict(zip(NAMES, multinomial(rng, faces, mix), strict=True)),
        confidences=multinomial(rng, faces, [*CONFIDENCES[shift:], *CONFIDENCES[:shift]]),
        faces_per_image=multinomial(rng, faces, PER_IMAGE),
        failures=[],
        labelled_now=faces,
        seconds=1.0,
        images_per_s=1.0,
        finished_at="",
    )


@pytest.fixture
def record() -> RunRecord:
    one = Identity(name="m", digest="m")
    return RunRecord(run_id="r", created_at="2026-01-01", source="/s", settings={}, model=one, detector=one, records=1)


def nights(record: RunRecord, rng: np.random.Generator, faces: int) -> list[Night]:
    before = [record.model_copy(update={"result": result(rng, faces)}) for _ in range(7)]
    return [night_of("", one, "published", [], []) for one in before]


def alarms(record: RunRecord, usual: list[Night], night: RunResult) -> list[str]:
    checks = drifts(record.model_copy(update={"result": night}), Thresholds(), usual, usual)
    return [check.name for check in checks if not check.passed]


@pytest.mark.parametrize("faces", [50, 1_000, 100_000])
def test_of_a_thousand_nights_without_drift_ten_at_most_are_held(faces: int, record: RunRecord) -> None:
    rng = np.random.default_rng(1)
    held = sum(bool(alarms(record, nights(record, rng, faces), result(rng, faces))) for _ in range(100))
    usual = nights(record, rng, faces)
    held += sum(bool(alarms(record, usual, result(rng, faces))) for _ in range(900))
    assert held <= 10


@pytest.mark.parametrize(
    ("check", "shifted"),
    [
        ("expressions", {"mix": [MIX[0] - 0.3, *MIX[1:-1], MIX[-1] + 0.3]}),
        ("confidence", {"shift": 4}),
        ("uncertain", {"unsure": 0.5}),
    ],
)
@pytest.mark.parametrize("faces", [1_000, 10_000, 100_000])
def test_a_shift_is_found_nine_times_in_ten(faces: int, check: str, shifted: dict[str, Any], record: RunRecord) -> None:
    rng = np.random.default_rng(2)
    usual = nights(record, rng, faces)
    assert sum(check in alarms(record, usual, result(rng, faces, **shifted)) for _ in range(50)) >= 45


def test_a_night_is_compared_with_published_nights_of_its_own_source(tmp_path: Path) -> None:
    run = finished_run(str(tmp_path / "run"), [record_of("/source/1.jpg")], expressions={"sad": 5_000})
    table = LabelTable(str(tmp_path / "table"))
    usual = night_of(
        str(tmp_path / "table"), finished_run(str(tmp_path / "a"), [], expressions={"happy": 5_000}), "published", [], []
    )
    folder = RunFolder(str(tmp_path / "run"))

    def failing_after(run_id: str, **change: Any) -> list[str]:
        keep_night(table.url, usual.model_copy(update={"run_id": run_id, **change}))
        return audit(folder, run, table, Thresholds()).failing

    assert failing_after("00", state="held") == failing_after("01", state="undone") == []
    assert failing_after("02", source="/other") == ["expressions"], "nights of other sources are used if there are no others"
    assert failing_after("03", expressions={"sad": 5_000}) == []
    assert failing_after("04", expressions={"sad": 5_000}, confidences=[5_000] + [0] * (BINS - 1)) == ["confidence"]


def test_one_failure_of_one_record_says_little() -> None:
    assert excess(1, 1, 0.2) <= 0.2 and excess(1, 4, 0.2) <= 0.2 and excess(20, 20, 0.2) > 0.2 and excess(300, 1000, 0.2) > 0.2
