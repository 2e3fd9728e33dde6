"""`python -m fer_pipeline.cli` is `fer-pipeline`."""

from fer_pipeline.cli import main

main()
