"""A child process that loads files under a limit of memory: one line of JSON per file, with what came of it.

    echo FOLDER | python -m tests.attack.loading

``loaded``, ``InputError`` with its message, or the name of another exception. The limit is what the process has once
all libraries are imported, and 1 GiB. A file that takes 10 seconds of processor time ends the process.
"""

from __future__ import annotations

import json
import resource
import signal
import sys
import warnings
from pathlib import Path

import onnx_ir.passes.common
import onnxruntime
import torch
from onnxscript import optimizer

import trtkp.model.archive
import trtkp.model.checkpoint
import trtkp.model.onnx_backend
import trtkp.model.torch_backend
from trtkp.errors import InputError

MORE_MEMORY = 1 << 30
TIME_LIMIT_S = 10


def limit_memory(more: int) -> None:
    """Allow this process ``more`` bytes of address space than it has."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    has = int(status.split("VmSize:")[1].split()[0]) * 1024
    resource.setrlimit(resource.RLIMIT_AS, (has + more, has + more))


def _load(path: Path) -> dict[str, str]:
    signal.setitimer(signal.ITIMER_PROF, TIME_LIMIT_S)
    try:
        trtkp.load_model(path).graph()
    except InputError as error:
        return {"result": "InputError", "message": str(error)}
    except Exception as error:
        return {"result": type(error).__name__, "message": str(error)}
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    return {"result": "loaded", "message": ""}


def main() -> None:
    """Load the files of every folder that standard input names, in the order of their names; then an empty line."""
    assert all((onnx_ir.passes.common, onnxruntime, torch, optimizer))  # what loading would import under the limit
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    limit_memory(MORE_MEMORY)
    for folder in sys.stdin:
        for path in sorted(Path(folder.rstrip("\n")).iterdir()):
            if path.suffix != ".data":
                print(json.dumps({"name": path.name, **_load(path)}), flush=True)  # noqa: T201 - for the test
        print(flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
