"""Distributed batch pipeline for facial expression recognition."""

__version__ = "0.2.0"
