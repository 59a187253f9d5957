"""The stand-in driver of ``libcuda.c``, compiled once in a test run."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import pytest

__all__ = ["driver_folder"]


@cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="trtkp-driver-")


def driver_folder() -> Path:
    """Folder of ``libcuda.so.1``, for LD_LIBRARY_PATH. Skips the test where there is no C compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler")
    library = Path(_folder().name, "libcuda.so.1")
    if not library.exists():
        source = Path(__file__).with_name("libcuda.c")
        options = ["-shared", "-fPIC", "-Wall", "-Werror", "-D_GNU_SOURCE"]
        subprocess.run([compiler, *options, "-o", library, source, "-ldl"], check=True, timeout=120)
    return library.parent
