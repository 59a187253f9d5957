"""``SourceModel``: what every loaded model offers, whatever file it came from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from trtkp.errors import InputError
from trtkp.shapes import Dim, TensorSpec

if TYPE_CHECKING:
    import onnx_ir as ir
    import torch

__all__ = ["Backend", "Format", "LazyWeights", "SourceModel"]

Format = Literal["pt2", "state-dict", "onnx", "torchscript", "pickle"]


class LazyWeights(Mapping[str, np.ndarray]):
    """Weights by initialiser name, each made an array when it is asked for (a view where that is possible)."""

    def __init__(self, getters: Mapping[str, Callable[[], np.ndarray]]) -> None:
        self._getters = dict(getters)

    def __getitem__(self, name: str) -> np.ndarray:
        return self._getters[name]()

    def __contains__(self, name: object) -> bool:
        return name in self._getters

    def __iter__(self) -> Iterator[str]:
        return iter(self._getters)

    def __len__(self) -> int:
        return len(self._getters)


class Backend(Protocol):
    """What a file format has to provide; ``SourceModel`` checks arguments and caches."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    reference_name: str

    def graph(self) -> ir.Model:
        """See `SourceModel.graph`."""

    def parameters(self) -> LazyWeights:
        """See `SourceModel.parameters`."""

    def run(self, feeds: Mapping[str, np.ndarray], weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """See `SourceModel.run`."""

    def module(self) -> torch.nn.Module:
        """See `SourceModel.module`."""


@dataclass
class SourceModel:
    """An unpruned model and its reference.

    Attributes:
        path: the file it was loaded from.
        format: what the file's content was found to be.
        sha256: of the file's bytes; with external data, of the file's bytes followed, for each data file in the order
            of its name, by the name, a zero byte and that file's own SHA-256 digest.
        warnings: what the user should know about how the model was read.
    """

    path: Path
    format: Format
    sha256: str
    backend: Backend = field(repr=False)
    warnings: list[str] = field(default_factory=list)
    _graph: Any = field(default=None, repr=False)

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Name, dtype and shape of every graph input; dynamic dimensions are ``Dim``."""
        return self.backend.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """Name, dtype and shape of every graph output."""
        return self.backend.outputs

    @property
    def reference_name(self) -> str:
        """What ``run`` runs: ``"PyTorch"`` or ``"source ONNX"``."""
        return self.backend.reference_name

    def graph(self) -> ir.Model:
        """The unpruned model as an ONNX graph of standard operators; the caller's own, to change as it likes.

        Functions are inlined, dead code is removed, constants are folded, BatchNormalization is not. Initialisers keep
        the parameters' names; a weight that two convolutions share is one initialiser. Tensors are shared, not copied.

        Raises:
            InputError: the model uses an operator that ONNX has no form of.
        """
        if self._graph is None:
            self._graph = self.backend.graph()
        clone: ir.Model = self._graph.clone()
        return clone

    def parameters(self) -> LazyWeights:
        """Float weights and buffers by initialiser name, lazily, without copies where possible. Not to be written."""
        return self.backend.parameters()

    def run(
        self, feeds: Mapping[str, np.ndarray], weights: Mapping[str, np.ndarray] | None = None
    ) -> dict[str, np.ndarray]:
        """The reference's outputs, floating point ones as float32, by graph output name.

        Args:
            feeds: one array per input name.
            weights: replacements for named weights (masked ones, say); the source is not touched.

        Raises:
            InputError: a feed that is missing, unknown or of the wrong shape, or a weight that is not there.
        """
        feeds = {name: np.asarray(value) for name, value in feeds.items()}
        self._check_feeds(feeds)
        parameters = self.parameters()
        for name, weight in (weights or {}).items():
            if name not in parameters:
                raise InputError("no weight of that name", file=self.path, layer=name)
            if np.shape(weight) != parameters[name].shape:
                raise InputError(
                    f"replacement of shape {list(np.shape(weight))}, the weight is {list(parameters[name].shape)}",
                    file=self.path,
                    layer=name,
                )
        outputs = self.backend.run(feeds, weights or {})
        return {
            name: value.astype(np.float32, copy=False) if value.dtype.kind not in "iub" else value
            for name, value in outputs.items()
        }

    def module(self) -> torch.nn.Module:
        """A module of its own whose named parameters carry the initialisers' names, for training.

        Raises:
            InputError: the model came from an ONNX file.
        """
        return self.backend.module()

    def _check_feeds(self, feeds: Mapping[str, np.ndarray]) -> None:
        names = [spec.name for spec in self.inputs]
        if set(feeds) != set(names):
            raise InputError(f"feeds are {sorted(feeds)}, the inputs are {names}", file=self.path)
        for spec in self.inputs:
            shape = feeds[spec.name].shape
            fits = len(shape) == len(spec.shape) and all(
                dim.minimum <= size and (dim.maximum is None or size <= dim.maximum)
                if isinstance(dim, Dim)
                else size == dim
                for size, dim in zip(shape, spec.shape, strict=True)
            )
            if not fits:
                raise InputError(f"a feed of shape {list(shape)} does not fit {spec}", file=self.path)
