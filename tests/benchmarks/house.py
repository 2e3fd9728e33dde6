"""Size of the code base as JSON: lines, files, concepts and functions.

    python -m tests.benchmarks.house [CHECKOUT]

A concept is something that a reader must keep in mind: a class or a module constant. The path of a configuration is measured as
the functions with its type in their signature, and the files of these functions.
"""

import ast
import json
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("fer_pipeline", "flows")
CONFIGURATIONS = ("LabelConfig", "TrainConfig")
Function = ast.FunctionDef | ast.AsyncFunctionDef


def modules(root: Path) -> dict[Path, ast.Module]:
    """Return the syntax trees of the code below the root of a checkout, by path."""
    return {path: ast.parse(path.read_text()) for folder in FOLDERS for path in sorted((root / folder).rglob("*.py"))}


def constants(tree: ast.Module) -> Iterator[str]:
    """Yield the upper-case names that a module assigns at its top level."""
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        for target in targets:
            names = target.elts if isinstance(target, ast.Tuple) else [target]
            yield from (name.id for name in names if isinstance(name, ast.Name) and name.id.isupper())


def functions_with(trees: dict[Path, ast.Module], configuration: str) -> list[Path]:
    """Return the file of each function whose signature names a configuration."""
    return [
        path
        for path, tree in trees.items()
        for node in ast.walk(tree)
        if isinstance(node, Function)
        for annotation in [one.annotation for one in (*node.args.args, *node.args.kwonlyargs)]
        if annotation is not None
        and any(isinstance(part, ast.Name) and part.id == configuration for part in ast.walk(annotation))
    ]


def count(root: Path) -> dict[str, object]:
    """Return the figures of the checkout at `root`."""
    trees = modules(root)
    classes = [node.name for tree in trees.values() for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    names = [name for tree in trees.values() for name in constants(tree)]
    lengths = sorted(
        (node.end_lineno or 0) - node.lineno + 1
        for tree in trees.values()
        for node in ast.walk(tree)
        if isinstance(node, Function)
    )
    lines = {path: len(path.read_text().splitlines()) for path in trees}
    ways = {name: functions_with(trees, name) for name in CONFIGURATIONS}
    return {
        "lines": sum(lines.values()),
        "files": len(trees),
        "files_over_250_lines": sum(size > 250 for size in lines.values()),
        "longest_file": max(lines.values()),
        "public_classes": sum(not name.startswith("_") for name in classes),
        "private_classes": sum(name.startswith("_") for name in classes),
        "public_constants": sum(not name.startswith("_") for name in names),
        "private_constants": sum(name.startswith("_") for name in names),
        "functions": len(lengths),
        "function_lines_median_p90_max": [int(statistics.median(lengths)), lengths[int(len(lengths) * 0.9)], lengths[-1]],
        "functions_and_files_that_take": {name: [len(found), len(set(found))] for name, found in ways.items()},
    }


if __name__ == "__main__":
    print(json.dumps(count(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT), indent=1))
