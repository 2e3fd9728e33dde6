"""Distributed batch pipeline for facial expression recognition.

import fer_pipeline as fer

faces = fer.predict(["a.jpg", "b.heic"])          # a PyArrow table with one row for each face
run = fer.label("photos/", "runs/tonight")        # as the command does; the same call continues a run
run.faces(certain=True).to_pandas()
fer.Table("s3://bucket/labels").faces()
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # before ONNX Runtime is imported anywhere: nothing is sent home

if TYPE_CHECKING:
    from fer_pipeline.api.crops import Crop
    from fer_pipeline.api.labels import Run, Table, label
    from fer_pipeline.api.prediction import predict

__version__ = "0.2.0"
__all__ = ["Crop", "Run", "Table", "label", "predict"]
_HOMES = {"Crop": "crops", "Run": "labels", "Table": "labels", "label": "labels", "predict": "prediction"}
"""The module of each name. It is imported when the name is used, which takes a second."""


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return getattr(import_module(f"fer_pipeline.api.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
