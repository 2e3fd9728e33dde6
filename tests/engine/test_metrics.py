"""The metrics of a run that Prometheus would see, scraped from Ray's agent as Prometheus does."""

import threading
import time
import urllib.request
from pathlib import Path

import pytest
import ray
from prometheus_client.parser import text_string_to_metric_families

from fer_pipeline.jobs.label import job as label
from fer_pipeline.jobs.label.config import LabelConfig

WITHIN_S = 60
Samples = dict[tuple[str, str], float]


def scraped(port: int) -> Samples:
    """Return the values of this project's metrics by name and tag, summed over processes."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}", timeout=10) as answer:
        text = answer.read().decode()
    found: Samples = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name.startswith("ray_fer_"):
                tag = next((sample.labels[name] for name in ("status", "stage", "uncertain") if name in sample.labels), "")
                found[sample.name, tag] = found.get((sample.name, tag), 0.0) + sample.value
    return found


@pytest.mark.timeout(300)
def test_a_run_counts_its_records_by_status_its_faces_and_the_seconds_of_each_stage(
    archive: Path, tmp_path: Path, local_ray: None
) -> None:
    (node,) = ray.nodes()
    before = scraped(node["MetricsExportPort"])
    gauge, shown, over = ("ray_fer_records_left", ""), list[float | None](), threading.Event()

    def look() -> None:  # Ray shows a gauge only for as long as one interval after it was set
        while not over.wait(0.1):
            shown.append(scraped(node["MetricsExportPort"]).get(gauge))

    looking = threading.Thread(target=look)
    looking.start()
    record = label.run(LabelConfig(source=str(archive), out=str(tmp_path / "run"), detector="none", shard_records=4))
    assert record.result
    expected = {("ray_fer_records_total", status): float(count) for status, count in record.result.counts.items()}
    found: Samples = {}
    for _ in range(5 * WITHIN_S):
        time.sleep(0.2)
        after = scraped(node["MetricsExportPort"])
        found = {key: value - before.get(key, 0.0) for key, value in after.items()}
        if all(found.get(key) == value for key, value in expected.items()) and 0 in shown:
            break  # each process sends its own when it is time
    over.set()
    looking.join()
    assert {key: found.get(key) for key in expected} == expected
    faces = sum(value for (name, _), value in found.items() if name == "ray_fer_faces_total")
    assert faces == record.result.faces
    stages = {tag for (name, tag), value in found.items() if name == "ray_fer_stage_seconds_total" and value > 0}
    assert stages == {"fetch", "decode", "detect", "align", "classify", "commit"}
    assert 0 in shown and found["ray_fer_bytes_total", ""] > 0
