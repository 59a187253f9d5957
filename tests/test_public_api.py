"""The public names: all there, nothing else, and light to import."""

from __future__ import annotations

import ast
import doctest
import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

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


FUNCTIONS = [name for name in trtkp.__all__ if inspect.isfunction(getattr(trtkp, name))]
CLASSES = [name for name in trtkp.__all__ if inspect.isclass(getattr(trtkp, name))]


def test_every_name_is_there_and_documented() -> None:
    assert trtkp.__all__ == sorted(trtkp.__all__)
    assert set(trtkp._HOME) | {"__version__"} == set(trtkp.__all__) == {*FUNCTIONS, *CLASSES, "__version__"}
    for name in set(trtkp.__all__) - {"__version__"}:
        value = getattr(trtkp, name)
        assert inspect.getdoc(value)
        assert value.__name__ == name
        assert value.__module__.startswith("trtkp.")
        assert name in getattr(importlib.import_module(trtkp._HOME[name]), "__all__")  # noqa: B009 - not typed
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        trtkp.nothing  # noqa: B018


def test_a_type_checker_sees_the_names_where_they_are_found_at_run_time() -> None:
    """The imports under ``TYPE_CHECKING`` are those of `_HOME`."""
    tree = ast.parse((ROOT / "trtkp" / "__init__.py").read_text(encoding="utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    seen = {alias.name: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert seen == trtkp._HOME
    assert (ROOT / "trtkp" / "py.typed").is_file()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_are_typed(name: str) -> None:
    signature = inspect.signature(getattr(trtkp, name))
    annotations = {key: value.annotation for key, value in signature.parameters.items()}
    for parameter, annotation in {**annotations, "return": signature.return_annotation}.items():
        assert annotation is not inspect.Signature.empty, parameter
        assert annotation not in ("Any", "object", Any), parameter


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_say_what_they_take_give_and_raise(name: str) -> None:
    function = getattr(trtkp, name)
    sections = Sections(inspect.getdoc(function) or "")
    signature = inspect.signature(function)
    assert sections.names("Args") == list(signature.parameters)
    assert bool(sections.text("Returns")) == (signature.return_annotation != "None")
    if name != "doctor":
        assert sections.names("Raises")
    for error in sections.names("Raises"):
        assert issubclass(getattr(trtkp, error), trtkp.TrtkpError)
    examples = doctest.DocTestParser().get_examples(sections.text("Example"))
    assert any(f"trtkp.{name}(" in example.source for example in examples)


class Sections:
    """The sections of a docstring in Google's style."""

    def __init__(self, docstring: str) -> None:
        parts = re.split(r"^(Args|Returns|Raises|Example):$", docstring, flags=re.MULTILINE)
        self._texts = dict(zip(parts[1::2], map(inspect.cleandoc, parts[2::2]), strict=True))

    def text(self, title: str) -> str:
        return self._texts.get(title, "")

    def names(self, title: str) -> list[str]:
        """What a section describes, in its order."""
        return re.findall(r"^(\w+): \S", self.text(title), flags=re.MULTILINE)


@pytest.mark.slow
def test_a_program_that_uses_every_function_passes_mypy() -> None:
    program = Path(__file__).parent / "typing" / "every_function.py"
    text = program.read_text(encoding="utf-8")
    assert [name for name in (*FUNCTIONS, *CLASSES) if f"trtkp.{name}" not in text] == []
    # silent: what mypy says of the package itself, `make typecheck` shows
    command = [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", program]
    checked = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout


def test_star_import_gives_exactly_that() -> None:
    names = python("from trtkp import *; print(sorted(n for n in dir() if n[:2] != '__' or n == '__version__'))")
    assert names.strip() == str(sorted(trtkp.__all__))


def test_dir_lists_what_is_imported_at_first_use() -> None:
    assert set(trtkp.__all__) <= set(dir(trtkp))


def test_no_module_bears_a_public_name() -> None:
    assert {info.name for info in pkgutil.iter_modules(trtkp.__path__)}.isdisjoint(trtkp.__all__)


def test_names_keep_their_meaning_after_every_module_was_imported() -> None:
    code = """
import importlib, inspect, pkgutil, trtkp
names = [name for name in trtkp.__all__ if name != "__version__"]
before = [getattr(trtkp, name) for name in names]
for info in pkgutil.walk_packages(trtkp.__path__, "trtkp."):
    if not info.name.endswith("__main__"):
        importlib.import_module(info.name)
assert all(getattr(trtkp, name) is value for name, value in zip(names, before, strict=True))
print(sum(map(inspect.isfunction, before)))
"""
    assert int(python(code).splitlines()[-1]) == len(FUNCTIONS)


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
