"""The schema of ``manifest.json``: what a bundle holds, how it was built, and the SHA-256 of every other file in it.

The classes are the format. Unknown keys are refused (``extra="forbid"``), so a key that is added or renamed needs a new
`VERSION`.
"""

from __future__ import annotations

from hashlib import sha256
from pathlib import PurePosixPath
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from trtkp.bundle.calibration import LayerChoice, Scores
from trtkp.engine import BACKENDS
from trtkp.engine.base import QdqVariant, fuses_qdq

__all__ = [
    "FORMAT",
    "HASH_LINE",
    "MANIFEST",
    "MANIFEST_HASH",
    "VERSION",
    "DeadRecord",
    "FileRecord",
    "GatherRecord",
    "LayerRecord",
    "Manifest",
    "PlanRecord",
    "QuantisationRecord",
    "RemovedRecord",
    "SourceRecord",
    "TensorRTRecord",
    "TensorRecord",
    "TimingRecord",
    "TotalsRecord",
    "hash_line",
]

FORMAT: Final = "trtkp.bundle"
VERSION: Final = 1
MANIFEST = "manifest.json"
MANIFEST_HASH = "manifest.sha256"
#: Content of `MANIFEST_HASH`. It is sha256sum's format, so ``sha256sum -c manifest.sha256`` checks it without trtkp.
HASH_LINE: Final = rb"[0-9a-f]{64}  manifest\.json\n"


def hash_line(manifest: bytes) -> bytes:
    """The content of `MANIFEST_HASH` for a manifest with these bytes."""
    return f"{sha256(manifest).hexdigest()}  {MANIFEST}\n".encode()


def _plain_name(name: str) -> str:
    # A manifest from elsewhere must not make the reader open files outside the bundle.
    if name in ("", ".", "..") or PurePosixPath(name).name != name or "\\" in name or "\0" in name:
        raise ValueError(f"{name!r} is not the name of a file in the bundle's own folder")
    return name


def _known_backend(name: str) -> str:
    if name not in BACKENDS:
        raise ValueError(f"{name[:80]!r} is none of {', '.join(BACKENDS)}")
    return name


BackendName = Annotated[str, AfterValidator(_known_backend)]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
FileName = Annotated[str, AfterValidator(_plain_name)]


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class FileRecord(_Record):
    """Hash and size of one file of the bundle."""

    sha256: Digest
    bytes: int


class SourceRecord(_Record):
    """The model that was built: its path relative to the bundle, and how it was read."""

    file: str
    sha256: Digest
    format: str
    arch: str | None = None
    reference: str
    """What computes the reference outputs for ``verify``: PyTorch or the source ONNX file."""


class TensorRecord(_Record):
    """A graph input or output. A dynamic dimension is given by its name."""

    name: str
    dtype: str
    shape: list[int | str]


class TimingRecord(_Record):
    """Wall-clock times in milliseconds: median, 10th and 90th percentile over ``runs`` runs."""

    median_ms: float
    p10_ms: float
    p90_ms: float
    runs: int


class LayerRecord(_Record):
    """One convolution: its dimensions, what pruning kept of it, and how ``engine.onnx`` computes it."""

    name: str
    node: str
    shape: tuple[int, int, int, int]
    """Shape [F, C, R, S] of the weight."""
    groups: int
    strides: tuple[int, int]
    dilations: tuple[int, int]
    input_size: tuple[int, int]
    output_size: tuple[int, int]
    kind: Literal["dense", "kernel", "stripe", "pattern"]
    reason: str | None = None
    """Why the layer stayed dense; None for a pruned layer."""
    filter_groups: int | None = None
    density: float
    dense_params: int
    retained_params: int
    dense_macs: int
    retained_macs: int
    index_bytes: int
    paper_index_bytes: int | None = None
    op: str | None = None
    """Operator of the layer's node in ``model.onnx``."""
    lowering: str | None = None
    """The lowering chosen for ``engine.onnx``."""
    why: str | None = None
    """Why the planner chose that lowering."""
    measured: bool = False
    """Whether the candidates were timed; otherwise their times are predicted."""
    candidates: dict[str, float] = {}
    """Per lowering: median ms where measured, otherwise the predicted share of the dense time."""
    spread: dict[str, tuple[float, float]] = {}
    """10th and 90th percentile in ms per lowering, where measured."""
    inapplicable: dict[str, str] = {}
    """Lowerings that cannot express this layer, with the reason."""


class PaperCounts(_Record):
    """The whole net counted as the method's authors count it. Index bytes are not part of the parameters."""

    counting: str
    dense_params: int
    retained_params: int
    dense_flops: int
    retained_flops: int
    other: PaperCounts | None = None
    """The authors' second way of counting, where they use two."""


class TotalsRecord(_Record):
    """The whole net before and after pruning. Index bytes are not part of the parameters."""

    dense_params: int
    retained_params: int
    dense_macs: int
    retained_macs: int
    index_bytes: int
    paper_index_bytes: int | None = None
    as_in_paper: PaperCounts | None = None
    """None where the authors count as trtkp does, or where their way of counting is not known."""


class RemovedRecord(_Record):
    """Dead parts removed from one layer: filters, channels per group, dense parameters, MACs per sample."""

    name: str
    node: str
    filters: int
    channels: int
    params: int
    macs: int


class DeadRecord(_Record):
    """Dead parts of the whole net that were removed from ``engine.onnx``. A shared weight counts once."""

    filters: int
    channels: int
    params: int
    macs: int
    layers: list[RemovedRecord]
    before: TimingRecord | None = None
    """Time of the dense masked net with its dead parts, where it was measured."""
    after: TimingRecord | None = None
    """Time of the same net without them."""


class GatherRecord(_Record):
    """Channel gathers: written by the planner, left after folding, and elements per sample that folding saves."""

    before: int
    after: int
    elements: int


class PlanRecord(_Record):
    """How the lowerings of ``engine.onnx`` were chosen, and what the whole net gained."""

    status: Literal["measured", "unmeasured", "forced"]
    threads: int | None = None
    dense: TimingRecord | None = None
    planned: TimingRecord | None = None
    dead: DeadRecord | None = None
    gathers: GatherRecord | None = None
    notes: list[str] = []


class QuantisationRecord(_Record):
    """How an int8 or fp8 bundle was quantised. The ranges and scales are in ``calibration.json``."""

    fallback: Literal["fp32", "fp16"]
    """Type of the layers that are not quantised."""
    form: QdqVariant
    """Q/DQ variant: which tensors are quantised."""
    method: str
    """How the ranges were found."""
    percentile: float | None = None
    scores: Scores
    layers: dict[str, LayerChoice]
    floating: TimingRecord | None = None
    """Time of the planned graph before quantisation, where it could be measured."""
    quantised: TimingRecord | None = None
    """Time of the quantised graph, where it could be measured."""

    @property
    def fuse_qdq(self) -> bool:
        """Whether ONNX Runtime may make integer kernels of the graph's Q/DQ pairs."""
        return fuses_qdq(self.form)


class TensorRTRecord(_Record):
    """How a TensorRT or TensorRT-RTX engine was built, and what it needs to run."""

    plugin_layers: int = 0
    """Number of layers computed by trtkp's plugins."""
    plugin_library: Digest | None = None
    """SHA-256 of the plugin library the engine was built with."""
    gpu: str | None = None
    """Name of the GPU on which the engine was built."""
    workspace_mib: int | None = None
    optimization_level: int | None = None
    tune_batches: list[int] = []
    """Batch sizes of the optimisation profiles; empty for one profile of the whole range."""
    version_compatible: bool = False
    exclude_lean_runtime: bool = False
    hardware_compatible: Literal["none", "ampere+", "same-compute-capability"] = "none"
    embed_plugins: bool = False
    refit: bool = False
    strip_weights: bool = False
    sparse: bool = False
    """Whether kernels for 2:4 weights were among those that were timed."""
    carried_libraries: list[str] = []
    """File names of the plugin libraries inside the engine."""

    @property
    def carries_code(self) -> bool:
        """Whether the engine contains host code (a runtime or a plugin library), which whoever opens it must allow."""
        runtime = self.version_compatible and not self.exclude_lean_runtime
        return runtime or self.embed_plugins or bool(self.carried_libraries)


class Manifest(_Record):
    """The manifest, version 1."""

    format: Literal["trtkp.bundle"] = FORMAT
    version: Literal[1] = VERSION
    created: str
    trtkp: str
    source: SourceRecord
    method: str
    settings: dict[str, Any]
    include: list[str] = []
    skip: list[str] = []
    backend: BackendName
    precision: Literal["fp32", "fp16", "int8", "fp8"]
    keep_io: bool = True
    targets: list[str] = []
    inputs: list[TensorRecord]
    outputs: list[TensorRecord]
    profile: dict[str, dict[Literal["min", "opt", "max"], list[int]]]
    layers: list[LayerRecord]
    left_out: dict[str, str] = {}
    """Convolutions that no method can prune (transposed, 1-d, computed weights), with the reason."""
    totals: TotalsRecord
    plan: PlanRecord
    quantisation: QuantisationRecord | None = None
    tensorrt: TensorRTRecord | None = None
    accuracy: dict[str, float] | None = None
    libraries: dict[str, str]
    seconds: dict[str, float]
    warnings: list[str] = []
    files: dict[FileName, FileRecord]

    @model_validator(mode="after")
    def _check_tensors(self) -> Manifest:
        """Check what users of the manifest rely on: there are inputs and outputs, and a range for every size."""
        for kind, records in (("inputs", self.inputs), ("outputs", self.outputs)):
            names = [record.name for record in records]
            if not names or len(set(names)) < len(names):
                raise ValueError(f"the {kind} are {'not unique' if names else 'empty'}")
        if set(self.profile) != {record.name for record in self.inputs}:
            raise ValueError("the profile does not name the inputs")
        for record in self.inputs:
            limits = self.profile[record.name]
            ends = [limits.get(end, []) for end in ("min", "opt", "max")]
            if any(len(end) != len(record.shape) for end in ends) or not all(
                0 <= low <= usual <= high and (isinstance(dim, str) or low == high == dim)
                for low, usual, high, dim in zip(*ends, record.shape, strict=True)
            ):
                raise ValueError(f"the profile of input {record.name[:80]} does not fit its shape")
        return self
