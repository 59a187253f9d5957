"""The public names: all there, nothing else, and light to import."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import trtkp

ROOT = Path(__file__).parents[1]
HEAVY = (
    "torch",
    "onnx",
    "onnx_ir",
    "onnxruntime",
    "onnxscript",
    "tensorrt",
    "tensorrt_rtx",
    "polygraphy",
    "pycuda",
    "plotly",
    "jinja2",
)


def python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout


def test_every_name_is_there_and_documented() -> None:
    assert trtkp.__all__ == sorted(trtkp.__all__)
    assert set(trtkp._HOME) | {"__version__"} == set(trtkp.__all__)
    for name in set(trtkp.__all__) - {"__version__"}:
        value = getattr(trtkp, name)
        assert callable(value)
        assert inspect.getdoc(value)
        assert value.__name__ == name
        assert value.__module__.startswith("trtkp.")
        assert name in getattr(importlib.import_module(trtkp._HOME[name]), "__all__")  # noqa: B009 - not typed
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        trtkp.nothing  # noqa: B018


def test_star_import_gives_exactly_that() -> None:
    names = python("from trtkp import *; print(sorted(n for n in dir() if n[:2] != '__' or n == '__version__'))")
    assert names.strip() == str(sorted(trtkp.__all__))


def test_dir_lists_what_is_imported_at_first_use() -> None:
    assert set(trtkp.__all__) <= set(dir(trtkp))


def test_functions_stay_functions_after_their_modules_were_imported() -> None:
    modules = (
        "trtkp.pipeline.build, trtkp.bundle, trtkp.comparison.bench, trtkp.verification.bundle, trtkp.engine.doctor, "
        "trtkp.model.load, "
        "trtkp.comparison.run"
    )
    functions = "trtkp.build, trtkp.load, trtkp.bench, trtkp.verify, trtkp.diagnose, trtkp.load_model, trtkp.compare"
    assert python(f"import trtkp, {modules}; print([type(f).__name__ for f in ({functions})])").count("function") == 7


@pytest.mark.parametrize(
    "module",
    ["trtkp", "trtkp.cli", "trtkp.cli.app", "trtkp.errors", "trtkp.engine", "trtkp.engine.doctor", "trtkp.comparison"],
)
def test_light_to_import(module: str) -> None:
    loaded = python(f"import sys, {module}; print([m for m in {HEAVY} if m in sys.modules])")
    assert loaded.strip() == "[]"


def test_version_and_help_are_light() -> None:
    code = f"""
import sys
from trtkp.cli import main
assert main(["--version"]) == 0 and main(["build", "--help"]) == 0
print([m for m in {HEAVY} if m in sys.modules])
"""
    assert python(code).splitlines()[-1] == "[]"


def test_what_modules_export_is_their_own() -> None:
    """``__all__`` of every module names things that are there, sorted as ruff wants them, and not modules."""
    for info in pkgutil.walk_packages(trtkp.__path__, "trtkp."):
        if info.name.endswith("__main__") or ".calib" in info.name:
            continue
        module = importlib.import_module(info.name)
        for name in getattr(module, "__all__", ()):
            assert hasattr(module, name), f"{info.name}.{name}"
            assert not inspect.ismodule(getattr(module, name)), f"{info.name}.{name}"
