"""Rows of a table are carried over, whichever version wrote their file."""

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from fer_pipeline.base.storage import parquet
from fer_pipeline.labelling.run import RunFolder
from fer_pipeline.labelling.schemas import ADDED, CARRIED, IMAGES
from fer_pipeline.table.reuse import PLACES, Reusable
from fer_pipeline.table.rows import rows_of
from tests.table.runs import finished_run, record_of


def test_rows_of_an_old_file_and_of_a_new_one_are_carried_over_together(tmp_path: Path) -> None:
    """An old file lacks the columns that came later; they are null."""
    record = finished_run(str(tmp_path / "run"), [record_of(f"/source/{number}.jpg") for number in range(3)])
    images = parquet.read_table(RunFolder(str(tmp_path / "run")).images_path(0))
    rows = rows_of(images, "/source", record.run_id)
    parquet.write_table(str(tmp_path / "table/new.parquet"), rows)
    parquet.write_table(
        str(tmp_path / "table/old.parquet"), rows.drop_columns([name for name in rows.column_names if name in ADDED])
    )
    digests = rows["content_sha256"].to_pylist()
    places = [(digests[0], "new.parquet", 0), (digests[1], "old.parquet", 1), (digests[2], "new.parquet", 2)]
    table = pa.Table.from_pylist([dict(zip(PLACES.names, place, strict=True)) for place in places], schema=PLACES)
    status = pa.array([CARRIED] * 3).cast(IMAGES.field("status").type)
    tonight = images.set_column(images.schema.get_field_index("status"), IMAGES.field("status"), status)
    found = Reusable(str(tmp_path / "table"), table.sort_by("content_sha256")).carry_over(tonight.cast(IMAGES))
    assert found["decoding"].to_pylist() == [2, None, 2] and pc.unique(found["status"].cast(pa.string())).to_pylist() == ["ok"]
    assert found["faces"].to_pylist() == images["faces"].to_pylist()
