"""Registers, shared memory, spills and resident blocks of every kernel, as nvcc compiles them. Needs no GPU.

    python -m benchmarks.kernel_resources --json benchmarks/results/kernel_resources.json

A block's resources against those of an SM say how many blocks run side by side, and so how much memory latency hides.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.provenance import provenance

KERNELS = Path(__file__).parents[1] / "plugins/kernels"
ARCHITECTURES = (80, 86, 89, 90, 120)

#: Compute capability to shared memory of an SM and of a block at most, in bytes (CUDA C++ Programming Guide).
_SMALL = (100 << 10, 99 << 10)
SHARED = {80: (164 << 10, 163 << 10), 86: _SMALL, 89: _SMALL, 90: (228 << 10, 227 << 10), 120: _SMALL}
THREADS = {80: 2048, 86: 1536, 89: 1536, 90: 2048, 120: 1536}
REGISTERS = 64 << 10
#: What a block takes beside what it asks for.
RESERVED_SHARED = 1 << 10

_KERNEL = re.compile(
    r"Compiling entry function '(?P<name>\S+)' for 'sm_(?P<architecture>\d+)a?'.*?"
    r"(?P<spill_stores>\d+) bytes spill stores, (?P<spill_loads>\d+) bytes spill loads.*?"
    r"Used (?P<registers>\d+) registers",
    re.DOTALL,
)
_SPARSE_TILE = re.compile(r"SparseTileILi(\d+)ELi(\d+)ELi(\d+)ELi(\d+)ELi(\d+)ELi(\d+)ELb([01])E")
_TILE = re.compile(r"MmaTileILi(\d+)ELi(\d+)ELi(\d+)ELi(\d+)ELi(\d+)E")


@dataclass(frozen=True)
class Resources:
    """What a thread block of one kernel takes, and how many blocks an SM holds."""

    kernel: str
    architecture: int
    threads: int
    registers: int
    shared_bytes: int
    spill_bytes: int
    blocks_per_sm: int
    intended_blocks_per_sm: int


def compile_resources(
    source: Path, architectures: Sequence[int] = ARCHITECTURES, nvcc: str = "nvcc"
) -> list[Resources]:
    """Compiles one file for several architectures and reads what ptxas says; warnings are errors."""
    with tempfile.TemporaryDirectory() as folder:
        command = [nvcc, "-std=c++17", "-O3", "-Xptxas", "-v", "-Werror", "all-warnings", "-cubin", str(source)]
        found = []
        for architecture in architectures:
            target = ["-arch", f"sm_{architecture}", "-o", f"{folder}/cubin"]
            done = subprocess.run([*command, *target], capture_output=True, text=True, check=False)
            if done.returncode != 0:
                raise RuntimeError(done.stderr)
            found += [_resources(match) for match in _KERNEL.finditer(done.stderr)]
    return found


def _resources(match: re.Match[str]) -> Resources:
    architecture, registers = int(match["architecture"]), int(match["registers"])
    kernels = {"splitKernel": "split", "aggregateKernel": "aggregate", "dynamicReference": "dynamic_reference"}
    name = next((name for key, name in kernels.items() if key in match["name"]), "reference")
    threads, shared, intended = 256, 0, 1
    if "aggregateKernel" in match["name"]:
        name += " single" if "Li1E" in match["name"] else " wide"
    if tile := _SPARSE_TILE.search(match["name"]):
        m, n, warp_m, warp_n, stages, intended, singles = map(int, tile.groups())
        name, threads = f"sparse_{'singles_' if singles else ''}{m}x{n}", m // warp_m * (n // warp_n) * 32
        # SparseShared: stages of pixels, weights and metadata, the tables of MmaShared, two tables of 64 columns.
        shared = stages * (m * 64 * 2 + n * 32 * 2 + n // 16 * 128) + 2 * 4 * n + 4 * (n // 8) + 64 * 12
        shared = -(-(shared + 2 * (64 if singles else 1) * 12) // 128) * 128
    elif tile := _TILE.search(match["name"]):
        m, n, warp_m, warp_n, intended = map(int, tile.groups())
        form = "dynamic" if "dynamicMmaKernel" in match["name"] else "mma"
        name, threads = f"{form}_{m}x{n}", m // warp_m * (n // warp_n) * 32
        # MmaShared: four stages of 32 columns, three tables of rows, 64 offsets of taps; aligned to 128 bytes.
        shared = -(-(4 * (m + n) * 32 * 2 + 2 * 4 * n + 4 * (n // 8) + 64 * 12) // 128) * 128
    dtype = "bfloat16" if "bfloat16" in match["name"] else "float16" if "half" in match["name"] else "float32"
    # Registers are given to warps in units of 256.
    per_block = -(-registers * 32 // 256) * 256 * (threads // 32)
    limits = [REGISTERS // per_block, THREADS[architecture] // threads]
    if shared:
        limits.append(SHARED[architecture][0] // (shared + RESERVED_SHARED))
        intended = min(intended, limits[-1])  # a tile is laid out for the largest shared memory
    spills = int(match["spill_stores"]) + int(match["spill_loads"])
    return Resources(f"{name} {dtype}", architecture, threads, registers, shared, spills, min(limits), intended)


def table(rows: Sequence[Resources]) -> str:
    """The rows as text."""
    head = f"{'kernel':<24}{'sm':>4}{'threads':>9}{'registers':>11}{'shared':>9}{'spills':>8}{'blocks/SM':>11}"
    lines = [
        f"{r.kernel:<24}{r.architecture:>4}{r.threads:>9}{r.registers:>11}{r.shared_bytes:>9}{r.spill_bytes:>8}"
        f"{r.blocks_per_sm:>11}"
        for r in rows
    ]
    return "\n".join([head, *lines])


def measure(architectures: Sequence[int] = ARCHITECTURES) -> list[Resources]:
    """Every kernel, by name and architecture."""
    sources = sorted(KERNELS.glob("*.cu"))
    with ThreadPoolExecutor(max(1, min(2, os.cpu_count() or 1))) as pool:
        found = pool.map(lambda source: compile_resources(source, architectures), sources)
        return sorted((r for rows in found for r in rows), key=lambda r: (r.kernel, r.architecture))


def main() -> None:
    """Prints the table; writes it with its provenance where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    rows = measure()
    print(table(rows))
    if arguments.json:
        nvcc = subprocess.run(["nvcc", "--version"], capture_output=True, text=True, check=True).stdout
        version = re.search(r"release [\d.]+, V([\d.]+)", nvcc)
        document = provenance() | {"nvcc": version[1] if version else None, "rows": [asdict(row) for row in rows]}
        arguments.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
