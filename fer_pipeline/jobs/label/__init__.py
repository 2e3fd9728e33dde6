"""Label an archive: the job, the dispatcher of shards, the workers, the probe, and the pool of GPU actors."""
