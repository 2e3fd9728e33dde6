"""Labelled datasets: layouts, samples, duplicates, splits and training data. No Ray."""
