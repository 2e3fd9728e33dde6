import tarfile
from pathlib import Path
from typing import Any

import pytest

from fer_pipeline.archive.files import Selection
from fer_pipeline.archive.listing import Listing
from fer_pipeline.base import storage
from fer_pipeline.engine.demand import Bundles
from fer_pipeline.engine.machines import Machines
from fer_pipeline.jobs.label.indexing import IndexingTasks


def test_containers_are_indexed_by_tasks_and_the_demand_is_what_is_in_work(
    tmp_path: Path, archive: Path, local_ray: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, indexes = tmp_path / "source", str(tmp_path / "indexes")
    source.mkdir()
    for number in range(6):
        with tarfile.open(source / f"{number}.tar", "w") as tar:
            tar.add(archive, f"{number}")
    (source / "broken.zip").write_bytes(b"PK")
    asked: list[Any] = []

    class Asked(Machines):
        def need(self, bundles: Bundles) -> None:
            asked.append(bundles)

    tasks = IndexingTasks(Selection(), indexes, Asked())
    records = list(Listing(str(source), Selection(), indexes, tasks, tasks.at_once))
    assert len(storage.list_names(indexes)) == 6
    assert asked[-1] == [] and max(bundles[0][1] for bundles in asked if bundles) > 1
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "fresh"))
    assert records == list(Listing(str(source)))
