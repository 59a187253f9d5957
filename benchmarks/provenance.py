"""The provenance that every result file holds: when, where and with which command and libraries it was measured."""

from __future__ import annotations

import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

__all__ = ["provenance"]

_LIBRARIES = ("grpcio", "numpy", "onnx", "onnxruntime", "starlette", "tensorrt_rtx_cu13", "torch", "uvicorn")


def provenance() -> dict[str, Any]:
    """Date, commit (with ``-dirty`` if files are changed), command, CPU, and versions of Python and libraries."""
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "commit": _git("rev-parse", "--short", "HEAD") + ("-dirty" if _git("status", "--porcelain", "-uno") else ""),
        "command": f"python -m benchmarks.{_module(Path(sys.argv[0]))} {' '.join(sys.argv[1:])}".strip(),
        "cpu": _cpu(),
        "python": platform.python_version(),
        "libraries": {name: found for name in _LIBRARIES if (found := _version(name)) is not None},
    }


def _module(path: Path) -> str:
    return path.parent.name if path.stem == "__main__" else path.stem


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False, cwd=Path(__file__).parent)
    return done.stdout.strip()


def _cpu() -> str:
    from trtkp.machine.cpu import cpu_name, usable_cores

    return f"{cpu_name()}, {usable_cores()} usable cores"


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
