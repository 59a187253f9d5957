"""A pruned model: the directory that ``trtkp prune`` writes and ``trtkp build`` accepts.

It holds the model with its pruned weights set to zero (``model.pt2``, or ``model.onnx`` if the source was ONNX),
``index_sets.safetensors``, the training log ``log.csv``, and ``manifest.json`` with its hash, as in a bundle. None of
its files contains code.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from trtkp.bundle.manifest import MANIFEST, Digest, FileName, FileRecord, SourceRecord, TotalsRecord, _Record
from trtkp.bundle.reader import check_files, read_record
from trtkp.errors import InputError
from trtkp.files import parse_json, read_file

if TYPE_CHECKING:
    from trtkp.index.index_set import IndexSet
    from trtkp.pruning.method import Method

__all__ = ["Pruned", "PrunedLayer", "PrunedManifest", "is_pruned", "load_pruned"]

_FORMAT = "trtkp.pruned"


class PrunedLayer(_Record):
    """One pruned weight: its parameter name, the kind of its index set, and what it kept."""

    name: str
    kind: Literal["kernel", "stripe", "pattern"]
    filter_groups: int
    density: float
    retained_params: int
    index_bytes: int
    paper_index_bytes: int | None = None


class PrunedManifest(_Record):
    """The schema of a pruned model's ``manifest.json``: what was pruned, how, and what was kept."""

    format: Literal["trtkp.pruned"] = "trtkp.pruned"
    version: Literal[1] = 1
    created: str
    trtkp: str
    source: SourceRecord
    method: str
    settings: dict[str, Any]
    include: list[str]
    skip: list[str]
    model: FileName
    layers: list[PrunedLayer]
    matrices: dict[str, int] = Field(default_factory=dict)
    """Number of weights kept by each pruned fully connected layer."""
    left_dense: dict[str, str]
    totals: TotalsRecord
    data: Digest | None = None
    """SHA-256 of the training data; None if nothing was trained."""
    training: dict[str, Any] | None = None
    report: dict[str, Any]
    """Figures specific to the method, such as PPT-KP's pruning points."""
    accuracy: dict[str, float] | None = None
    """Accuracy by stage: ``dense``, ``one-shot`` (masks applied, before fine-tuning) and ``pruned``."""
    seconds: dict[str, float]
    warnings: list[str]
    files: dict[FileName, FileRecord]


@dataclass(frozen=True)
class Pruned:
    """A pruned model whose files were checked.

    Attributes:
        path: the directory.
        record: its manifest. In a distributed training only the first process writes the model; the others get None.
    """

    path: Path
    record: PrunedManifest | None

    @property
    def written(self) -> bool:
        """Whether this process wrote the model."""
        return self.record is not None

    @property
    def manifest(self) -> PrunedManifest:
        """The manifest; raises `ValueError` in a process that did not write the model."""
        if self.record is None:
            raise ValueError("the pruned model was written by another process, which has its manifest")
        return self.record

    @property
    def model(self) -> Path:
        """Path of the model file."""
        return self.path / self.manifest.model

    @cached_property
    def index_sets(self) -> dict[str, IndexSet]:
        """The index sets by parameter name; read from disk at the first access."""
        from trtkp.index.storage import load_index_sets

        return load_index_sets(self.path / "index_sets.safetensors")

    def method(self) -> Method:
        """A pruning method that returns exactly the masks of these index sets."""
        from trtkp.pruning.methods.fixed import Stored
        from trtkp.pruning.methods.registry import made_before

        manifest = self.manifest
        paper = {
            layer.name: layer.paper_index_bytes for layer in manifest.layers if layer.paper_index_bytes is not None
        }
        origin = made_before(manifest.method, manifest.settings)
        return Stored(
            manifest.method, manifest.settings, self.index_sets, manifest.left_dense, paper, manifest.matrices, origin
        )


def is_pruned(path: Path) -> bool:
    """Whether a directory holds a pruned model, by the format its manifest states."""
    try:
        return bool(parse_json(read_file(path / MANIFEST))["format"] == _FORMAT)
    except (InputError, ValueError, LookupError, TypeError):
        return False


def load_pruned(path: str | PathLike[str]) -> Pruned:
    """Open a pruned model and check the hash of every file.

    Args:
        path: the directory that `trtkp.prune` wrote.

    Returns:
        The pruned model, with its manifest and its index sets.

    Raises:
        InputError: the directory holds no pruned model, or one of another format version.
        IntegrityError: a file is missing or was changed.

    Example:
        >>> import trtkp
        >>> _ = trtkp.prune("net.onnx", "pruned", method="kep", n=4)
        >>> pruned = trtkp.load_pruned("pruned")
        >>> pruned.manifest.method, pruned.model.name
        ('kep', 'model.onnx')
    """
    path = Path(path)
    manifest, _ = read_record(path, PrunedManifest)
    check_files(path, manifest.files)
    return Pruned(path, manifest)
