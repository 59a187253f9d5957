"""`Subject`, what is pruned: a model, its layers and weights, and the data to train it with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from trtkp.errors import InputError, TrtkpError
from trtkp.model.layers import named_graph, read_layers
from trtkp.pruning.method import Method
from trtkp.pruning.one_shot import select_layers
from trtkp.pruning.run.options import PruneOptions
from trtkp.shapes import Profile, make_profile, parse_shape_options

if TYPE_CHECKING:
    import onnx_ir as ir
    import torch

    from trtkp.graph.layers import LayerTable
    from trtkp.index.conv_layer import ConvLayer
    from trtkp.model import SourceModel
    from trtkp.model.torch_backend import TorchBackend
    from trtkp.pruning.train.data import DataSplit

__all__ = ["Subject"]


@dataclass(frozen=True, eq=False)
class Subject:
    """A model, and what pruning needs to know about it.

    Attributes:
        path: the model's file.
        source: the loaded model.
        graph: the model's ONNX graph.
        table: the layer table of all convolutions.
        layers: the layers to prune, each weight once.
        left_dense: for every other layer, the reason why it stays dense.
        weights: weights of all convolutions, [F, C, R, S], by parameter name.
        profile: smallest, usual and largest shape of every input.
        split: data to train and to test with; None without data.
    """

    path: Path
    source: SourceModel
    graph: ir.Model
    table: LayerTable
    layers: list[ConvLayer]
    left_dense: dict[str, str]
    weights: dict[str, npt.NDArray[Any]]
    profile: Profile
    split: DataSplit | None

    @classmethod
    def load(cls, path: Path, data: Path | None, method: Method, options: PruneOptions) -> Subject:
        """Read model and data, and choose the layers to prune.

        Raises:
            InputError: the model or the data cannot be used, or the options or the method do not fit the layers.
        """
        from trtkp.model import load_model

        source = load_model(
            path,
            arch=options.arch,
            input_shape=list(options.input_shape) or None,
            trust_pickle=options.trust_pickle,
        )
        if method.converts:
            _check_export(source, method)
        shapes = parse_shape_options(list(options.input_shape), source.inputs, "--input-shape")
        profile = make_profile(source.inputs, {}, shapes, {})
        split = None if data is None else _load_data(data, source, profile, options)
        try:
            graph = named_graph(source)
            table, weights = read_layers(graph, source, profile)
            method.check_layers(table.layers)
            chosen, left_dense = select_layers(method, table.layers, options.include, options.skip)
        except TrtkpError as error:
            raise error if error.file is not None else error.in_file(path) from error
        layers = list({layer.name: layer for layer in chosen}.values())
        if method.converts and not layers:
            raise InputError(f"method {method.name} finds no layer to prune", file=path)
        return cls(path, source, graph, table, layers, left_dense, weights, profile, split)

    @property
    def backend(self) -> TorchBackend:
        """The backend of a PyTorch model; the source must be one."""
        from trtkp.model.torch_backend import TorchBackend

        assert isinstance(self.source.backend, TorchBackend)
        return self.source.backend

    def converted(self, method: Method, seed: int) -> torch.nn.Module:
        """The net that the method makes of the model; ``seed`` is that of its random numbers.

        Raises:
            InputError: the method cannot convert the model.
        """
        try:
            return method.convert(self.backend.graph_module(), self.layers, self.backend.example(), seed)
        except InputError as error:
            raise error if error.file is not None else error.in_file(self.path) from None


def _check_export(source: SourceModel, method: Method) -> None:
    """Check that a converted net can be exported in the end, before hours of training are spent on it.

    Raises:
        InputError: it cannot be.
    """
    from trtkp.model.torch_backend import TorchBackend

    if not isinstance(source.backend, TorchBackend):
        raise InputError(
            f"method {method.name} needs a PyTorch model",
            file=source.path,
            remedy="give a file that torch.export.save wrote",
        )
    source.backend.dynamic_shapes()


def _load_data(data: Path, source: SourceModel, profile: Profile, options: PruneOptions) -> DataSplit:
    from trtkp.data.labelled import check_labels
    from trtkp.pruning.train.data import load_split

    training, specs = options.training, source.inputs
    if source.format == "onnx":
        raise InputError(
            "an ONNX file cannot be trained", file=source.path, remedy="give a PyTorch model, or leave out --data"
        )
    if len(specs) != 1:
        raise InputError(f"has {len(specs)} inputs, training needs a model with one", file=source.path)
    if training.epochs and isinstance(specs[0].shape[0], int):
        raise InputError(
            f"takes batches of {specs[0].shape[0]} only",
            file=source.path,
            remedy="export it with torch.export.Dim for the batch",
        )
    shape = next(iter(profile.values())).opt[1:]
    split = load_split(data, shape, training.data, training.seed)
    for part in (split.train, split.test):
        check_labels(part.labels, source.outputs[0].shape, data)
    return split
