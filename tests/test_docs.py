"""What the documents say can be done is done: their queries run on a real run folder."""

import ast
import re
import shlex
from collections import Counter
from pathlib import Path
from typing import Any

import duckdb
import pytest

from fer_pipeline.cli import main as cli
from fer_pipeline.cli.options import function_of, prepare
from fer_pipeline.jobs import publish
from fer_pipeline.jobs.label import job as label
from fer_pipeline.jobs.label.config import LabelConfig
from fer_pipeline.jobs.publish import PublishConfig
from fer_pipeline.labelling.schemas import FACE, MEANINGS
from fer_pipeline.labelling.tracks import TRACKS
from tests import columns
from tests.table.runs import finished_run, record_of

ROOT = Path(__file__).parents[1]
QUERIES = re.findall(r"```sql\n(.*?)```", (ROOT / "docs" / "labels.md").read_text(), re.DOTALL)


@pytest.fixture(scope="module")
def run(archive: Path, tmp_path_factory: pytest.TempPathFactory, local_ray: None) -> Path:
    out = tmp_path_factory.mktemp("docs") / "run"
    label.run(LabelConfig(source=str(archive), out=str(out), detector="mtcnn"))
    return out


def answer(query: str, run: Path) -> list[tuple[Any, ...]]:
    """Return the rows of a query whose paths are relative to the run folder."""
    return duckdb.connect().execute(re.sub(r"'(faces/|images/|run.json)", rf"'{run}/\1", query)).fetchall()


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


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMANDS = sorted(
    {
        (page.name, re.sub(r"\s+#.*", "", command))
        for page in PAGES
        if page.name != "extending.md"  # test_extending.py runs its commands
        for pattern in (r"^(?: {4})?fer-pipeline (.*)$", r"`fer-pipeline ([^`\n]+)`")
        for command in re.findall(pattern, page.read_text(), re.MULTILINE)
        if "..." not in command
    }
)
"""Page and arguments of every command that the documents name: in a block, or within a sentence."""


def test_the_documents_name_commands() -> None:
    assert len(COMMANDS) > 40 and {page for page, _ in COMMANDS} >= {"README.md", "training.md", "nightly.md", "evaluation.md"}


@pytest.mark.parametrize(("page", "command"), COMMANDS)
def test_a_command_of_the_documents_is_one_that_the_command_line_takes(page: str, command: str) -> None:
    given = re.sub(r"\|\S+|[\[\]]", "", command)  # options in brackets are given, of a|b the first
    tokens = shlex.split(given.replace(" N", " 2").replace(" LAYOUT", " rafdb"))
    name = " ".join(tokens[:2]) if tokens[0] in ("models", "table") else tokens[0]
    path, positional, _ = cli.COMMANDS[name]
    if len(tokens) > len(name.split()) and "--config" not in tokens:  # not where a command is only spoken of
        prepare(function_of(path), positional.split())
        cli.app.config = ()  # no file of options, as an earlier call in this process may have had one
        cli.app.parse_args(tokens, exit_on_error=False, print_error=False)


def test_the_page_of_columns_is_that_of_the_schemas() -> None:
    assert columns.PAGE.read_text() == columns.written(columns.PAGE.read_text()), "run python -m tests.columns"
    names = {name for schema in columns.WHERE.values() for name in schema.names} | {field.name for field in FACE}
    assert names | set(TRACKS.names) == set(MEANINGS)


def anchors(page: Path) -> set[str]:
    """Return the anchors that a page's headings have on the web."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_the_documents_lead_somewhere(page: Path) -> None:
    for target, _, anchor in re.findall(r"\]\((?!http)([^)#\s]*)(#([^)]*))?\)", page.read_text()):
        found = page.parent / target if target else page
        assert found.exists(), target
        assert not anchor or anchor in anchors(found), f"{target}#{anchor}"


def test_the_query_of_a_table_runs(tmp_path: Path, local_ray: None, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "nightly.md").read_text(), re.DOTALL)
    finished_run(str(tmp_path / "run"), [record_of("/source/1.jpg"), record_of("/source/2.jpg")])
    publish.run(PublishConfig(run=str(tmp_path / "run"), table=str(tmp_path / "labels")))
    monkeypatch.chdir(tmp_path)
    *before, query = ast.parse(code).body
    names: dict[str, Any] = {}
    exec(compile(ast.Module(before, []), "nightly.md", "exec"), names)
    assert isinstance(query, ast.Expr)
    assert eval(compile(ast.Expression(query.value), "nightly.md", "eval"), names).fetchall() == [("happy", 2)]


ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text()


def modules_of(room: Path) -> Counter[str]:
    """Return how many modules of a room, in its folders too, have each name."""
    return Counter(path.stem for path in room.rglob("*.py") if not path.stem.startswith("__"))


@pytest.mark.parametrize(
    "room", ["flows", *(f"fer_pipeline/{path.parent.name}" for path in ROOT.glob("fer_pipeline/*/__init__.py"))]
)
def test_the_architecture_names_every_module_of_a_room_once(room: str) -> None:
    (said,) = re.findall(rf"^\*\*`{room}/`\*\*(.*?)\n\n", ARCHITECTURE, re.MULTILINE | re.DOTALL)
    named, modules = Counter(re.findall(r"`(\w+)`", said)), modules_of(ROOT / room)
    assert {name: named[name] for name in modules} == dict(modules)


def test_the_architecture_says_where_to_change_what() -> None:
    section = ARCHITECTURE.split("## To change X, open Y")[1].split("\n## ")[0]
    paths = re.findall(r"^\| (?!to change).+ \| `([^`]+)` \|$", section, re.MULTILINE)
    assert len(paths) >= 25 and [path for path in paths if not (ROOT / path).is_file()] == []
    named = re.findall(
        r"`((?:archive|base|cli|datasets|engine|faces|jobs|labelling|models|report|table)/[\w/]+\.py)", ARCHITECTURE
    )
    assert named and [path for path in named if not (ROOT / "fer_pipeline" / path).is_file()] == []


def test_the_readme_fits_two_screens() -> None:
    readme = (ROOT / "README.md").read_text()
    assert len(readme.splitlines()) <= 90 and len(readme.split()) <= 900
