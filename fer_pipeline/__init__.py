"""Distributed batch pipeline for facial expression recognition."""

import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # before ONNX Runtime is imported anywhere: nothing is sent home

__version__ = "0.2.0"
