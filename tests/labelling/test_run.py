from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fer_pipeline.archive.record import Record, split_into_shards
from fer_pipeline.base.errors import ClusterError, UserError
from fer_pipeline.base.identity import Identity, new_run_id, now
from fer_pipeline.labelling.faces_table import write_faces
from fer_pipeline.labelling.manifest import write_manifest
from fer_pipeline.labelling.run import RunFolder, RunRecord, settings_digest, with_lineage
from fer_pipeline.labelling.schemas import IMAGES, LABELLED


def begun(folder: RunFolder, count: int = 4) -> RunRecord:
    run_id = new_run_id()
    records = [Record(f"/{number}.jpg", size_bytes=1) for number in range(count)]
    size = write_manifest(folder.manifest_prefix(run_id), split_into_shards(records, 2, 100))
    identity = Identity(name="n", digest="d")
    record = RunRecord(run_id=run_id, created_at=now(), source="/", settings={}, model=identity, detector=identity)
    return folder.begin(record.model_copy(update={"records": size.records, "shards": size.shards}))


def commit(folder: RunFolder, record: RunRecord, shard: int, ids: list[int]) -> None:
    rows = [{"record_id": i, "shard": shard, "uri": f"/{i}.jpg", "status": "no_face", "attempt": 1, "faces": []} for i in ids]
    folder.commit(shard, with_lineage(pa.Table.from_pylist(rows, schema=LABELLED), record))


def test_a_setting_that_is_not_set_leaves_the_digest_of_earlier_versions() -> None:
    before = {"detect_px": 640, "image_column": None}
    assert settings_digest(before | {"min_quality": None}) == settings_digest(before)
    assert settings_digest(before | {"min_quality": 0.8}) != settings_digest(before)


def test_of_two_drivers_one_begins_and_both_go_on_with_its_record(tmp_path: Path) -> None:
    folder = RunFolder(str(tmp_path))
    first, second = begun(folder), begun(folder)
    assert first == second
    assert {path.name for path in (tmp_path / "manifest").iterdir()} == {f"{first.run_id}-00000.parquet"}


def test_a_shard_is_done_when_its_file_exists(tmp_path: Path) -> None:
    folder = RunFolder(str(tmp_path))
    commit(folder, begun(folder), 1, [2, 3])
    (tmp_path / "images" / ".000000.parquet.1234.tmp").write_bytes(b"half")
    assert folder.committed() == {1}


def test_rows_that_are_not_the_manifests_are_found(tmp_path: Path) -> None:
    folder = RunFolder(str(tmp_path))
    record = begun(folder)
    commit(folder, record, 0, [0, 1])
    commit(folder, record, 1, [2, 2])
    with pytest.raises(ClusterError, match=r"000001\.parquet' does not hold exactly the records"):
        write_faces(folder, record, 0)
    Path(folder.images_path(1)).write_bytes(b"")  # as after a power loss
    with pytest.raises(ClusterError, match=r"000001\.parquet' is damaged: delete it and run again"):
        write_faces(folder, record, 0)
    commit(folder, record, 1, [2, 3])
    assert write_faces(folder, record, 0).statuses == {"no_face": 4}


def test_every_row_says_what_made_it(tmp_path: Path) -> None:
    folder = RunFolder(str(tmp_path))
    record = begun(folder)
    commit(folder, record, 0, [0, 1])
    images = pq.read_table(folder.images_path(0))
    assert images.schema.equals(IMAGES)
    assert {row["run_id"] for row in images.to_pylist()} == {record.run_id}
    assert {(row["model"], row["detector_digest"]) for row in images.to_pylist()} == {("n", "d")}


def test_a_file_in_the_place_of_a_run_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").write_bytes(b"precious")
    with pytest.raises(UserError, match="is a file"):
        RunFolder(str(tmp_path / "run")).load()


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.doc").write_bytes(b"precious")
    with pytest.raises(UserError, match=r"holds files but no run\.json"):
        RunFolder(str(tmp_path)).load()
