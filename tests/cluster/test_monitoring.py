"""Dashboard and alert rules query metrics that exist, in expressions that Prometheus can read."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml

from fer_pipeline.table.exposition import exposition
from fer_pipeline.table.nights import keep_night
from tests.table.test_exposition import night

MONITORING = Path(__file__).parents[2] / "cluster" / "monitoring"
RUN_METRICS = {
    "ray_fer_records_total", "ray_fer_records_left", "ray_fer_faces_total", "ray_fer_bytes_total", "ray_fer_stage_seconds_total",
    "ray_fer_shard_seconds_bucket",
}  # fmt: skip
"""The metrics that `tests/engine/test_metrics.py` scrapes."""
RAY_METRICS = {
    "ray_tasks", "ray_actors", "ray_node_cpu_count", "ray_node_cpu_utilization", "ray_node_mem_used", "ray_node_mem_total",
    "ray_node_gpus_utilization",
}  # fmt: skip


def expressions() -> Iterator[str]:
    for panel in json.loads((MONITORING / "grafana.json").read_text())["panels"]:
        yield from (target["expr"] for target in panel.get("targets", []))
    yield from (rule["expr"] for rule in rules())


def rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load((MONITORING / "alerts.yaml").read_text())["groups"] for rule in group["rules"]]


def metrics_in(expression: str) -> set[str]:
    """Return the metrics that an expression names; raise ValueError for an invalid one."""
    return set(re.findall(r"\b(?:ray|fer)_\w+", promql_parser.parse(expression).prettify()))


def test_dashboard_and_alerts_query_only_metrics_that_exist(tmp_path: Path) -> None:
    keep_night(str(tmp_path), night("2026-11-25T00:00:00+00:00"))
    of_nights = set(re.findall(r"^(fer_night_\w+)", exposition(str(tmp_path)).decode(), re.MULTILINE))
    found = set[str]().union(*map(metrics_in, expressions()))
    assert found <= RUN_METRICS | RAY_METRICS | of_nights
    assert found >= RUN_METRICS and len(found & of_nights) >= 8


def test_an_invalid_expression_is_refused() -> None:
    with pytest.raises(ValueError):
        metrics_in("sum by status (rate(ray_fer_records_total[2m])")


@pytest.mark.skipif(not shutil.which("promtool"), reason="needs promtool (make test-monitoring)")
def test_every_alert_fires_in_its_case(tmp_path: Path) -> None:
    tests = tmp_path / "alerts_test.yaml"
    tests.write_text(Path(__file__).with_name("alerts_test.yaml").read_text().replace("ALERTS", str(MONITORING / "alerts.yaml")))
    done = subprocess.run(["promtool", "test", "rules", str(tests)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    tested = {rule["alertname"] for one in yaml.safe_load(tests.read_text())["tests"] for rule in one["alert_rule_test"]}
    assert tested == {rule["alert"] for rule in rules()}


@pytest.mark.skipif(not shutil.which("promtool"), reason="needs promtool (make test-monitoring)")
def test_prometheus_accepts_its_settings() -> None:
    done = subprocess.run(["promtool", "check", "config", str(MONITORING / "prometheus.yml")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_alert_says_what_happened_and_what_to_do() -> None:
    found = rules()
    assert {rule["alert"] for rule in found} >= {"NoSuccessfulNight", "NightHeld", "ManyRecordsFail", "ThroughputHalved"}
    for rule in found:
        assert rule["labels"]["severity"] in ("page", "ticket")
        assert rule["annotations"]["summary"].endswith(".") and rule["annotations"]["action"]


def test_panels_do_not_overlap() -> None:
    panels = json.loads((MONITORING / "grafana.json").read_text())["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken = set[tuple[int, int]]()
    for panel in panels:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken and place["x"] + place["w"] <= 24
        taken |= cells
