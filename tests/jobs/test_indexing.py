import tarfile
from pathlib import Path
from typing import Any

import pytest

from fer_pipeline.core import storage
from fer_pipeline.jobs.label.indexing import IndexingTasks
from fer_pipeline.sources.files import Selection
from fer_pipeline.sources.listing import Listing


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
    tasks = IndexingTasks(Selection(), indexes, asked.append, 60)  # type: ignore[arg-type]
    records = list(Listing(str(source), Selection(), indexes, tasks, tasks.at_once))
    assert len(storage.list_names(indexes)) == 6
    assert asked[-1] == [] and max(bundles[0][1] for bundles in asked if bundles) > 1
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "fresh"))
    assert records == list(Listing(str(source)))
