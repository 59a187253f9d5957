"""What ``compare`` finds: plain records, in the units that their names say."""

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
    """Time of one run at one batch size, in turn with the others.

    Attributes:
        batch: samples of a run.
        timing: median and percentiles, ms.
        throughput: samples per second at the median.
        speed_up: baseline's median over this one's.
    """

    batch: int
    timing: Timing
    throughput: float
    speed_up: Ratio


@dataclass(frozen=True)
class Difference:
    """Outputs against the baseline's on the same inputs, the worst of all outputs.

    Attributes:
        max_abs: largest absolute difference.
        relative: ``||y - b|| / ||b||`` over all elements of all samples.
        top1_agreement: share of samples whose largest value in the first output is at the same place; None where that
            is not [N, classes].
        samples: number of inputs.
    """

    max_abs: float
    relative: float
    top1_agreement: float | None
    samples: int


@dataclass(frozen=True)
class Costs:
    """Parameters and MACs of one sample (1 MAC = 1 FLOP), before pruning and after; index bytes are in none of them.

    Attributes:
        density: share of MACs left.
        bound: ``1 / density``, the most that the MACs left allow.
        index_bytes: of our index sets.
        paper_index_bytes: of the method's own format in its paper; None where it has none.
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
    """Resident memory of a fresh process that opens the engine and runs it at the largest batch.

    Attributes:
        peak_bytes: its peak.
        libraries_bytes: what importing the libraries took of it.
    """

    peak_bytes: int
    libraries_bytes: int


@dataclass(frozen=True)
class LayerTime:
    """One weighted layer in a profiled run, ms.

    Attributes:
        name: parameter name of its weight.
        compute_ms: its convolutions or matrix products, with what was fused into them.
        neighbours_ms: reorders, copies, casts and other operators that belong to it.
        neighbours: how many of them, by operator.
    """

    name: str
    compute_ms: float
    neighbours_ms: float
    neighbours: dict[str, int]


@dataclass(frozen=True)
class LayerTimes:
    """Where a profiled run spent its time, ms. Profiling slows a run: shares hold, sums are no latency.

    Attributes:
        batch: samples of a run.
        layers: in the order of execution.
        groups: by kind of operator; what is not in an operator is ``between operators``.
        operators: median ms by operator type.
        run_ms: the whole run.
        moves: reorders and copies in a run.
    """

    batch: int
    layers: tuple[LayerTime, ...]
    groups: dict[str, float]
    operators: dict[str, float]
    run_ms: float
    moves: int


@dataclass(frozen=True)
class DensityMap:
    """Share of taps kept, of every (filter, channel) pair or of blocks of them.

    Attributes:
        layer: parameter name.
        kind: kernel, stripe or pattern.
        shape: F, C, R, S.
        density: share of weights kept.
        filter_groups: lists in the index set.
        index_bytes: of the index set.
        paper_index_bytes: of the paper's format, where the method has one.
        cells: uint8 [rows, columns], 255 for all taps kept; filters down, channels across.
        taps: uint8 [R, S], share of kernels that keep the tap, 255 for all.
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
    """One of the things compared; the first is the baseline.

    Attributes:
        name: its path as it was given.
        label: a short name that no other has.
        kind: what it is.
        backend: what ran it.
        precision: as its manifest says; None where nothing says it.
        threads: CPU threads; None where it computes elsewhere.
        latencies: one for each batch size.
        difference: None for the baseline.
        accuracy: on labelled data; None without.
        costs: None where nothing tells (a bare engine).
        engine_bytes: size of what was run.
        memory: None where it was not measured, with the reason in ``notes``.
        layers: None where it was not profiled, with the reason in ``notes``.
        settings: how it was made, by name.
        command: a command that makes it again; None where nothing tells.
        notes: what was not done and why.
        density_maps: of its index sets; not part of the JSON document.
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
    """Two or more engines on the same inputs.

    Attributes:
        entries: the baseline first.
        batches: the sweep.
        inputs: what outputs were compared on, in words.
        data: name of the data set; None without.
        rounds: what was asked for: openings, warm-up, runs and seconds for each batch.
        environment: machine and library versions.
        created: UTC, ISO 8601.
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
        """What the others are held against."""
        return self.entries[0]

    def document(self) -> dict[str, Any]:
        """Everything but the density maps, in JSON's types."""
        document = asdict(self)
        for entry in document["entries"]:
            del entry["density_maps"]
        return document
