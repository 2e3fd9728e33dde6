"""A chunk of work: the few shards of one task, what happened to them so far, and what a step returns."""

from dataclasses import dataclass, field
from enum import Enum

import pyarrow as pa

from fer_pipeline.labelling.labeller import Poison


class Step(Enum):
    """What one task does with a chunk."""

    LABEL = "label and commit the shards, end to end"
    ON_GPU = "label and commit the shard in an actor that holds a GPU"
    PROBE = "label each record alone, to find those that kill their process"
    SINGLY = "label and commit the shard, each record in a process of its own, which it may kill"


@dataclass(frozen=True)
class Committed:
    """The chunk's shards are labelled and committed."""

    slow_machine: str | None = None
    """Name of the machine that labelled them, if it must emulate the run's arithmetic."""


@dataclass(frozen=True)
class Probed:
    """The records of the chunk's shard that kill the process that labels them, with status and reason."""

    poison: Poison


@dataclass
class Chunk:
    """The shards of one task, with their manifest rows. Deaths count only for a shard that is alone in its task."""

    shards: list[int]
    manifests: list[pa.Table]
    step: Step = Step.LABEL
    poison: Poison = field(default_factory=dict)
    """What the probe found, by record id."""
    deaths: int = 0
    """Workers that died with it on a machine that stayed alive."""
    off_gpu: bool = False
    """A GPU actor died with it: cores label it, which shows whether its records were at fault."""
    memory_kills: int = 0
    """Workers with it that their machine killed because it ran out of memory."""

    @property
    def records(self) -> int:
        return sum(map(len, self.manifests))

    @property
    def whole_node(self) -> bool:
        """Whether it needs a whole machine: memory ran out, and other tasks there may have used it."""
        return self.memory_kills > 0

    def alone(self, index: int) -> "Chunk":
        """Return one of its shards as a separate chunk."""
        return Chunk([self.shards[index]], [self.manifests[index]])
