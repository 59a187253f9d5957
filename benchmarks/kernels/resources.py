"""Registers, shared memory, spills, resident blocks and main loop of every kernel as nvcc compiles it. Needs no GPU.

    python -m benchmarks.kernels.resources --json benchmarks/results/kernel_resources.json

The resources of a block, compared with those of an SM, say how many blocks are resident at once and so how much memory
latency they hide. The instructions of the main loop (`benchmarks.kernels.loops`) say what share of the issue slots can
be products. ``--json`` also writes ``trtkp/kernels/counts.json``, the counts that the tactic model uses.
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
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.kernels.loops import Loop, disassemble, find_disassembler, main_loops
from benchmarks.provenance import provenance
from trtkp.kernels.prediction import occupancy

KERNELS = Path(__file__).parents[2] / "plugins/kernels/launch"
#: Architectures for which the tiles are designed; their main loops are counted.
ARCHITECTURES = (80, 90)
COUNTS = Path(__file__).parents[2] / "trtkp/kernels/counts.json"

#: Most shared memory of a block on the smallest of the architectures that we build for (CUDA C++ Programming Guide).
MAX_SHARED = 99 << 10

_KERNEL = re.compile(
    r"Compiling entry function '(?P<name>\S+)' for 'sm_(?P<architecture>\d+)a?'.*?"
    r"(?P<spill_stores>\d+) bytes spill stores, (?P<spill_loads>\d+) bytes spill loads.*?"
    r"Used (?P<registers>\d+) registers",
    re.DOTALL,
)
_SPARSE_TILE = re.compile(r"SparseTileILi(\d+)ELi(\d+)ELi(\d+)ELi(\d+)ELi(\d+)ELi(\d+)ELb([01])E")
_TILE = re.compile(r"MmaTileILi(\d+)ELi(\d+)ELi(\d+)ELi(\d+)ELi(\d+)E")
_GEMM_TILE = re.compile(r"GemmTileILi(\d+)ELi(\d+)ELi(\d+)ELi(\d+)ELi(\d+)ELi(\d+)E")


@dataclass(frozen=True)
class Resources:
    """The resources of a thread block of one kernel, and how many blocks an SM holds."""

    kernel: str
    architecture: int
    threads: int
    registers: int
    shared_bytes: int
    spill_bytes: int
    blocks_per_sm: int
    intended_blocks_per_sm: int
    #: None for a kernel without tensor-core instructions, and if there is no disassembler.
    loop: Loop | None = None

    @property
    def step_columns(self) -> int:
        """Columns of a list that one pass through the main loop consumes."""
        tile = re.search(r"_(\d+)x(\d+)", self.kernel)
        if self.loop is None or tile is None:
            return 0
        return self.loop.macs * (self.threads // 32) // (int(tile[1]) * int(tile[2]))


def compile_resources(
    source: Path, architectures: Sequence[int] = ARCHITECTURES, nvcc: str = "nvcc"
) -> list[Resources]:
    """Compile one file for several architectures and read the resources of its kernels. Warnings are errors."""
    with tempfile.TemporaryDirectory() as folder:
        command = [nvcc, "-std=c++17", "-O3", "-Xptxas", "-v", "-Werror", "all-warnings", "-cubin", str(source)]
        log, cubins = "", []
        for architecture in architectures:
            cubins.append(Path(folder) / f"sm_{architecture}.cubin")
            target = ["-arch", f"sm_{architecture}", "-o", str(cubins[-1])]
            done = subprocess.run([*command, *target], capture_output=True, text=True, check=False)
            if done.returncode != 0:
                raise RuntimeError(done.stderr)
            log += done.stderr
        return read_resources(log, cubins)


def read_resources(log: str, cubins: Sequence[Path]) -> list[Resources]:
    """The kernels of one file, from the log of ``ptxas -v`` and, if there is a disassembler, from the cubins.

    Args:
        log: the logs of all architectures, one after the other.
        cubins: one file per architecture, with nvcc's names: ``….sm_80.cubin``.
    """
    disassembler = find_disassembler()
    loops = {
        (_architecture(cubin), loop.function): loop
        for cubin in (cubins if disassembler else [])
        for loop in main_loops(disassemble(cubin, disassembler))
    }
    return [
        replace(_resources(match), loop=loops.get((int(match["architecture"]), match["name"])))
        for match in _KERNEL.finditer(log)
    ]


def _architecture(cubin: Path) -> int:
    found = re.search(r"sm_(\d+)a?\.cubin$", cubin.name)
    assert found is not None, cubin
    return int(found[1])


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
        family = "dynamic" if "dynamicMmaKernel" in match["name"] else "mma"
        name, threads = f"{family}_{m}x{n}", m // warp_m * (n // warp_n) * 32
        # MmaShared: four stages of 32 columns, three tables of rows, 64 offsets of taps; aligned to 128 bytes.
        shared = -(-(4 * (m + n) * 32 * 2 + 2 * 4 * n + 4 * (n // 8) + 64 * 12) // 128) * 128
    elif found := _gemm_block(match["name"]):
        name, threads, shared, intended = found
    dtype = "bfloat16" if "bfloat16" in match["name"] else "float16" if "half" in match["name"] else "float32"
    if architecture not in ARCHITECTURES:  # the tiles are designed for these; other SMs may hold fewer blocks
        intended = min(intended, occupancy(threads, 1, shared, architecture))
    blocks = occupancy(threads, registers, shared, architecture)
    spills = int(match["spill_stores"]) + int(match["spill_loads"])
    return Resources(f"{name} {dtype}", architecture, threads, registers, shared, spills, blocks, intended)


def _gemm_block(mangled: str) -> tuple[str, int, int, int] | None:
    """Name, threads, shared bytes and intended blocks of a kernel of gemm.cuh or direct.cuh."""
    if "directKernel" in mangled:
        # DirectShared: the tile, the entries of eight warps, a table of rows.
        return "direct", 256, (36 << 10) + 8 * 32 * 8 + 32 * 4, 4
    tile = _GEMM_TILE.search(mangled)
    if tile is None:
        return None
    m, n, warp_m, warp_n, stages, intended = map(int, tile.groups())
    threads = m // warp_m * (n // warp_n) * 32
    # GemmShared: stages of 128-byte rows, two windows of units, the pixels, three tables of rows; aligned to 128 bytes.
    shared = -(-(stages * (m + n) * 128 + 2 * 8 * threads + 8 * m + 2 * 4 * n + 4 * (n // 8)) // 128) * 128
    single = "single_" if "SingleLoader" in mangled else ""
    if "SimtSums" in mangled:
        return f"{single}simt_{m}x{n}", threads, shared, intended
    if "half" not in mangled and "bfloat16" not in mangled:
        return f"{single}tf32_{m}x{n}", threads, shared, intended
    return f"{single}{m}x{n}" if single else f"mma_{m}x{n}_k64", threads, shared, intended


def table(rows: Sequence[Resources]) -> str:
    """The rows as a text table."""
    head = (
        f"{'kernel':<24}{'sm':>4}{'threads':>9}{'registers':>11}{'shared':>9}{'spills':>8}{'blocks/SM':>11}"
        f"{'columns':>9}{'loop':>6}{'HMMA':>6}{'LDSM':>6}{'LDGSTS':>8}{'other/HMMA':>12}{'HMMA|LDSM':>11}"
    )
    lines = [
        f"{r.kernel:<24}{r.architecture:>4}{r.threads:>9}{r.registers:>11}{r.shared_bytes:>9}{r.spill_bytes:>8}"
        f"{r.blocks_per_sm:>11}{_loop_cells(r)}"
        for r in rows
    ]
    return "\n".join([head, *lines])


def _loop_cells(row: Resources) -> str:
    loop = row.loop
    if loop is None:
        return ""
    other = (loop.instructions - loop.matrix - loop.shared_loads - loop.async_copies) / loop.matrix
    return (
        f"{row.step_columns:>9}{loop.instructions:>6}{loop.matrix:>6}{loop.shared_loads:>6}{loop.async_copies:>8}"
        f"{other:>12.2f}{loop.issue_share:>11.1%}"
    )


def counts(rows: Sequence[Resources]) -> dict[str, dict[str, dict[str, int]]]:
    """The counts that the tactic model reads, by tactic and architecture.

    They are those of a tactic's float16 kernel, or of its only kernel if it has no float16 one.
    """
    found: dict[str, dict[str, dict[str, int]]] = {}
    # float16 comes last and wins: kernels of the two 16-bit types differ by a few instructions.
    for row in sorted(rows, key=lambda row: row.kernel.endswith("float16") and not row.kernel.endswith("bfloat16")):
        loop = row.loop
        if loop is None or not row.step_columns:
            continue
        found.setdefault(row.kernel.split()[0], {})[str(row.architecture)] = {
            "columns": row.step_columns,
            "threads": row.threads,
            "registers": row.registers,
            "shared_bytes": row.shared_bytes,
            "stages": loop.stages,
            "instructions": loop.instructions,
            "matrix": loop.matrix,
            "shared_loads": loop.shared_loads,
            "async_copies": loop.async_copies,
        }
    return {tactic: dict(sorted(found[tactic].items())) for tactic in sorted(found)}


def measure(architectures: Sequence[int] = ARCHITECTURES) -> list[Resources]:
    """Every kernel, by name and architecture."""
    sources = sorted(KERNELS.glob("*.cu"))
    with ThreadPoolExecutor(max(1, min(2, os.cpu_count() or 1))) as pool:
        found = pool.map(lambda source: compile_resources(source, architectures), sources)
        return sorted((r for rows in found for r in rows), key=lambda r: (r.kernel, r.architecture))


def main() -> None:
    """Print the table; with ``--json`` write it and its provenance."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    rows = measure()
    print(table(rows))
    if arguments.json:
        nvcc = subprocess.run(["nvcc", "--version"], capture_output=True, text=True, check=True).stdout
        version = re.search(r"release [\d.]+, V([\d.]+)", nvcc)
        document = provenance() | {"nvcc": version[1] if version else None, "rows": [_record(row) for row in rows]}
        arguments.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        if any(row.loop for row in rows):
            text = json.dumps({"nvcc": document["nvcc"], "tactics": counts(rows)}, indent=1)
            COUNTS.write_text(text + "\n", encoding="utf-8")
        else:
            print("no nvdisasm: main loops were not counted; pip install nvidia-cuda-nvdisasm to count them")


def _record(row: Resources) -> dict[str, Any]:
    record = asdict(row)
    if row.loop is not None:
        del record["loop"]["function"]
        record |= {"step_columns": row.step_columns, "issue_share": round(row.loop.issue_share, 4)}
    return record


if __name__ == "__main__":
    main()
