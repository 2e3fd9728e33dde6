"""The figures of the last night for Prometheus."""

from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from fer_pipeline.base.identity import Identity
from fer_pipeline.table.exposition import exposition
from fer_pipeline.table.nights import Night, State, keep_night

MODEL = Identity(name="faces", digest="d" * 64)


def night(begun_at: str, state: State = "published", failed: int = 3) -> Night:
    """Return a night of 100 records."""
    return Night(
        run_id=begun_at[:10], begun_at=begun_at, source="photos", filters=[[], []], state=state, model=MODEL, detector=MODEL,
        settings_digest="s", records=100, carried=0, failed=failed, vanished=1, faces=80, uncertain=20,
        expressions={"happy": 80}, confidences=[0] * 20, faces_per_image=[0] * 6, images_per_s=50.0, table_rows=900,
    )  # fmt: skip


def read(text: bytes) -> dict[tuple[str, str], float]:
    samples = [one for family in text_string_to_metric_families(text.decode()) for one in family.samples]
    return {(one.name, one.labels.get("state", "")): one.value for one in samples}


def test_the_last_good_night_is_told_beside_the_last_one_and_its_state(tmp_path: Path) -> None:
    keep_night(str(tmp_path), night("2026-11-24T00:00:00+00:00"))
    keep_night(str(tmp_path), night("2026-11-25T00:00:00+00:00", "held", failed=70))
    found = read(exposition(str(tmp_path)))
    assert found["fer_night_begun_timestamp_seconds", ""] - found["fer_night_success_timestamp_seconds", ""] == 24 * 3600
    assert found["fer_night_failed", ""] == 70 and found["fer_night_uncertain", ""] == 20
    assert {name: found["fer_night_state", name] for name in ("held", "published")} == {"held": 1, "published": 0}


def test_a_table_without_a_night_tells_nothing(tmp_path: Path) -> None:
    assert read(exposition(str(tmp_path))) == {}
