"""The published table: what is new against it, the audit before a commit, the commit, its history. No Ray, no torch."""
