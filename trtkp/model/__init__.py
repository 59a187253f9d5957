"""Loading trained models: exported programs, state dicts, ONNX files and, where trusted, TorchScript and pickles.

Importing this package imports neither torch nor onnxruntime; loading a model does, as far as its format needs them.
"""

from __future__ import annotations

from trtkp.model.load import load_model
from trtkp.model.source import SourceModel

__all__ = ["SourceModel", "load_model"]
