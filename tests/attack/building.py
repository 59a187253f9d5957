"""A child process that builds a model under a limit of memory, or tells the peak of its memory.

    python -m tests.attack.building MODEL OUTPUT MIB

The limit is what the process has once all libraries are imported, and MIB; 0 sets none. Graphs count as large from
16 MiB, so that the test needs no gigabytes.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from tests.attack.loading import limit_memory
from trtkp.cli.app import run
from trtkp.graph import save


def _mebibytes(key: str) -> int:
    return int(Path("/proc/self/status").read_text(encoding="utf-8").split(f"{key}:")[1].split()[0]) // 1024


def main() -> None:
    """Build a small model first, for the imports."""
    model, output, more = sys.argv[1:]
    small = str(Path(output).with_name("small"))
    options = ["--backend", "onnxruntime", "--no-measure", "--share", "per-layer", "--threads", "1"]
    assert run(["build", str(Path(model).with_name("small.onnx")), *options, "-o", small]) == 0
    save.LARGEST_FILE = save.LARGEST_SESSION = 16 << 20
    before = _mebibytes("VmRSS")
    if int(more):
        limit_memory(int(more) << 20)
    status = run(["build", model, *options, "-o", output])
    print(json.dumps({"mebibytes": _mebibytes("VmHWM") - before}))  # noqa: T201 - for the test
    sys.exit(status)


if __name__ == "__main__":
    main()
