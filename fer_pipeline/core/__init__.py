"""The nouns: label spaces, schemas, storage, manifest, run record, metrics. No torch, no Ray."""
