"""What the documents say can be done is done: their queries run on a real run folder."""

import re
from pathlib import Path
from typing import Any

import duckdb
import pytest

from fer_pipeline.jobs.label import job as label
from fer_pipeline.jobs.label.job import LabelConfig

ROOT = Path(__file__).parents[1]
QUERIES = re.findall(r"```sql\n(.*?)```", (ROOT / "docs" / "labels.md").read_text(), re.DOTALL)


@pytest.fixture(scope="module")
def run(archive: Path, tmp_path_factory: pytest.TempPathFactory, local_ray: None) -> Path:
    out = tmp_path_factory.mktemp("docs") / "run"
    label.run(LabelConfig(source=str(archive), out=str(out), detector="mtcnn"))
    return out


def answer(query: str, run: Path) -> list[tuple[Any, ...]]:
    """Return the rows of a query whose paths are relative to the run folder."""
    return duckdb.connect().execute(re.sub(r"'(faces|images)/", rf"'{run}/\1/", query)).fetchall()


@pytest.mark.parametrize("query", QUERIES)
def test_a_query_of_the_documents_runs(query: str, run: Path) -> None:
    rows = answer(query, run)
    assert rows or "time_ms" in query


def test_the_first_two_queries_answer_what_they_say(run: Path) -> None:
    assert (
        sum(count for _, count in answer(QUERIES[0], run))
        == answer("select count(*) from 'faces/*.parquet' where not uncertain", run)[0][0]
    )
    assert [(status, records) for status, _, records, _ in answer(QUERIES[1], run)] == [("undecodable", 1), ("undecodable", 1)]


def test_strings_of_few_values_are_categories(run: Path) -> None:
    import pyarrow.parquet as pq

    for column in ("expression", "run_id", "model"):
        field = pq.read_schema(next((run / "faces").iterdir())).field(column)
        assert str(field.type).startswith("dictionary<"), column
    footer = pq.ParquetFile(next((run / "faces").iterdir())).metadata.row_group(0)
    assert all(footer.column(index).is_stats_set for index in range(3))
