"""A batch in, a batch out: fetch, decode, detect, align, classify. No Ray."""
