"""Fetching reads ahead in threads, which end where the reader of the records says so."""

import threading
from pathlib import Path

from fer_pipeline.core.manifest import manifest_table
from fer_pipeline.sources.listing import Listing
from fer_pipeline.stages.fetch import fetch
from fer_pipeline.stages.label import FaceExtractor


def readers() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("fetch")]


def test_no_thread_reads_on_after_the_context(archive: Path) -> None:
    with fetch(list(Listing(str(archive))), 2**28) as fetched:
        next(fetched)
        assert readers()
    assert not readers()


def test_no_thread_reads_on_after_a_shard(extract: FaceExtractor, archive: Path) -> None:
    """A generator that is left to the garbage collector joins its threads in a thread that is being born: a deadlock."""
    (shard,) = extract([manifest_table(list(Listing(str(archive))), 0, 0)])
    assert len(shard.outcomes) == 36 and not readers()
