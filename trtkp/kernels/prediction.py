"""What a tactic should take on a GPU, and what binds it: **unverified** until timings of that GPU say otherwise.

A block of a tile (pixels M × rows N) walks its list in steps of k columns. Counts of one warp's step come from the
compiled kernel's disassembly (``counts.json``, made by ``benchmarks.kernels.resources``). With b blocks on a
multiprocessor, a step of all of them takes as many cycles as the slowest of

- *arithmetic*: b · M · N · k multiply-accumulates by the tensor cores' rate for ``mma.sync``;
- *issue*: b · warps · instructions by four instructions a cycle;
- *cache*: b · (M + N) · k elements by the multiprocessor's share of the L2 bandwidth;
- *latency*: the time that a load takes by the steps that are in flight.

Blocks come in waves of b on every multiprocessor; the last wave counts with the blocks that it has (its tail). The
layer takes that time or the time of its bytes in device memory, whichever is more (*memory*), and the launches.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from math import lcm
from pathlib import Path
from typing import Any

from trtkp.errors import InputError
from trtkp.kernels.capi import ConvDesc

__all__ = [
    "GPUS",
    "Counts",
    "Gpu",
    "Layer",
    "Prediction",
    "counts_of",
    "gpu_like",
    "known_gpu",
    "occupancy",
    "order",
    "predict",
]

#: Cycles from a load's issue to its data. Measured on an A100 and an H800: 262 out of L2, 466 and 479 out of device
#: memory (Luo et al., "Benchmarking and Dissecting the Nvidia Hopper GPU Architecture", arXiv 2402.13499, table IV).
LOAD_LATENCY = 500
#: Cycles of a block before its first and after its last step: tables, first loads, epilogue. An assumption.
BLOCK_OVERHEAD = 2500
#: Seconds from one launch to the next in a stream; a replayed graph has about half. An assumption.
LAUNCH_S = 4e-6
#: Multiply-accumulates per cycle and multiprocessor of the tactic `reference`, which sums in float64 one by one. An
#: assumption.
REFERENCE_MACS_PER_CYCLE = 1.0

#: Compute capability to shared memory in bytes and threads of a multiprocessor (CUDA C++ Programming Guide, technical
#: specifications per compute capability).
_MULTIPROCESSOR = {80: (164 << 10, 2048), 86: (100 << 10, 1536), 87: (164 << 10, 1536), 89: (100 << 10, 1536),
                   90: (228 << 10, 2048), 100: (228 << 10, 2048), 120: (100 << 10, 1536)}  # fmt: skip
_REGISTERS = 64 << 10
#: What a block takes beside what it asks for.
_RESERVED_SHARED = 1 << 10

_TILE = re.compile(r"_(\d+)x(\d+)")
_SPLIT = re.compile(r"_split(\d+)")
_BITS16 = 2


@dataclass(frozen=True)
class Gpu:
    """Public figures of a GPU.

    Attributes:
        name: as people call it.
        capability: 80 for 8.0.
        multiprocessors: their number.
        clock_hz: boost clock.
        macs_per_cycle: fp16 multiply-accumulates with fp32 sums, of one multiprocessor's tensor cores, dense.
        mma_share: share of that rate which ``mma.sync`` reaches at best.
        bandwidth: bytes per second of device memory.
        cache_bandwidth: bytes per second out of L2.
        cache_bytes: L2.
        source: where the figures stand.
        verified: whether timings on it were held against the model.
    """

    name: str
    capability: int
    multiprocessors: int
    clock_hz: float
    macs_per_cycle: float
    mma_share: float
    bandwidth: float
    cache_bandwidth: float
    cache_bytes: int
    source: str
    verified: bool = False


#: Bytes a cycle and multiprocessor out of L2. The A100's whitepaper says 5120 a cycle in all, 47 for each of its
#: multiprocessors; on an H800 4472 were measured, 39 for each (arXiv 2402.13499, table V). Elsewhere an assumption.
CACHE_BYTES_PER_CYCLE = 48
#: Share of the tensor cores' rate that ``mma.sync`` reaches on Hopper, on average (arXiv 2402.13499); ``wgmma`` reaches
#: nearly all.
HOPPER_MMA_SHARE = 0.63


def _gpu(
    name: str, capability: int, multiprocessors: int, ghz: float, tflops: float, gbs: float, mib: int, source: str,
    mma_share: float = 1.0,
) -> Gpu:  # fmt: skip
    clock = ghz * 1e9
    macs = tflops * 1e12 / 2 / multiprocessors / clock
    cache = CACHE_BYTES_PER_CYCLE * multiprocessors * clock
    return Gpu(name, capability, multiprocessors, clock, macs, mma_share, gbs * 1e9, cache, mib << 20, source)


#: Name to figures: SMs, boost clock, dense fp16 rate with fp32 sums, memory bandwidth and L2. Held against the sources
#: named, or against what quotes them table by table.
GPUS = {
    gpu.name: gpu
    for gpu in (
        _gpu("A100", 80, 108, 1.41, 312, 1555, 40,
             "NVIDIA A100 Tensor Core GPU Architecture whitepaper, table 4 (40 GB SXM4); deviceQuery agrees"),
        _gpu("L4", 89, 58, 2.04, 121, 300, 48,
             "NVIDIA L4 datasheet (242 TFLOPS with sparsity, 300 GB/s); SMs and clock by deviceQuery; L2 of the AD104 "
             "in the NVIDIA Ada GPU Architecture whitepaper"),
        _gpu("RTX 4090", 89, 128, 2.52, 165.2, 1008, 72, "NVIDIA Ada GPU Architecture whitepaper, appendix A"),
        # 170 sparse int8 TOPS of its tensor cores are 42.5 dense in fp16; fp32 sums at the same rate are an assumption.
        _gpu("Orin", 87, 16, 1.3, 42.5, 204.8, 4,
             "NVIDIA Jetson AGX Orin Series Technical Brief v1.2 (64 GB); SMs, clock and L2 by deviceQuery"),
        # The whitepaper's clock was not final: 1.83 GHz is that of the rate. Lighter loads run at up to 1.98.
        _gpu("H100", 90, 132, 1.83, 989.4, 3350, 50,
             "NVIDIA H100 Tensor Core GPU Architecture whitepaper, table 3, and product page (SXM5: 1979 TFLOPS with "
             "sparsity, 3.35 TB/s)", HOPPER_MMA_SHARE),
        _gpu("H200", 90, 132, 1.83, 989.4, 4800, 60,
             "NVIDIA H200 product page (SXM: rate as H100, 4.8 TB/s); SMs and L2 as the driver reports them",
             HOPPER_MMA_SHARE),
    )
}  # fmt: skip


@dataclass(frozen=True)
class Counts:
    """One step of one warp in a compiled main loop, and what its block takes.

    Both sides of a branch count, so ``instructions`` is what a step issues at most.
    """

    columns: int
    threads: int
    registers: int
    shared_bytes: int
    stages: int
    instructions: int
    matrix: int
    shared_loads: int
    async_copies: int


@dataclass(frozen=True)
class Layer:
    """What a prediction needs to know of a layer: M pixels, rows, K columns of a list, filter groups, and its bytes."""

    pixels: int
    rows: int
    columns: int
    filter_groups: int
    input_elements: int
    output_elements: int
    filters: int
    itemsize: int
    has_residual: bool = False

    @classmethod
    def of(cls, desc: ConvDesc, out_height: int, out_width: int) -> Layer:
        """From a description and its output size."""
        taps = desc.kernelRows * desc.kernelColumns
        columns = (desc.listLength * taps, desc.listLength * desc.channels, desc.listLength)[min(desc.listKind, 2)]
        pixels = desc.batch * out_height * out_width
        return cls(
            pixels, desc.rows, columns, desc.listGroups, desc.batch * desc.height * desc.width * desc.xPitch,
            pixels * desc.yPitch, desc.filters, 4 if desc.dataType == 0 else 2, bool(desc.hasResidual),
        )  # fmt: skip

    @property
    def macs(self) -> int:
        """Multiply-accumulates of the lists, padding included."""
        return self.pixels * self.rows * self.columns

    @property
    def bytes(self) -> int:
        """The fewest bytes of device memory: everything once."""
        outputs = self.output_elements * (2 if self.has_residual else 1)
        return self.itemsize * (self.input_elements + outputs + self.rows * self.columns)


@dataclass(frozen=True)
class Prediction:
    """Seconds of a launch, and which bound binds: arithmetic, issue, cache, latency, memory or launch."""

    tactic: str
    seconds: float
    bound: str
    verified: bool = False


def predict(tactic: str, layer: Layer, gpu: Gpu) -> Prediction | None:
    """The prediction for a tactic; None for one that the model knows nothing of."""
    memory = layer.bytes / gpu.bandwidth
    if tactic == "reference":
        work = layer.macs / (REFERENCE_MACS_PER_CYCLE * gpu.multiprocessors * gpu.clock_hz)
        return _slowest(tactic, {"arithmetic": work, "memory": memory}, LAUNCH_S, gpu)
    tile, counts = _TILE.search(tactic), counts_of(tactic, gpu.capability)
    if tile is None or counts is None:
        return None
    m, n = int(tile[1]), int(tile[2])
    found = _SPLIT.search(tactic)
    splits = int(found[1]) if found else 1

    row_tiles = -(-layer.rows // n)
    runs = _lists_per_tile(layer, n, row_tiles)
    steps = runs * -(-layer.columns // counts.columns) / splits
    blocks = -(-layer.pixels // m) * row_tiles * splits
    resident = occupancy(counts.threads, counts.registers, counts.shared_bytes, gpu.capability)
    per_wave = resident * gpu.multiprocessors
    waves, rest = divmod(blocks, per_wave)

    cycles = {"launch": 0.0}
    for number, share in ((waves, resident), (1, -(-rest // gpu.multiprocessors))):
        if number == 0 or share == 0:
            continue
        per_step = _step_cycles(m, n, share, counts, layer.itemsize, tactic.startswith("sparse"), gpu)
        bound = max(per_step, key=per_step.__getitem__)
        cycles[bound] = cycles.get(bound, 0.0) + number * steps * per_step[bound]
        cycles["launch"] += number * BLOCK_OVERHEAD
    extra = LAUNCH_S
    if splits > 1:  # float32 sums are written, then read by a second kernel
        memory += 2 * 4 * splits * layer.pixels * row_tiles * n / gpu.bandwidth
        extra += LAUNCH_S
    overhead = cycles.pop("launch") / gpu.clock_hz
    work = sum(cycles.values()) / gpu.clock_hz
    bound = max(cycles, key=cycles.__getitem__)
    return _slowest(tactic, {bound: work, "memory": memory}, extra + overhead, gpu)


def order(tactics: Iterable[str], layer: Layer, gpu: Gpu) -> list[Prediction]:
    """Predictions of the tactics that the model knows, fastest first."""
    found = (predict(tactic, layer, gpu) for tactic in tactics)
    return sorted((p for p in found if p is not None), key=lambda p: p.seconds)


def counts_of(tactic: str, capability: int) -> Counts | None:
    """The recorded counts of a tactic's tile, of the nearest recorded architecture that is not later."""
    table = _counts().get(_SPLIT.sub("", tactic), {})
    recorded = [int(architecture) for architecture in table]
    if not recorded:
        return None
    fit = [architecture for architecture in recorded if architecture <= capability] or recorded
    return Counts(**table[str(max(fit))])


def known_gpu(name: str) -> Gpu:
    """One of `GPUS`, by a name that has its name among its words: "NVIDIA A100-SXM4-80GB".

    Raises:
        InputError: none of them.
    """
    for key, gpu in GPUS.items():
        if re.search(rf"\b{key}\b", name, re.IGNORECASE):
            return gpu
    raise InputError(f"GPU {name}: the tactic model has no figures for it", remedy=f"use one of {', '.join(GPUS)}")


def gpu_like(properties: Any) -> Gpu:
    """The figures of a device by `torch.cuda.get_device_properties`; of its generation where it is none of `GPUS`."""
    try:
        return known_gpu(properties.name)
    except InputError:
        capability = 10 * properties.major + properties.minor
        older = [gpu for gpu in GPUS.values() if gpu.capability <= capability] or list(GPUS.values())
        like = max(older, key=lambda gpu: gpu.capability)
        scale = properties.multi_processor_count / like.multiprocessors
        return Gpu(properties.name, capability, properties.multi_processor_count, like.clock_hz, like.macs_per_cycle,
                   like.mma_share, like.bandwidth * scale, like.cache_bandwidth * scale, properties.L2_cache_size,
                   f"scaled from {like.name} by multiprocessors")  # fmt: skip


def occupancy(threads: int, registers: int, shared_bytes: int, capability: int) -> int:
    """Blocks that a multiprocessor holds (CUDA C++ Programming Guide, compute capabilities)."""
    most_shared, most_threads = _MULTIPROCESSOR[max(c for c in _MULTIPROCESSOR if c <= capability)]
    # Registers are given to warps in units of 256.
    per_block = -(-registers * 32 // 256) * 256 * (threads // 32)
    limits = [_REGISTERS // per_block, most_threads // threads]
    if shared_bytes:
        limits.append(most_shared // (shared_bytes + _RESERVED_SHARED))
    return min(limits)


def _lists_per_tile(layer: Layer, n: int, row_tiles: int) -> float:
    """Lists that a tile of n rows walks on average: one for every filter group among its rows, of equal groups."""
    per_group = max(1, layer.rows // layer.filter_groups)
    inside = layer.filter_groups - 1 - (layer.rows - 1) // lcm(per_group, n)
    return 1 + max(0, inside) / row_tiles


def _step_cycles(
    m: int, n: int, blocks: int, counts: Counts, itemsize: int, is_sparse: bool, gpu: Gpu
) -> dict[str, float]:
    """Cycles of one step of ``blocks`` blocks on a multiprocessor, by bound."""
    # TF32 runs at half the rate of 16 bits; sparse tensor cores skip half of the products.
    rate = gpu.macs_per_cycle * gpu.mma_share * (_BITS16 / itemsize) * (2 if is_sparse else 1)
    cache = gpu.cache_bandwidth / gpu.multiprocessors / gpu.clock_hz
    return {
        "arithmetic": blocks * m * n * counts.columns / rate,
        "issue": blocks * counts.threads / 32 * counts.instructions / 4,
        "cache": blocks * (m + n) * counts.columns * itemsize / cache,
        "latency": LOAD_LATENCY / (counts.stages - 1),
    }


def _slowest(tactic: str, seconds: dict[str, float], overhead: float, gpu: Gpu) -> Prediction:
    bound = max(seconds, key=seconds.__getitem__)
    worst = seconds[bound]
    return Prediction(tactic, worst + overhead, bound if worst >= overhead else "launch", gpu.verified)


@cache
def _counts() -> dict[str, dict[str, dict[str, int]]]:
    document: dict[str, Any] = json.loads((Path(__file__).parent / "counts.json").read_text(encoding="utf-8"))
    return document["tactics"]
