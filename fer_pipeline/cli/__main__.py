"""`python -m fer_pipeline.cli` is `fer-pipeline`."""

from typing import NoReturn

from fer_pipeline.base.stopping import run_as_process
from fer_pipeline.cli.main import main


def run() -> NoReturn:
    """Be the command `fer-pipeline`."""
    run_as_process(main)


if __name__ == "__main__":
    run()
