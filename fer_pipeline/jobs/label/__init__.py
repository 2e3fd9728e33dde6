"""Label an archive: the job, the dispatcher of its shards, the workers, the probe and the pool of GPU actors."""
