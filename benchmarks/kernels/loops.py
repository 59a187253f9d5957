"""Count the instructions in the main loop of every tensor-core kernel, from the disassembled machine code.

A multiprocessor issues four instructions per cycle, and only some of them are matrix products. The share of the issue
slots that are products limits the speed of a kernel, and it can be counted without a GPU. The main loop is the
innermost loop that holds the most matrix instructions.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sysconfig
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Loop", "disassemble", "find_disassembler", "main_loops"]

_LABEL = re.compile(r"^(\.L_x_\d+):")
_FUNCTION = re.compile(r"^\.text\.(\S+):")
_INSTRUCTION = re.compile(r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?(?P<opcode>[A-Z][A-Z0-9_.]*)(?P<operands>[^;]*)")
_TARGET = re.compile(r"`\((\.L_x_\d+)\)")
#: cp.async.wait_group N: all but the last N groups have arrived, so N + 2 stages are in use.
_WAIT = re.compile(r"DEPBAR\.LE SB0, (0x[0-9a-f]+)")
#: Multiply-accumulates of a matrix instruction by the shape in its name: 16816 is 16 x 8 x 16.
_SHAPES = {"1688": 16 * 8 * 8, "16816": 16 * 8 * 16, "16832": 16 * 8 * 32, "1684": 16 * 8 * 4, "16864": 16 * 8 * 64}


@dataclass(frozen=True)
class Loop:
    """Instructions that a warp issues in one pass through a loop, and the number of pipeline stages of its copies."""

    function: str
    instructions: int
    matrix: int
    shared_loads: int
    async_copies: int
    macs: int
    stages: int

    @property
    def issue_share(self) -> float:
        """Share of the issue slots that are matrix products or loads of their operands, 0 to 1."""
        return (self.matrix + self.shared_loads) / self.instructions


def find_disassembler() -> Path | None:
    """``nvdisasm`` from PATH, the CUDA toolkit or the package nvidia-cuda-nvdisasm; None if there is none."""
    if on_path := shutil.which("nvdisasm"):
        return Path(on_path)
    toolkit = Path(shutil.which("nvcc") or "").resolve().parent / "nvdisasm"
    packages = sorted(Path(sysconfig.get_path("purelib")).glob("nvidia/*/bin/nvdisasm"))
    return next((path for path in [toolkit, *packages] if path.is_file()), None)


def disassemble(cubin: Path, disassembler: Path) -> str:
    """The machine code of a cubin as text."""
    command = [str(disassembler), "-c", str(cubin)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def main_loops(text: str) -> list[Loop]:
    """The main loop of every function that has matrix instructions in a loop."""
    best: dict[str, Loop] = {}
    function, labels, opcodes = "", {}, []  # type: ignore[var-annotated]
    for line in text.splitlines():
        if found := _FUNCTION.match(line):
            function, labels, opcodes = found[1], {}, []
        elif found := _LABEL.match(line):
            labels[found[1]] = len(opcodes)
        elif found := _INSTRUCTION.match(line):
            wait = _WAIT.match(found["opcode"] + found["operands"])
            opcodes.append(f"WAIT.{int(wait[1], 16)}" if wait else found["opcode"])
            target = _TARGET.search(found["operands"])
            if found["opcode"].startswith("BRA") and target and target[1] in labels:
                loop = _loop(function, opcodes[labels[target[1]] :])
                known = best.get(function)
                # Loops end from the inside out: an outer one counts only if it holds more products.
                if loop.matrix and (known is None or loop.matrix > known.matrix):
                    best[function] = loop
    return list(best.values())


def _loop(function: str, opcodes: list[str]) -> Loop:
    kinds = Counter(opcode.split(".")[0] for opcode in opcodes)
    matrix = [opcode for opcode in opcodes if opcode.startswith("HMMA.")]
    macs = sum(_SHAPES.get(next((part for part in m.split(".") if part.isdigit()), ""), 0) for m in matrix)
    waits = [int(opcode.split(".")[1]) for opcode in opcodes if opcode.startswith("WAIT.")]
    return Loop(function, len(opcodes), len(matrix), kinds["LDSM"], kinds["LDGSTS"], macs, max(waits, default=0) + 2)
