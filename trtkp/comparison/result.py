"""The results of ``compare``, as plain records. Times are in milliseconds and sizes in bytes, as the names say."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from trtkp.machine.timing import Timing

__all__ = [
    "Comparison",
    "Costs",
    "DensityMap",
    "Difference",
    "Entry",
    "Latency",
    "LayerTime",
    "LayerTimes",
    "Memory",
    "Ratio",
    "SourceKind",
]

SourceKind: TypeAlias = Literal["bundle", "onnx", "engine"]


@dataclass(frozen=True)
class Ratio:
    """A ratio and its confidence interval (``trtkp.comparison.ratio``)."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Latency:
    """Latency at one batch size, measured in turn with the other engines.

    Attributes:
        batch: samples per run.
        timing: median and percentiles in ms.
        throughput: samples per second at the median.
        speed_up: the baseline's median divided by this one's.
    """

    batch: int
    timing: Timing
    throughput: float
    speed_up: Ratio


@dataclass(frozen=True)
class Difference:
    """Difference between an engine's outputs and the baseline's on the same inputs; the worst of all outputs.

    Attributes:
        max_abs: largest absolute difference.
        relative: ``||y - b|| / ||b||`` over all elements of all samples.
        top1_agreement: share of samples with the same largest class in the first output; None where that output is not
            [N, classes].
        samples: number of samples compared.
    """

    max_abs: float
    relative: float
    top1_agreement: float | None
    samples: int


@dataclass(frozen=True)
class Costs:
    """Parameters and MACs of one sample (1 MAC = 1 FLOP), before and after pruning.

    Attributes:
        dense_params: parameters before pruning.
        retained_params: parameters kept, without index bytes.
        dense_macs: MACs before pruning.
        retained_macs: MACs kept.
        density: share of MACs kept.
        bound: ``1 / density``, the speed-up if only the remaining MACs took time.
        index_bytes: size of the index sets.
        paper_index_bytes: size of the indices in the format of the method's paper; None where it has none.
    """

    dense_params: int
    retained_params: int
    dense_macs: int
    retained_macs: int
    density: float | None
    bound: float | None
    index_bytes: int
    paper_index_bytes: int | None


@dataclass(frozen=True)
class Memory:
    """Resident memory of a new process that opens the engine and runs it at the largest batch.

    Attributes:
        peak_bytes: its peak.
        libraries_bytes: the part of the peak that was reached by importing the libraries.
    """

    peak_bytes: int
    libraries_bytes: int


@dataclass(frozen=True)
class LayerTime:
    """Time of one layer in a profiled run.

    Attributes:
        name: parameter name of its weight.
        compute_ms: time of its convolutions or matrix products, including what was fused into them.
        neighbours_ms: time of the reorders, copies, casts and other operators that belong to it.
        neighbours: number of those, by operator.
    """

    name: str
    compute_ms: float
    neighbours_ms: float
    neighbours: dict[str, int]


@dataclass(frozen=True)
class LayerTimes:
    """Where a profiled run spent its time. Profiling slows a run down, so use the shares and not the sums.

    Attributes:
        batch: samples per run.
        layers: the layers in the order of execution.
        groups: ms by kind of operator; time outside of operators is ``between operators``.
        operators: median ms by operator type.
        run_ms: time of the whole run.
        moves: number of reorders and copies per run.
    """

    batch: int
    layers: tuple[LayerTime, ...]
    groups: dict[str, float]
    operators: dict[str, float]
    run_ms: float
    moves: int


@dataclass(frozen=True)
class DensityMap:
    """The density of one pruned layer: share of taps kept by every kernel, or by every block of kernels.

    Attributes:
        layer: parameter name.
        kind: kind of the index set: kernel, stripe or pattern.
        shape: shape [F, C, R, S] of the weight.
        density: share of weights kept.
        filter_groups: number of filter groups, each with its own list of kept kernels.
        index_bytes: size of the index set.
        paper_index_bytes: size in the format of the method's paper; None where it has none.
        cells: uint8 [rows, columns], 255 for all taps kept; rows are filters, columns are channels.
        taps: uint8 [R, S], share of kernels that keep each tap, 255 for all.
    """

    layer: str
    kind: str
    shape: tuple[int, int, int, int]
    density: float
    filter_groups: int
    index_bytes: int
    paper_index_bytes: int | None
    cells: npt.NDArray[np.uint8] = field(repr=False)
    taps: npt.NDArray[np.uint8] = field(repr=False)


@dataclass(frozen=True)
class Entry:
    """One of the compared engines; the first is the baseline.

    Attributes:
        name: its path, as given.
        label: a short, unique name.
        kind: bundle, ONNX file or bare engine.
        backend: name of the backend that ran it.
        precision: precision by its manifest; None where it has no manifest.
        threads: CPU threads; None for an engine on a GPU.
        latencies: latency at each batch size.
        difference: difference from the baseline's outputs; None for the baseline.
        accuracy: accuracy in [0, 1] on labelled data; None without labels.
        costs: parameters and MACs; None where they are unknown (a bare engine).
        engine_bytes: size of the engine's files.
        memory: peak memory; None where it was not measured, with the reason in ``notes``.
        layers: time per layer; None where it was not profiled, with the reason in ``notes``.
        settings: how it was built, by name.
        command: a command that builds it again; None where it is unknown.
        notes: what was not measured, and why.
        density_maps: maps of its index sets; not part of the JSON document.
    """

    name: str
    label: str
    kind: SourceKind
    backend: str
    precision: str | None
    threads: int | None
    latencies: tuple[Latency, ...]
    difference: Difference | None
    accuracy: float | None
    costs: Costs | None
    engine_bytes: int
    memory: Memory | None
    layers: LayerTimes | None
    settings: dict[str, str]
    command: str | None
    notes: tuple[str, ...] = ()
    density_maps: tuple[DensityMap, ...] = field(default=(), repr=False)


@dataclass(frozen=True)
class Comparison:
    """The comparison of two or more engines on the same inputs.

    Attributes:
        entries: the engines, the baseline first.
        batches: the batch sizes.
        inputs: description of the inputs on which outputs were compared.
        data: name of the data set; None without one.
        rounds: the requested openings, warm-up rounds, runs and seconds per batch size.
        environment: machine and library versions.
        created: time in UTC, in ISO 8601 format.
    """

    entries: tuple[Entry, ...]
    batches: tuple[int, ...]
    inputs: str
    data: str | None
    rounds: dict[str, float | None]
    environment: dict[str, str]
    created: str

    @property
    def baseline(self) -> Entry:
        """The engine with which the others are compared."""
        return self.entries[0]

    def document(self) -> dict[str, Any]:
        """Everything except the density maps, as JSON-compatible values."""
        document = asdict(self)
        for entry in document["entries"]:
            del entry["density_maps"]
        return document
