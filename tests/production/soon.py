"""Serve schedules and treat runs as stranded after 20 s: `python -m tests.production.soon FILE`."""

import sys

from flows import orphans
from flows.deploy import main

if __name__ == "__main__":
    orphans.STRANDED_S, orphans.LOOK_S = 20.0, 2.0
    main(sys.argv[1:])
