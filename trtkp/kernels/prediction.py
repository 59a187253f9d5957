"""The model of the kernels: how long a tactic should take on a GPU, and what limits it.

It is **unverified** for every GPU whose figures do not say otherwise (`Gpu.verified`).

A thread block computes a tile of M pixels × N rows, and walks its list in steps of k columns. The counts of one step of
one warp come from the disassembly of the compiled kernel (``counts.json``, made by ``benchmarks.kernels.resources``).
With b blocks on a multiprocessor, one step of all of them takes as many cycles as the slowest of

- *arithmetic*: b · M · N · k multiply-accumulates, divided by the tensor cores' rate for ``mma.sync``;
- *issue*: b · warps · instructions, divided by four instructions a cycle;
- *cache*: b · (M + N) · k elements, divided by the multiprocessor's share of the L2 bandwidth;
- *latency*: the latency of a load, divided by the number of steps in flight.

Blocks run in waves of b on every multiprocessor. The last wave counts with the blocks that it has (the tail). A layer
takes that time, or the time of moving its bytes through device memory (*memory*), whichever is more, plus its launches.
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

#: Cycles from the issue of a load to its data. Measured on an A100 and an H800: 262 from L2, 466 and 479 from device
#: memory (Luo et al., "Benchmarking and Dissecting the Nvidia Hopper GPU Architecture", arXiv 2402.13499, table IV).
LOAD_LATENCY = 500
#: Cycles of a block before its first step and after its last one: tables, first loads, epilogue. An assumption.
BLOCK_OVERHEAD = 2500
#: Seconds from one launch to the next in a stream. A replayed graph takes about half of it. An assumption.
LAUNCH_S = 4e-6
#: Multiply-accumulates per cycle and multiprocessor of the tactic ``reference``, which adds in float64, one product
#: after the other. An assumption.
REFERENCE_MACS_PER_CYCLE = 1.0

#: Compute capability to the bytes of shared memory and the threads of a multiprocessor (CUDA C++ Programming Guide,
#: technical specifications per compute capability).
_MULTIPROCESSOR = {80: (164 << 10, 2048), 86: (100 << 10, 1536), 87: (164 << 10, 1536), 89: (100 << 10, 1536),
                   90: (228 << 10, 2048), 100: (228 << 10, 2048), 120: (100 << 10, 1536)}  # fmt: skip
#: 32-bit registers of a multiprocessor, the same for all of these capabilities.
_REGISTERS = 64 << 10
#: Bytes of shared memory that the system reserves for each block.
_RESERVED_SHARED = 1 << 10

_TILE = re.compile(r"_(\d+)x(\d+)")
_SPLIT = re.compile(r"_split(\d+)")
_BITS16 = 2


@dataclass(frozen=True)
class Gpu:
    """Public figures of a GPU.

    Attributes:
        name: short name, such as ``A100``.
        capability: compute capability, 80 for 8.0.
        multiprocessors: number of streaming multiprocessors.
        clock_hz: boost clock in Hz.
        macs_per_cycle: dense fp16 multiply-accumulates with fp32 sums, per cycle and multiprocessor.
        mma_share: share of that rate that ``mma.sync`` reaches at best.
        bandwidth: bytes per second of device memory.
        cache_bandwidth: bytes per second from L2, for the whole GPU.
        cache_bytes: size of the L2 cache.
        source: where the figures come from.
        verified: whether the model was compared with timings on this GPU.
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


#: Bytes per cycle and multiprocessor from L2. The A100's whitepaper has 5120 per cycle for the GPU, which is 47 for
#: each multiprocessor; 4472 were measured on an H800, 39 for each (arXiv 2402.13499, table V). An assumption for other
#: GPUs.
CACHE_BYTES_PER_CYCLE = 48
#: Average share of the tensor cores' rate that ``mma.sync`` reaches on Hopper (arXiv 2402.13499). ``wgmma``, which our
#: kernels do not use, reaches nearly all of it.
HOPPER_MMA_SHARE = 0.63


def _gpu(
    name: str, capability: int, multiprocessors: int, ghz: float, tflops: float, gbs: float, mib: int, source: str,
    mma_share: float = 1.0,
) -> Gpu:  # fmt: skip
    clock = ghz * 1e9
    macs = tflops * 1e12 / 2 / multiprocessors / clock
    cache = CACHE_BYTES_PER_CYCLE * multiprocessors * clock
    return Gpu(name, capability, multiprocessors, clock, macs, mma_share, gbs * 1e9, cache, mib << 20, source)


#: Name to figures: multiprocessors, boost clock in GHz, dense fp16 rate with fp32 sums in TFLOP/s, memory bandwidth in
#: GB/s, L2 in MiB. They were checked against the named sources, or against texts that quote their tables.
GPUS = {
    gpu.name: gpu
    for gpu in (
        _gpu("A100", 80, 108, 1.41, 312, 1555, 40,
             "NVIDIA A100 Tensor Core GPU Architecture whitepaper, table 4 (40 GB SXM4); deviceQuery agrees"),
        _gpu("L4", 89, 58, 2.04, 121, 300, 48,
             "NVIDIA L4 datasheet (242 TFLOPS with sparsity, 300 GB/s); SMs and clock by deviceQuery; L2 of the AD104 "
             "in the NVIDIA Ada GPU Architecture whitepaper"),
        _gpu("RTX 4090", 89, 128, 2.52, 165.2, 1008, 72, "NVIDIA Ada GPU Architecture whitepaper, appendix A"),
        # 170 sparse int8 TOPS of the tensor cores are 42.5 dense TFLOPS in fp16. That fp32 sums run at the same rate is
        # an assumption.
        _gpu("Orin", 87, 16, 1.3, 42.5, 204.8, 4,
             "NVIDIA Jetson AGX Orin Series Technical Brief v1.2 (64 GB); SMs, clock and L2 by deviceQuery"),
        # The sparse fp4 rate is 2070 TFLOPS. That dense fp16 with fp32 sums runs at an eighth of it, as on the B200,
        # and that `mma.sync` reaches Hopper's share of that, are assumptions.
        _gpu("Thor", 110, 20, 1.575, 258.75, 273, 32,
             "NVIDIA Jetson Thor datasheet (T5000: 2070 sparse fp4 TFLOPS, 273 GB/s); SMs and L2 by the driver",
             HOPPER_MMA_SHARE),
        # The whitepaper's clock was not final: the product's rate implies 1.83 GHz. Lighter loads run at up to 1.98.
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
    """Counts of one step of one warp in a compiled main loop, and the resources of its block.

    Both sides of a branch count, so ``instructions`` is an upper bound on what a step issues.

    Attributes:
        columns: columns of the list in one step.
        threads: threads of a block.
        registers: registers of a thread.
        shared_bytes: shared memory of a block.
        stages: stages of the copy pipeline.
        instructions: instructions in one step.
        matrix: matrix instructions among them.
        shared_loads: loads of matrix operands from shared memory.
        async_copies: asynchronous copies from global to shared memory.
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
    """The sizes of a layer that a prediction needs.

    Attributes:
        pixels: output pixels of the batch, the M of the GEMM.
        rows: packed rows of weight, the N.
        columns: columns of a list, the K.
        filter_groups: number of filter groups.
        input_elements: elements of the input, pitch included.
        output_elements: elements of the output, pitch included.
        filters: number of filters, without padding rows.
        itemsize: bytes per element.
        has_residual: whether a residual is read.
    """

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
        """The sizes of a described convolution with the given output height and width."""
        taps = desc.kernelRows * desc.kernelColumns
        columns = (desc.listLength * taps, desc.listLength * desc.channels, desc.listLength)[min(desc.listKind, 2)]
        pixels = desc.batch * out_height * out_width
        return cls(
            pixels, desc.rows, columns, desc.listGroups, desc.batch * desc.height * desc.width * desc.xPitch,
            pixels * desc.yPitch, desc.filters, 4 if desc.dataType == 0 else 2, bool(desc.hasResidual),
        )  # fmt: skip

    @property
    def macs(self) -> int:
        """Multiply-accumulates of all rows over their lists, padding included."""
        return self.pixels * self.rows * self.columns

    @property
    def bytes(self) -> int:
        """Bytes that must at least pass through device memory: every tensor once."""
        outputs = self.output_elements * (2 if self.has_residual else 1)
        return self.itemsize * (self.input_elements + outputs + self.rows * self.columns)


@dataclass(frozen=True)
class Prediction:
    """A predicted time.

    Attributes:
        tactic: name of the tactic.
        seconds: predicted seconds, launches included.
        bound: what limits it: arithmetic, issue, cache, latency, memory or launch.
        verified: see `Gpu.verified`.
    """

    tactic: str
    seconds: float
    bound: str
    verified: bool = False


def predict(tactic: str, layer: Layer, gpu: Gpu) -> Prediction | None:
    """The prediction for a tactic; None if the model has no counts for it.

    Example:
        >>> pixels = 32 * 28 * 28
        >>> layer = Layer(pixels=pixels, rows=128, columns=288, filter_groups=1, input_elements=pixels * 128,
        ...               output_elements=pixels * 128, filters=128, itemsize=2)
        >>> fast, slow = (predict(name, layer, GPUS["A100"]) for name in ("mma_128x128_k64", "reference"))
        >>> fast.seconds < slow.seconds / 10
        True
    """
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

    # One tile walks a list for every filter group among its rows; a split tactic divides the steps among blocks.
    row_tiles = -(-layer.rows // n)
    runs = _lists_per_tile(layer, n, row_tiles)
    steps = runs * -(-layer.columns // counts.columns) / splits
    blocks = -(-layer.pixels // m) * row_tiles * splits
    resident = occupancy(counts.threads, counts.registers, counts.shared_bytes, gpu.capability)
    per_wave = resident * gpu.multiprocessors
    waves, rest = divmod(blocks, per_wave)

    # Full waves, then the tail with as many blocks on a multiprocessor as are left.
    cycles = {"launch": 0.0}
    for number, share in ((waves, resident), (1, -(-rest // gpu.multiprocessors))):
        if number == 0 or share == 0:
            continue
        per_step = _step_cycles(m, n, share, counts, layer.itemsize, tactic.startswith("sparse"), gpu)
        bound = max(per_step, key=per_step.__getitem__)
        cycles[bound] = cycles.get(bound, 0.0) + number * steps * per_step[bound]
        cycles["launch"] += number * BLOCK_OVERHEAD
    extra = LAUNCH_S
    if splits > 1:  # float32 sums are written to the workspace, and read by a second kernel
        memory += 2 * 4 * splits * layer.pixels * row_tiles * n / gpu.bandwidth
        extra += LAUNCH_S
    overhead = cycles.pop("launch") / gpu.clock_hz
    work = sum(cycles.values()) / gpu.clock_hz
    bound = max(cycles, key=cycles.__getitem__)
    return _slowest(tactic, {bound: work, "memory": memory}, extra + overhead, gpu)


def order(tactics: Iterable[str], layer: Layer, gpu: Gpu) -> list[Prediction]:
    """Predictions for the tactics that the model can predict, fastest first."""
    found = (predict(tactic, layer, gpu) for tactic in tactics)
    return sorted((p for p in found if p is not None), key=lambda p: p.seconds)


def counts_of(tactic: str, capability: int) -> Counts | None:
    """The recorded counts of a tactic's tile; None if there are none.

    They are those of the latest recorded architecture that is not newer than ``capability``. Split tactics run the main
    loop of the tile that they split.
    """
    table = _counts().get(_SPLIT.sub("", tactic), {})
    recorded = [int(architecture) for architecture in table]
    if not recorded:
        return None
    fit = [architecture for architecture in recorded if architecture <= capability] or recorded
    return Counts(**table[str(max(fit))])


def known_gpu(name: str) -> Gpu:
    """The GPU of `GPUS` whose name is one of the words of ``name``.

    Raises:
        InputError: none is.

    Example:
        >>> known_gpu("NVIDIA A100-SXM4-80GB").multiprocessors
        108
    """
    for key, gpu in GPUS.items():
        if re.search(rf"\b{key}\b", name, re.IGNORECASE):
            return gpu
    raise InputError(f"GPU {name}: the tactic model has no figures for it", remedy=f"use one of {', '.join(GPUS)}")


def gpu_like(properties: Any) -> Gpu:
    """The figures of a device. One that is not in `GPUS` gets those of its generation, scaled by multiprocessors.

    Args:
        properties: as ``torch.cuda.get_device_properties`` returns them, or an object with the same attributes.
    """
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
    """Number of blocks that a multiprocessor holds at once (CUDA C++ Programming Guide, compute capabilities).

    Example:
        >>> occupancy(threads=256, registers=128, shared_bytes=64 << 10, capability=80)
        2
    """
    most_shared, most_threads = _MULTIPROCESSOR[max(c for c in _MULTIPROCESSOR if c <= capability)]
    # Registers are allocated to warps in units of 256.
    per_block = -(-registers * 32 // 256) * 256 * (threads // 32)
    limits = [_REGISTERS // per_block, most_threads // threads]
    if shared_bytes:
        limits.append(most_shared // (shared_bytes + _RESERVED_SHARED))
    return min(limits)


def _lists_per_tile(layer: Layer, n: int, row_tiles: int) -> float:
    """Number of lists that a tile of n rows walks on average, one for every filter group among its rows.

    It assumes groups of equal size. Every boundary between groups that is not a boundary between tiles adds one list.
    """
    per_group = max(1, layer.rows // layer.filter_groups)
    inside = layer.filter_groups - 1 - (layer.rows - 1) // lcm(per_group, n)
    return 1 + max(0, inside) / row_tiles


def _step_cycles(
    m: int, n: int, blocks: int, counts: Counts, itemsize: int, is_sparse: bool, gpu: Gpu
) -> dict[str, float]:
    """Cycles that each bound allows for one step of ``blocks`` blocks on a multiprocessor."""
    # TF32 runs at half the rate of 16-bit types. Sparse tensor cores skip half of the products.
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
