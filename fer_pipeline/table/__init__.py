"""The published table: comparing a listing with it, the audit before a commit, the commit, its history. No Ray, no torch."""
