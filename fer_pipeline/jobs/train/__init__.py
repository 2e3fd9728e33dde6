"""Train a classifier: the job, what each rank does, and how the model bundle is written."""
