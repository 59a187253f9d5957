"""Importing the package is cheap."""

from __future__ import annotations

import subprocess
import sys


def test_no_heavy_imports() -> None:
    heavy = {"torch", "onnxruntime", "onnx", "onnx_ir"}
    code = f"import sys, trtkp.model; bad = {heavy} & set(sys.modules); assert not bad, bad"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_public_names() -> None:
    import trtkp.model

    assert trtkp.model.__all__ == ["SourceModel", "load_model"]
