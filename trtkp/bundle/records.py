"""Build the records that the manifests of bundles and of pruned models share."""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib.metadata import version as installed
from pathlib import Path
from typing import TYPE_CHECKING

from trtkp.bundle.manifest import (
    PaperCounts,
    SourceRecord,
    TensorRecord,
    TimingRecord,
    TotalsRecord,
)
from trtkp.index.accounting import Accounting
from trtkp.shapes import TensorSpec

if TYPE_CHECKING:
    from trtkp.machine.timing import Timing
    from trtkp.model import SourceModel

__all__ = ["libraries", "source_record", "tensor_record", "timing_record", "totals_record"]


def source_record(source: SourceModel, path: Path, bundle: Path, arch: str | None) -> SourceRecord:
    """The source model: its path relative to the bundle, and how it was read."""
    # Resolve the folders first. The operating system follows a symbolic link before it applies "..", so a relative path
    # computed from unresolved folders can lead elsewhere.
    file = os.path.relpath(path.parent.resolve() / path.name, bundle.absolute().parent.resolve() / "bundle")
    return SourceRecord(
        file=file, sha256=source.sha256, format=source.format, arch=arch, reference=source.reference_name
    )


def tensor_record(spec: TensorSpec, *, halved: bool) -> TensorRecord:
    """An input or output of the engine; ``halved`` if the build turned its float32 into float16."""
    return TensorRecord(
        name=spec.name,
        dtype="float16" if halved and spec.dtype == "float32" else spec.dtype,
        shape=[dim if isinstance(dim, int) else dim.name for dim in spec.shape],
    )


def totals_record(accounting: Accounting, paper: Mapping[str, int], counts: PaperCounts | None = None) -> TotalsRecord:
    """Totals of the whole net before and after pruning.

    Args:
        accounting: parameters, MACs and index bytes, dense and retained.
        paper: index bytes per layer in the method's published format; empty where the method has none.
        counts: the whole net as the method's authors count it.
    """
    return TotalsRecord(
        dense_params=accounting.params.dense,
        retained_params=accounting.params.retained,
        dense_macs=accounting.macs.dense,
        retained_macs=accounting.macs.retained,
        index_bytes=accounting.index_bytes,
        paper_index_bytes=sum(paper.values()) if paper else None,
        as_in_paper=counts,
    )


def timing_record(timing: Timing | None) -> TimingRecord | None:
    """A timing as the manifest stores it; None stays None."""
    if timing is None:
        return None
    return TimingRecord(median_ms=timing.median_ms, p10_ms=timing.p10_ms, p90_ms=timing.p90_ms, runs=timing.runs)


def libraries(backend: str, version: str) -> dict[str, str]:
    """Versions of the libraries that produced an engine, by distribution name."""
    return {name: installed(name) for name in ("numpy", "onnx", "onnxruntime", "torch")} | {backend: version}
