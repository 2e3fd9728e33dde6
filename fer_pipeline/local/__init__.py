"""Work that runs in this process, without Ray: predict, reports, the registry, export, the sample archive."""
