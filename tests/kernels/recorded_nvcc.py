"""Runs nvcc as CMake asks (CMAKE_CUDA_COMPILER_LAUNCHER); keeps beside each object what ptxas says, and the cubins."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def main() -> None:
    command = sys.argv[1:]
    if "-c" not in command:
        sys.exit(subprocess.run(command, check=False).returncode)
    kept = Path(command[command.index("-o") + 1] + ".kept")
    kept.mkdir(exist_ok=True)
    options = ["-Xptxas", "-v", "--keep", "--keep-dir", str(kept)]
    done = subprocess.run([*command, *options], stderr=subprocess.PIPE, text=True, check=False)
    for path in kept.iterdir():
        if path.suffix != ".cubin":
            path.unlink()
    (kept / "ptxas.log").write_text(done.stderr, encoding="utf-8")
    sys.stderr.write(done.stderr)
    sys.exit(done.returncode)


if __name__ == "__main__":
    main()
