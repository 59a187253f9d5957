"""``trtkp.inspect``: what a bundle holds, without opening its engine."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

from trtkp.bundle.manifest import LayerRecord, Manifest, TotalsRecord
from trtkp.bundle.reader import Bundle, load

__all__ = ["Inspection", "inspect"]


@dataclass(frozen=True)
class Inspection:
    """The contents of a bundle, as ``trtkp inspect`` shows them.

    Attributes:
        path: the bundle's directory.
        manifest: everything that is recorded: method and settings, source, inputs and outputs with their dynamic
            dimensions, profile, layers, plan, quantisation, files, and warnings of the build.
    """

    path: Path
    manifest: Manifest

    @property
    def layers(self) -> dict[str, LayerRecord]:
        """The convolutions by parameter name: shape [F, C, R, S], what was kept, and the lowering chosen."""
        return {layer.name: layer for layer in self.manifest.layers}

    @property
    def totals(self) -> TotalsRecord:
        """Parameters, multiply-accumulates (MACs) for one sample, and bytes of the index sets, before and after."""
        return self.manifest.totals

    @property
    def density(self) -> float:
        """Share of the net's parameters that is left, 0 to 1; index sets are not counted."""
        return self.totals.retained_params / self.totals.dense_params if self.totals.dense_params else 1.0

    @property
    def bound(self) -> float | None:
        """The largest speed-up that the MACs left allow; None where none are left."""
        return self.totals.dense_macs / self.totals.retained_macs if self.totals.retained_macs else None

    @property
    def lowerings(self) -> dict[str, int]:
        """Number of pruned layers that each lowering computes; those left dense by the plan are among them."""
        return dict(Counter(layer.lowering for layer in self.manifest.layers if layer.lowering is not None))

    @property
    def size(self) -> int:
        """Bytes of all files of the bundle, its manifest and the manifest's hash apart."""
        return sum(record.bytes for record in self.manifest.files.values())


def inspect(bundle: str | PathLike[str] | Bundle) -> Inspection:
    """Show what a bundle holds: layers, index sets, parameters, MACs and bytes. No engine is opened.

    Args:
        bundle: a bundle or its directory, whose files are then checked against the manifest.

    Returns:
        The manifest, and figures derived from it.

    Raises:
        InputError: the directory holds no bundle, or one of another format version.
        IntegrityError: a file is missing, was changed, or has another size.

    Example:
        >>> import trtkp
        >>> found = trtkp.inspect("kep")
        >>> found.manifest.method, found.manifest.precision
        ('kep', 'fp32')
        >>> found.layers["w1"].shape, round(found.layers["w1"].density, 2)
        ((16, 16, 3, 3), 0.44)
    """
    opened = bundle if isinstance(bundle, Bundle) else load(bundle)
    return Inspection(opened.path, opened.manifest)
