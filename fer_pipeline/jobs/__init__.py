"""How each kind of work is spread over a Ray cluster: a file or folder each, with a `<Verb>Config` and `run(config)`."""
