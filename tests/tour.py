"""The outputs in pages of the documents: this runs a page's commands in an empty folder and writes what they print into it.

    python -m tests.tour [docs/tour.md] [FILE...]

FILEs are put into the folder first. Commands run as on a terminal of 100 columns. Places and moments of this machine are replaced
by others, so that two runs give the same page except for durations.
"""

import os
import pty
import re
import select
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "tour.md"
HOME = "/home/you"
BLOCK = re.compile(r"^```console\n(.*?)^```\n", re.MULTILINE | re.DOTALL)
COLUMNS = 100
PLAIN = (
    (r"\x1b\[[0-9;?]*[A-Za-z]", ""),
    (r"\d{8}T\d{12}-[0-9a-f]{8}", "20261130T020000000000-5d4c3b2a"),
    (r"\d{4}-\d\d-\d\d(?P<between>[ T])\d\d:\d\d(:\d\d)?(\.\d+)?", r"2026-11-30\g<between>02:00"),
)
"""What is replaced in every output: colours, names of runs, moments."""
VARYING = (
    (r"\b[0-9a-f]{16,}\b", "DIGEST"),
    (r"\d+ x \d+ at \d+, \d+", "BOX"),
    (r"-?\d+(\.\d+(e-\d+)?|e-\d+|%|°)", "N"),
    (r"\d[\d,]{5,}|\d:\d\d:\d\d", "N"),  # bytes, and the time that is left
    (r"(?m)^labels .*", "labels"),  # in the order of their numbers
    (r" +", " "),
)
"""What may differ between two machines."""


def commands_of(block: str) -> list[str]:
    """Return the commands of a block: its lines behind `$ `."""
    return re.findall(r"^\$ (.*)$", block, re.MULTILINE)


def printed(command: str, home: Path) -> str:
    """Return what a shell command prints on a terminal, in a folder that is its home. Raise RuntimeError if it fails."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("FER_PIPELINE")}
    places = {
        "PYTHONPATH": str(PAGE.parents[1]),
        "HOME": str(home),
        "XDG_CACHE_HOME": str(home / ".cache"),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    ours, theirs = pty.openpty()
    shell = subprocess.Popen(
        ["bash", "-c", f"stty cols {COLUMNS} rows 50 -echo; {command}"],
        cwd=home, env=environment | places | {"TERM": "xterm", "COLUMNS": str(COLUMNS)}, stdin=theirs, stdout=theirs,
        stderr=theirs,
    )  # fmt: skip
    os.close(theirs)
    text = b"".join(_read(ours)).decode()
    if shell.wait():
        raise RuntimeError(f"{command} ended with {shell.returncode}:\n{text}")
    return as_shown(text, home)


def _read(terminal: int) -> Iterator[bytes]:
    """Yield what comes from a terminal until its last process closes it."""
    while True:
        select.select([terminal], [], [])
        try:
            data = os.read(terminal, 65_536)
        except OSError:  # EIO: nobody has it open any more
            data = b""
        if not data:
            os.close(terminal)
            return
        yield data


def as_shown(text: str, home: Path) -> str:
    """Return the lines that stand on a terminal in the end, without this machine's places and moments."""
    for pattern, new in PLAIN:
        text = re.sub(pattern, new, text)
    lines = [re.split(r"\r(?!$)", line.rstrip("\r"))[-1].rstrip() for line in text.replace(str(home), HOME).split("\n")]
    return "\n".join(line for line in lines if line)


def outputs(page: Path, home: Path) -> Iterator[str]:
    """Run a page's commands one after the other, and yield each block as it should be."""
    for block in BLOCK.findall(page.read_text()):
        yield "".join(f"$ {command}\n{printed(command, home)}\n".replace("\n\n", "\n") for command in commands_of(block))


def without_varying(block: str) -> str:
    """Return a block without what differs between two machines."""
    for pattern, new in VARYING:
        block = re.sub(pattern, new, block)
    return block


if __name__ == "__main__":
    page, *files = [*map(Path, sys.argv[1:])] or [PAGE]
    with tempfile.TemporaryDirectory() as folder:
        for file in files:
            shutil.copy(file, folder)
        blocks = outputs(page, Path(folder))
        page.write_text(BLOCK.sub(lambda _: f"```console\n{next(blocks)}```\n", page.read_text()))
