"""Labelling an archive in one process: schemas, manifest, run folder, labeller, the faces table. No Ray."""
