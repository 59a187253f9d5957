"""``SourceModel``: the common interface of loaded models, whatever file they came from."""

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
    """Weights by initialiser name. Each becomes an array when it is accessed, as a view if possible."""

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
    """What a file format has to implement. `SourceModel` checks the arguments and caches the graph."""

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

    def release(self) -> None:
        """See `SourceModel.release`."""


@dataclass
class SourceModel:
    """An unpruned model, which is also the reference that pruned engines are compared with.

    Attributes:
        path: the file that it was loaded from.
        format: the format of the file's content.
        sha256: SHA-256 of the file's bytes. For a model with external data these bytes are followed, for each data file
            in the order of the names, by its name, a zero byte, and its own SHA-256 digest.
        warnings: messages for the user about how the model was read.
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
        """What `run` runs: ``"PyTorch"`` or ``"source ONNX"``."""
        return self.backend.reference_name

    def graph(self) -> ir.Model:
        """The unpruned model as an ONNX graph of standard operators. It is a copy that the caller may change.

        Functions are inlined, dead code is removed and constants are folded, but BatchNormalization stays.
        Initialisers have the names of the parameters. A weight that two convolutions share is one initialiser. The
        data of tensors is shared between copies.

        Raises:
            InputError: the model uses an operator that cannot be exported to ONNX.
        """
        if self._graph is None:
            self._graph = self.backend.graph()
        clone: ir.Model = self._graph.clone()
        return clone

    def parameters(self) -> LazyWeights:
        """Floating-point weights and buffers by initialiser name. Read-only, loaded lazily, not copied if possible."""
        return self.backend.parameters()

    def run(
        self, feeds: Mapping[str, np.ndarray], weights: Mapping[str, np.ndarray] | None = None
    ) -> dict[str, np.ndarray]:
        """Run the reference. Returns its outputs by name, floating-point ones as float32.

        Args:
            feeds: one array per input name.
            weights: arrays to use instead of named weights, such as masked ones. The model itself does not change.

        Raises:
            InputError: a feed is missing, unknown or of the wrong shape, or there is no weight of a name.
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
        """A copy of the model as a PyTorch module, for training. Its parameters have the names of the initialisers.

        Raises:
            InputError: the model came from an ONNX file, which has no module.
        """
        return self.backend.module()

    def release(self) -> None:
        """Give the memory of weights that are mapped from files back to the system. They stay usable."""
        self.backend.release()

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
