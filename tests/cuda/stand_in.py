"""The stand-in driver of ``libcuda.c``, compiled once in a test run."""

from __future__ import annotations

import atexit
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import pytest

__all__ = ["driver_folder"]


@cache
def driver_folder() -> Path:
    """Folder of ``libcuda.so.1``, for LD_LIBRARY_PATH. Skips the test where there is no C compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler")
    folder = Path(tempfile.mkdtemp(prefix="trtkp-driver-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    options = ["-shared", "-fPIC", "-Wall", "-Werror", "-D_GNU_SOURCE"]
    source = Path(__file__).with_name("libcuda.c")
    subprocess.run([compiler, *options, "-o", folder / "libcuda.so.1", source, "-ldl"], check=True, timeout=120)
    return folder
