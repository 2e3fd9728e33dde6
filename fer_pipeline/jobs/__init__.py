"""How each kind of work is spread over a Ray cluster: every file is a `<Verb>Config` and `run(config)`."""
