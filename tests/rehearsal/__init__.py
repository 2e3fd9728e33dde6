"""A rehearsal of production on one machine (make rehearsal)."""
