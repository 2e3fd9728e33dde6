"""How each kind of work runs on a Ray cluster: one file or folder per job, with a `<Verb>Config` and `run(config)`."""
