"""Imports go down the list of layers only, and some packages have one home."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LAYERS = ["core", "models", "sources", "table", "stages", "report", "local", "jobs", "cli", "flows"]
HOMES = {
    "prefect": {"flows"},
    "ray": {"jobs"},
    "cyclopts": {"cli"},
    "matplotlib": {"report"},
    "jinja2": {"report"},
    "deltalake": {"table"},
    "onnxruntime": {"models", "stages"},
    "torch": {"models", "stages", "jobs"},
    "torchvision": {"models"},
    "cv2": {"sources", "table", "stages", "report", "local"},
}


def layer_of(path: Path, root: Path) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return "flows" if parts[0] == "flows" else parts[1]


def faults(root: Path) -> Iterator[str]:
    for path in [*root.glob("fer_pipeline/**/*.py"), *root.glob("flows/**/*.py")]:
        layer = layer_of(path, root)
        for name in imported(path, path.relative_to(root).with_suffix("").parts):
            package, _, rest = name.partition(".")
            target = rest.split(".")[0] if package == "fer_pipeline" else package
            level = LAYERS.index(layer) if layer in LAYERS else -1
            if package in ("fer_pipeline", "flows") and target in LAYERS and LAYERS.index(target) > level:
                yield f"{path.relative_to(root)} imports {name}, which is above it"
            if layer not in HOMES.get(package, {layer}):
                yield f"{path.relative_to(root)} imports {package}, which is not at home there"


def imported(path: Path, place: tuple[str, ...]) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = [*place[: len(place) - node.level]] if node.level else []
            module += [node.module] if node.module else []
            yield from (".".join([*module, alias.name]) for alias in node.names)


def test_imports_go_down_only() -> None:
    assert list(faults(ROOT)) == []


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("fer_pipeline/core/run.py", "from fer_pipeline.jobs import label"),
        ("fer_pipeline/core/run.py", "from fer_pipeline import stages"),
        ("fer_pipeline/core/run.py", "from ..jobs import label"),
        ("fer_pipeline/core/run.py", "from .. import jobs"),
        ("fer_pipeline/top.py", "import ray"),
        ("fer_pipeline/top.py", "from fer_pipeline import core"),
        ("fer_pipeline/models/training/trainer.py", "import ray.train"),
        ("fer_pipeline/stages/label.py", "def late():\n    from ray import data"),
        ("fer_pipeline/jobs/label/job.py", "import prefect"),
    ],
)
def test_a_planted_wrong_import_is_found(file: str, line: str, tmp_path: Path) -> None:
    planted = tmp_path / file
    planted.parent.mkdir(parents=True)
    planted.write_text(line + "\n")
    assert len(list(faults(tmp_path))) == 1


def test_no_table_is_read_by_a_file_system_in_python() -> None:
    """Threads of Arrow that call Python can abort a process that has done its work, at its exit."""
    banned = re.compile(r"PyFileSystem|FSSpecHandler|pyarrow\.dataset|to_pyarrow_(dataset|table)\(|ray\.data\.read_|filesystem=")
    texts = [*ROOT.glob("fer_pipeline/**/*.py"), *ROOT.glob("flows/**/*.py"), *ROOT.glob("examples/**/*.py")]
    texts += [*ROOT.glob("docs/*.md"), ROOT / "README.md"]
    found = {
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for path in texts
        for line in path.read_text().splitlines()
        if banned.search(line)
    }
    checkpoints = {line for line in found if "checkpoint" in line or "storage_filesystem=filesystem" in line}
    imports = {"fer_pipeline/core/storage.py: from pyarrow.fs import FileSystem, FSSpecHandler, PyFileSystem"}
    assert {line.split(":")[0] for line in found - checkpoints - imports} <= {"fer_pipeline/core/storage.py"}
    assert sum("PyFileSystem(" in line for line in found) == 1
