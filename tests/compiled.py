"""Folders in the user's cache for what tests compile: one for each state of sources, compiler and flags."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import platformdirs

ROOT = Path(__file__).parents[1]
#: Seconds after which what was compiled from other sources goes.
KEPT_S = 3 * 24 * 3600


def compiled_folder(name: str, compiler: str, settings: object, sources: Iterable[Path]) -> Path:
    """The folder for these sources as they are, compiled by this compiler with these settings."""
    state = hashlib.sha256(subprocess.run([compiler, "--version"], capture_output=True, check=True).stdout)
    state.update(repr((str(ROOT), settings)).encode())  # paths stand in what a failed check prints
    for source in sorted(sources):
        state.update(f"{source.relative_to(ROOT)} {source.stat().st_size}\n".encode() + source.read_bytes())
    home = platformdirs.user_cache_path("trtkp") / name
    try:
        home.mkdir(parents=True, exist_ok=True)
    except OSError:  # a user without a home to write to, as in some containers
        home = Path(tempfile.gettempdir()) / f"trtkp-{os.getuid()}" / name
    folder = home / state.hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    os.utime(folder)
    for other in home.iterdir():
        if other.is_dir() and time.time() - other.stat().st_mtime > KEPT_S:
            shutil.rmtree(other, ignore_errors=True)
    return folder
