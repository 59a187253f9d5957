"""`Method`, the base class of all pruning methods: layers and weights in, boolean masks out.

`Method` declares everything that pruning and building may ask of a method. Its defaults suit a method that only scores
the weights it is given; such a method overrides ``inapplicable`` and ``masks``. Other methods override hooks too:

- ``regularises`` and ``regulariser``, to train weights towards zero before they are removed;
- ``converts``, ``convert`` and ``deployed``, to replace the net by another one;
- ``matrix_masks``, ``repairs`` and ``repair``, to prune or repair more than the layers it was given;
- ``paper_index_bytes`` and ``paper_counting``, to report figures counted as its paper counts them.

A method imports NumPy and PyTorch only. It learns about the net around its layers through `Net` and `NetCounts`.
"""

# ruff: noqa: B027 - a hook that does nothing by default uses no argument

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from os import PathLike
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeAlias

import numpy.typing as npt

from trtkp.errors import InputError
from trtkp.index.conv_layer import ConvLayer
from trtkp.index.index_set import IndexSet, Masks

if TYPE_CHECKING:
    import torch

    from trtkp.pruning.regulariser import Deployed, Regulariser

__all__ = ["Counting", "Masks", "Method", "Net", "NetCounts", "Repair", "SettingValue", "Weights"]

#: Parameter name to weight; a convolution's is [F, C, R, S].
Weights = Mapping[str, npt.NDArray[Any]]

#: Value of a method's setting, as Python, recipe files and manifests have it; None for the method's default.
SettingValue: TypeAlias = bool | int | float | str | Sequence[float] | PathLike[str] | None


class Net(Protocol):
    """The net around the layers of a method. Each answer is computed only when it is asked for."""

    def matrices(self) -> Weights:
        """Weights of the fully connected layers, [outputs, inputs], by parameter name."""

    def next_convolutions(self) -> Mapping[str, str]:
        """Map each layer whose output is read by exactly one convolution to that convolution's layer."""

    def retained(self, masks: Masks) -> tuple[int, int]:
        """Parameters, and MACs per sample, that the whole net has left with these masks."""


class NetCounts(Protocol):
    """Figures that papers count beside the weights and MACs of convolutions; computed when they are asked for."""

    def product_weights(self) -> int:
        """Number of weights of convolutions and fully connected layers, without biases."""

    def statistics(self) -> int:
        """Number of running means and variances of all batch normalisations."""

    def batch_norm_elements(self) -> int:
        """Number of elements that all batch normalisations output for one sample."""

    def elementwise_operations(self) -> int:
        """Number of operations for one sample that are not multiply-accumulates."""


@dataclass(frozen=True)
class Counting:
    """How a paper counts parameters and FLOPs, as differences from our own counting.

    Attributes:
        name: what the paper counts, in a few words.
        params: what to add to our number of parameters, before and after pruning.
        flops: what to add to our MACs of one sample, before and after pruning.
        other: a second way of counting that the same paper uses.
    """

    name: str
    params: int
    flops: int
    other: Counting | None = None


@dataclass(frozen=True)
class Repair:
    """What a method changes after the fine-tune.

    Attributes:
        masks: the new masks of the layers that change, bool [F, C, R, S].
        weights: the new weights of those layers, [F, C, R, S].
        report: figures for the manifest; values that JSON can hold.
    """

    masks: Masks = field(default_factory=dict)
    weights: Weights = field(default_factory=dict)
    report: dict[str, Any] = field(default_factory=dict)


class Method(ABC):
    """Base class of the pruning methods.

    A method that only makes masks needs a name and two functions. This one keeps the filters with the largest norm:

    >>> import numpy as np
    >>> class HalfTheFilters(Method):
    ...     name = "half"
    ...
    ...     def inapplicable(self, layer):
    ...         return "one filter" if layer.filters == 1 else None
    ...
    ...     def masks(self, layers, weights):
    ...         found = {}
    ...         for layer in layers:
    ...             norms = np.linalg.norm(weights[layer.name].reshape(layer.filters, -1), axis=1)
    ...             kept = norms >= np.median(norms)
    ...             found[layer.name] = np.broadcast_to(kept[:, None, None, None], layer.weight_shape)
    ...         return found
    >>> conv = ConvLayer("conv.weight", "conv", filters=4, channels=2, kernel=(3, 3), strides=(1, 1),
    ...                  pads=(1, 1, 1, 1), dilations=(1, 1), groups=1, input_size=(8, 8), output_size=(8, 8),
    ...                  bias=False, stem=False)
    >>> weight = np.arange(72.0).reshape(4, 2, 3, 3)
    >>> HalfTheFilters().masks([conv], {"conv.weight": weight})["conv.weight"].any(axis=(1, 2, 3)).tolist()
    [False, False, True, True]

    Attributes:
        name: the value of ``--method``; manifests record it.
        converts: whether the method replaces the net by another one. It then overrides ``convert`` and ``deployed``.
        option: the command line option that selects this method instead of ``--method``, such as ``--from-zeros``.
        searched_filter_group: filters that share a list in ``trtkp search`` unless the user asks for another number;
            None where a search cannot use the method.
    """

    name: str
    converts: ClassVar[bool] = False
    option: ClassVar[str | None] = None
    searched_filter_group: ClassVar[int | None] = None

    # Settings

    def settings(self) -> dict[str, Any]:
        """All settings with the values that take effect, as JSON can hold them. By default a dataclass's fields."""
        return {name: getattr(self, name) for name in self.setting_names()}

    @classmethod
    def setting_names(cls) -> tuple[str, ...]:
        """Names of the settings that the method takes. By default the fields of a dataclass."""
        kind: Any = cls
        return tuple(each.name for each in fields(kind)) if is_dataclass(kind) else ()

    @property
    def nm(self) -> str | None:
        """``2:4`` where `masks` gives lists, inside which each filter keeps two of every four weights."""
        return None

    @property
    def expects_two_four(self) -> bool:
        """Whether lists are chosen among channels by what 2:4 inside is expected to keep of the weights."""
        return False

    # Which layers

    @abstractmethod
    def inapplicable(self, layer: ConvLayer) -> str | None:
        """The reason why the method can never prune this layer; None if it can."""

    def out_of_scope(self, layer: ConvLayer) -> str | None:
        """The reason why the method leaves this layer dense unless the user names it; None if it prunes it."""
        return None

    def check_layers(self, layers: Sequence[ConvLayer]) -> None:
        """Check that the settings fit the net, whose convolutions are all in ``layers``.

        Raises:
            InputError: they do not fit; the error names the layer.
        """

    # Masks

    @abstractmethod
    def masks(self, layers: Sequence[ConvLayer], weights: Weights) -> Masks:
        """Choose the weights that stay in each of the given layers.

        Args:
            layers: the layers to prune, each weight once.
            weights: parameter name to weight [F, C, R, S].

        Returns:
            Parameter name to mask, bool [F, C, R, S], True where a weight is kept. With the setting ``nm``, these are
            the masks of the lists, before 2:4 is applied inside them.

        Raises:
            InputError: the settings do not fit a layer.
        """

    def stored(self) -> Mapping[str, IndexSet]:
        """Index sets that were made earlier, by parameter name. They are used as they are, not rebuilt from masks."""
        return {}

    def matrix_masks(self, net: Net) -> Masks:
        """Masks of the weights of fully connected layers, bool [outputs, inputs]; none by default."""
        return {}

    def stored_matrices(self) -> Mapping[str, int]:
        """Number of weights left in each fully connected layer that was pruned earlier, by parameter name."""
        return {}

    # One-shot pruning in a build

    def check_one_shot(self) -> None:
        """Check that the method and its settings work without training.

        Raises:
            InputError: they need training; the error says how to prune instead.
        """

    def check_by_layers(self) -> None:
        """Check that every setting has a meaning when each layer has its own settings (an allocation file).

        Raises:
            InputError: a setting has none; the error names it.
        """

    def notes(self, *, pruned: bool, folded: bool) -> list[str]:
        """Warnings for a build, one line each.

        Args:
            pruned: whether any layer was pruned.
            folded: whether batch normalisation seems to be folded into the weights already. The weights are then not
                those that were trained, and scores differ.
        """
        if not pruned:
            return [f"method {self.name} pruned no layer: the engine is dense"]
        if folded:
            return [
                "batch normalisation seems folded into the weights: scores differ from those of the trained weights"
            ]
        return []

    def coarser(self) -> str | None:
        """Advice for a net in which no packed layer is faster than dense: the setting that makes lists coarser."""
        return None

    # Training

    @property
    def regularises(self) -> bool:
        """Whether the method trains the net towards its masks before it makes them; see `regulariser`."""
        return False

    @property
    def retrain(self) -> bool:
        """Whether the masked net is trained from scratch once the masks are known."""
        return False

    @property
    def prepares(self) -> bool:
        """Whether there is a stage ``prepare``, which trains the converted net before its masks are learnt."""
        return self.converts and self.regularises

    def check_training(self, *, prepare: int, regularise: int, finetune: int) -> None:
        """Check that the method can use each stage that has epochs, and that no stage it needs is missing.

        Args:
            prepare: epochs that train the converted net without masks.
            regularise: epochs that train towards the masks.
            finetune: epochs with the masks held.

        Raises:
            InputError: the stages do not suit the method; the error says what to leave out or to add.
        """
        if prepare and not self.prepares:
            raise InputError(f"method {self.name} has no stage prepare", remedy="leave it out of the recipe")

    def regulariser(self, model: torch.nn.Module, layers: Sequence[ConvLayer]) -> Regulariser:
        """The hooks that train a module towards the masks.

        Args:
            model: the module; its parameters have the names of the layers.
            layers: the layers to prune.
        """
        raise NotImplementedError(f"method {self.name} does not regularise")

    @property
    def repairs(self) -> bool:
        """Whether `repair` may change anything. Checkpoints then keep the weights from before the fine-tune."""
        return False

    def repair(self, masks: Masks, original: Weights, before: Weights, tuned: Weights, net: Net) -> Repair:
        """Masks and weights to change after the fine-tune.

        Args:
            masks: masks of the pruned layers, as they were held during the fine-tune.
            original: weights before pruning.
            before: masked weights before the fine-tune.
            tuned: weights after the fine-tune.
            net: the net around the layers.
        """
        return Repair()

    # Another net

    def convert(
        self, model: torch.fx.GraphModule, layers: Sequence[ConvLayer], example: Sequence[torch.Tensor], seed: int
    ) -> torch.fx.GraphModule:
        """The net that is trained and exported instead of the given model.

        Args:
            model: the module of an exported program.
            layers: the layers to convert.
            example: example inputs of the module.
            seed: seed of the random numbers that the conversion draws.

        Raises:
            InputError: the net cannot be converted.
        """
        raise NotImplementedError(f"method {self.name} does not convert the net")

    def deployed(self, model: torch.nn.Module, layers: Sequence[ConvLayer], macs: int) -> Deployed:
        """Turn the trained net, in place, into the form that is exported.

        Args:
            model: the converted net.
            layers: the layers of the original net that were converted.
            macs: MACs per sample of the original net.
        """
        raise NotImplementedError(f"method {self.name} does not convert the net")

    # Records

    def report(self, layers: Sequence[ConvLayer], weights: Weights, net: Net) -> dict[str, Any]:
        """Figures about the weights from which the masks were made; values that JSON can hold."""
        return {}

    def paper_index_bytes(self, index: IndexSet) -> int | None:
        """Index bytes of a layer in the storage format of the method's paper; None if the paper has no format."""
        return None

    def paper_bytes_by_layer(self, index_sets: Mapping[str, IndexSet]) -> dict[str, int]:
        """`paper_index_bytes` of every layer for which it is not None."""
        sizes = {name: self.paper_index_bytes(index) for name, index in index_sets.items()}
        return {name: size for name, size in sizes.items() if size is not None}

    def paper_counting(self, dense_params: int, net: NetCounts) -> Counting | None:
        """How the method's authors count a net of ``dense_params`` parameters; None if they count as we do."""
        return None
