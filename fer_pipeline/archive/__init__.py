"""Records of an archive: where they come from, and how their bytes are read. No torch."""
