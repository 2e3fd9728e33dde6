"""A chunk of work: a few shards on their way through the cluster, and what happened to them so far."""

from dataclasses import dataclass, field
from enum import Enum

import pyarrow as pa

from fer_pipeline.stages.label import Poison


class Step(Enum):
    """What is done with a chunk in one task."""

    LABEL = "labelled and committed, end to end"
    ON_GPU = "labelled and committed by an actor that holds a GPU"
    PROBE = "each record is labelled alone, to find those that kill"
    SINGLY = "labelled and committed record by record, each in a process that may die of it"


@dataclass
class Chunk:
    """The shards of one task, with their manifest rows. What died is counted for a shard that was alone in its task."""

    shards: list[int]
    manifests: list[pa.Table]
    step: Step = Step.LABEL
    poison: Poison = field(default_factory=dict)
    """What the probe found, by record id."""
    deaths: int = 0
    """Workers that died with it on a machine that lived on."""
    off_gpu: bool = False
    """An actor of the pool died with it: cores label it, which tell what is its fault."""
    memory_kills: int = 0
    """Workers that their machine killed with it, because its memory ran out."""

    @property
    def records(self) -> int:
        return sum(map(len, self.manifests))

    @property
    def whole_node(self) -> bool:
        """Whether nothing else may run beside it: the machine's memory ran out, and it is to be seen whose fault that is."""
        return self.memory_kills > 0

    def alone(self, index: int) -> "Chunk":
        return Chunk([self.shards[index]], [self.manifests[index]])
