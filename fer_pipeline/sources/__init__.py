"""Readers: what images stand in a folder, tar or zip, and what labelled samples in a dataset. No torch."""
