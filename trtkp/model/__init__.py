"""Loading trained models: exported programs, state dicts and ONNX files and, if trusted, TorchScript and pickles.

Model files are not trusted: nothing in a file is executed unless the user allows it. Importing this package imports
neither torch nor onnxruntime. Loading a model imports what its format needs.
"""

from __future__ import annotations

from trtkp.model.load import load_model
from trtkp.model.source import SourceModel

__all__ = ["SourceModel", "load_model"]
