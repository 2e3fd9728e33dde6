"""Imports go down the house only, from room to room, and some packages have one home."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BELOW: dict[str, tuple[str, ...]] = {
    "base": (),
    "models": ("base",),
    "archive": ("base",),
    "engine": ("base",),
    "faces": ("models", "archive"),
    "labelling": ("faces",),
    "datasets": ("table",),
    "table": ("labelling",),
    "report": ("datasets",),
    "jobs": ("report", "engine"),
    "api": ("jobs",),
    "cli": ("api",),
    "__init__": ("api",),
    "flows": ("cli",),
}
"""Each room, and the rooms that it stands on: it imports from them, and from all that those stand on."""
HOMES = {
    "prefect": {"flows"},
    "ray": {"engine", "jobs"},
    "cyclopts": {"cli"},
    "matplotlib": {"report"},
    "jinja2": {"report"},
    "deltalake": {"table"},
    "onnxruntime": {"models", "faces"},
    "torch": {"models", "faces", "jobs"},
    "torchvision": {"models"},
    "obstore": {"base"},
    "openlineage": {"jobs"},
    "cv2": {"archive", "faces", "datasets", "report", "cli"},
}
COMMAND = re.compile(r"(?P<module>[a-z_]+(\.[a-z_]+)+):[a-z_]+")
"""How the command line names a function that it imports when it is called."""


def reachable(room: str) -> set[str]:
    """Return the rooms from which a room may import."""
    return {room}.union(*(reachable(below) for below in BELOW[room]))


def layer_of(path: Path, root: Path) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return "flows" if parts[0] == "flows" else parts[1]


def faults(root: Path) -> Iterator[str]:
    for path in [*root.glob("fer_pipeline/**/*.py"), *root.glob("flows/**/*.py")]:
        layer = layer_of(path, root)
        for name in imported(path, path.relative_to(root).with_suffix("").parts):
            package, _, rest = name.partition(".")
            target = rest.split(".")[0] if package == "fer_pipeline" else package
            target = "flows" if package == "flows" else target
            below = reachable(layer) if layer in BELOW else set()
            if package in ("fer_pipeline", "flows") and target in BELOW and target not in below:
                yield f"{path.relative_to(root)} imports {name}, which is not below it"
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
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and (named := COMMAND.fullmatch(node.value)):
            yield f"fer_pipeline.{named['module'].removeprefix('fer_pipeline.')}"


def test_imports_go_down_only() -> None:
    assert list(faults(ROOT)) == []


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("fer_pipeline/base/config.py", "from fer_pipeline.jobs import label"),
        ("fer_pipeline/labelling/run.py", "from fer_pipeline import table"),
        ("fer_pipeline/labelling/run.py", "from ..jobs import label"),
        ("fer_pipeline/labelling/run.py", "from .. import jobs"),
        ("fer_pipeline/models/card.py", "from fer_pipeline.archive import files"),
        ("fer_pipeline/report/page.py", "from fer_pipeline.engine import tasks"),
        ("fer_pipeline/engine/tasks.py", "from fer_pipeline.labelling import run"),
        ("fer_pipeline/jobs/label/job.py", "import flows.steps"),
        ("fer_pipeline/jobs/label/job.py", 'COMMAND = "cli.report:run"'),
        ("fer_pipeline/top.py", "import ray"),
        ("fer_pipeline/top.py", "from fer_pipeline import base"),
        ("fer_pipeline/models/training/trainer.py", "import ray.train"),
        ("fer_pipeline/labelling/labeller.py", "def late():\n    from ray import data"),
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
    imports = {"fer_pipeline/base/storage/__init__.py: from pyarrow.fs import FileSystem, FSSpecHandler, PyFileSystem"}
    assert {line.split(":")[0] for line in found - checkpoints - imports} <= {
        f"fer_pipeline/base/storage/{name}.py" for name in ("__init__", "parquet")
    }
    assert sum("PyFileSystem(" in line for line in found) == 1


PRIVATE = {
    "fer_pipeline/engine/private_ray.py",
    "fer_pipeline/jobs/train/private_ray_train.py",
}


def test_private_interfaces_of_ray_and_s3fs_stand_in_files_of_their_own() -> None:
    found = {
        str(path.relative_to(ROOT))
        for path in [*ROOT.glob("fer_pipeline/**/*.py"), *ROOT.glob("flows/**/*.py")]
        for name in imported(path, path.relative_to(ROOT).with_suffix("").parts)
        if name.split(".")[0] in ("ray", "s3fs") and any(part.startswith("_") for part in name.split("."))
    }
    assert found == PRIVATE
