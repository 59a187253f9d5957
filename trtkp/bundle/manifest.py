"""``manifest.json``: everything a bundle says of itself, and the SHA-256 of every other file in it."""

from __future__ import annotations

from hashlib import sha256
from pathlib import PurePosixPath
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from trtkp.bundle.calibration import LayerChoice, Scores
from trtkp.engine.base import QuantisedForm, fuses_qdq

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
#: Content of `MANIFEST_HASH`, in the form of sha256sum.
HASH_LINE: Final = rb"[0-9a-f]{64}  manifest\.json\n"


def hash_line(manifest: bytes) -> bytes:
    """What `MANIFEST_HASH` holds for a manifest of these bytes."""
    return f"{sha256(manifest).hexdigest()}  {MANIFEST}\n".encode()


def _plain_name(name: str) -> str:
    if name in ("", ".", "..") or PurePosixPath(name).name != name or "\\" in name or "\0" in name:
        raise ValueError(f"{name!r} is not a file of the bundle's own folder")
    return name


Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
FileName = Annotated[str, AfterValidator(_plain_name)]


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class FileRecord(_Record):
    """Size and hash of a file of the bundle."""

    sha256: Digest
    bytes: int


class SourceRecord(_Record):
    """The model that was built: its file relative to the bundle, and how it was read."""

    file: str
    sha256: Digest
    format: str
    arch: str | None = None
    reference: str
    """What runs it: PyTorch or the source ONNX."""


class TensorRecord(_Record):
    """A graph input or output; a dynamic dimension is its name."""

    name: str
    dtype: str
    shape: list[int | str]


class TimingRecord(_Record):
    """Milliseconds of wall clock."""

    median_ms: float
    p10_ms: float
    p90_ms: float
    runs: int


class LayerRecord(_Record):
    """One convolution: what it was, what it kept, and how it runs."""

    name: str
    node: str
    shape: tuple[int, int, int, int]
    """F, C, R, S of the weight."""
    groups: int
    strides: tuple[int, int]
    dilations: tuple[int, int]
    input_size: tuple[int, int]
    output_size: tuple[int, int]
    kind: Literal["dense", "kernel", "stripe", "pattern"]
    reason: str | None = None
    """Why a dense layer was not pruned."""
    filter_groups: int | None = None
    density: float
    dense_params: int
    retained_params: int
    dense_macs: int
    retained_macs: int
    index_bytes: int
    paper_index_bytes: int | None = None
    op: str | None = None
    """The node in ``model.onnx``."""
    lowering: str | None = None
    """Its form in ``engine.onnx``."""
    why: str | None = None
    measured: bool = False
    candidates: dict[str, float] = {}
    """Median ms per form where measured, else the predicted share of the dense time."""
    spread: dict[str, tuple[float, float]] = {}
    """10th and 90th percentile per form in ms, where measured."""
    inapplicable: dict[str, str] = {}


class PaperCounts(_Record):
    """The whole net as the method's authors count it; index bytes apart, as everywhere."""

    counting: str
    dense_params: int
    retained_params: int
    dense_flops: int
    retained_flops: int
    other: PaperCounts | None = None
    """Their second way of counting, where they have two."""


class TotalsRecord(_Record):
    """The whole net, before and after; parameters without index bytes."""

    dense_params: int
    retained_params: int
    dense_macs: int
    retained_macs: int
    index_bytes: int
    paper_index_bytes: int | None = None
    as_in_paper: PaperCounts | None = None
    """None where the authors' counting is the common one, or is not known."""


class RemovedRecord(_Record):
    """What dead parts one layer lost: filters, channels per group, dense parameters, MACs for one sample."""

    name: str
    node: str
    filters: int
    channels: int
    params: int
    macs: int


class DeadRecord(_Record):
    """The dead parts that ``engine.onnx`` has no more; totals count a shared weight once."""

    filters: int
    channels: int
    params: int
    macs: int
    layers: list[RemovedRecord]
    before: TimingRecord | None = None
    """The dense masked net with them, where it was timed."""
    after: TimingRecord | None = None


class GatherRecord(_Record):
    """Gathers of channels: written by the plan, left after folding, and elements a sample that the others copied."""

    before: int
    after: int
    elements: int


class PlanRecord(_Record):
    """How ``engine.onnx`` came about."""

    status: Literal["measured", "unmeasured", "forced"]
    threads: int | None = None
    dense: TimingRecord | None = None
    planned: TimingRecord | None = None
    dead: DeadRecord | None = None
    gathers: GatherRecord | None = None
    notes: list[str] = []


class QuantisationRecord(_Record):
    """How an int8 or fp8 bundle was quantised; ranges and scales are in ``calibration.json``."""

    fallback: Literal["fp32", "fp16"]
    """Type of the layers that are not quantised."""
    form: QuantisedForm
    method: str
    percentile: float | None = None
    scores: Scores
    layers: dict[str, LayerChoice]
    floating: TimingRecord | None = None
    """The planned graph before, where it could be timed."""
    quantised: TimingRecord | None = None

    @property
    def fuse_qdq(self) -> bool:
        """Whether ONNX Runtime may make integer kernels of the graph's Q/DQ pairs."""
        return fuses_qdq(self.form)


class TensorRTRecord(_Record):
    """How an engine of TensorRT or TensorRT-RTX was built, and what it needs to run."""

    plugin_layers: int = 0
    plugin_library: Digest | None = None
    """SHA-256 of the library whose plugins it holds."""
    gpu: str | None = None
    """Where it was built."""
    workspace_mib: int | None = None
    optimization_level: int | None = None
    version_compatible: bool = False
    hardware_compatible: Literal["none", "ampere+", "same-compute-capability"] = "none"
    embed_plugins: bool = False
    refit: bool = False
    strip_weights: bool = False

    @property
    def carries_code(self) -> bool:
        """Whether the engine holds code of the host, a runtime or a plugin library."""
        return self.version_compatible or self.embed_plugins


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
    backend: Literal["onnxruntime", "tensorrt-rtx", "tensorrt"]
    precision: Literal["fp32", "fp16", "int8", "fp8"]
    keep_io: bool = True
    targets: list[str] = []
    inputs: list[TensorRecord]
    outputs: list[TensorRecord]
    profile: dict[str, dict[Literal["min", "opt", "max"], list[int]]]
    layers: list[LayerRecord]
    left_out: dict[str, str] = {}
    """Convolutions that no method can take (transposed, 1-d, computed weights), with the reason."""
    totals: TotalsRecord
    plan: PlanRecord
    quantisation: QuantisationRecord | None = None
    tensorrt: TensorRTRecord | None = None
    accuracy: dict[str, float] | None = None
    libraries: dict[str, str]
    seconds: dict[str, float]
    warnings: list[str] = []
    files: dict[FileName, FileRecord]
