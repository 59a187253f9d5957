"""What a pruning method is: layers and weights in, boolean masks out, and the hooks that a pipeline calls besides.

`Method` declares everything that pruning and building ask of a method, with defaults for a method that scores the
weights it is given. A method of that kind overrides ``inapplicable`` and ``masks``; the others override hooks:

- to push weights down before they go, ``regularises`` and ``regulariser``;
- to make another net, ``converts``, ``convert`` and ``deployed``;
- to prune or repair more than the layers it was given, ``matrix_masks``, ``repairs`` and ``repair``;
- to count as its paper does, ``paper_index_bytes`` and ``paper_counting``.

A method knows NumPy and PyTorch alone. What it may ask of the net around its layers, `Net` and `NetCounts` hand over.
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
    """The net around the layers of a method. Nothing is worked out before it is asked for."""

    def matrices(self) -> Weights:
        """Weights of the fully connected layers, [outputs, inputs], by parameter name."""

    def next_convolutions(self) -> Mapping[str, str]:
        """For every layer whose output one convolution alone reads, the layer of that convolution."""

    def left(self, masks: Masks) -> tuple[int, int]:
        """Parameters and MACs of the whole net with these masks."""


class NetCounts(Protocol):
    """What papers count beside the weights and MACs of convolutions. Nothing is counted before it is asked for."""

    def product_weights(self) -> int:
        """Weights of convolutions and fully connected layers, without biases."""

    def statistics(self) -> int:
        """Running means and variances of all batch normalisations."""

    def batch_norm_elements(self) -> int:
        """Elements that batch normalisations give for one sample."""

    def elementwise_operations(self) -> int:
        """Operations for one sample beside multiply-accumulates."""


@dataclass(frozen=True)
class Counting:
    """How a paper counts a net.

    Attributes:
        name: what it counts, in a few words.
        params: what it adds to the common number of parameters, before and after pruning.
        flops: what it adds to the MACs of one sample.
        other: a second counting of the same paper.
    """

    name: str
    params: int
    flops: int
    other: Counting | None = None


@dataclass(frozen=True)
class Repair:
    """What a method changes after the fine-tune.

    Attributes:
        masks: the new masks of the layers that change.
        weights: their new weights.
        report: figures, as JSON has them.
    """

    masks: Masks = field(default_factory=dict)
    weights: Weights = field(default_factory=dict)
    report: dict[str, Any] = field(default_factory=dict)


class Method(ABC):
    """Base of the pruning methods.

    A mask-only method needs a name and two functions. This one keeps the filters of largest norm:

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
        name: as in ``--method``; it is kept in manifests.
        converts: it makes another net, and overrides ``convert`` and ``deployed``.
        option: the option of the command line that chooses it in place of ``--method``.
        searched_filter_group: filters that share a list in ``trtkp search``, where no other number is asked for; None
            where a search cannot use the method.
    """

    name: str
    converts: ClassVar[bool] = False
    option: ClassVar[str | None] = None
    searched_filter_group: ClassVar[int | None] = None

    # Settings

    def settings(self) -> dict[str, Any]:
        """Every hyper-parameter as it takes effect, as JSON has them; the fields of a dataclass by default."""
        return {name: getattr(self, name) for name in self.setting_names()}

    @classmethod
    def setting_names(cls) -> tuple[str, ...]:
        """Names of the settings that the method takes: the fields of a dataclass."""
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
        """Why the method cannot prune this layer, or None."""

    def out_of_scope(self, layer: ConvLayer) -> str | None:
        """Why the method does not prune this layer unless it is named, or None."""
        return None

    def check_layers(self, layers: Sequence[ConvLayer]) -> None:
        """Refuse a net that the settings do not fit; ``layers`` are all of its convolutions.

        Raises:
            InputError: with the layer.
        """

    # Masks

    @abstractmethod
    def masks(self, layers: Sequence[ConvLayer], weights: Weights) -> Masks:
        """Score, allocate and mask the given layers: one mask [F, C, R, S] per parameter.

        Raises:
            InputError: settings that do not fit a layer.
        """

    def stored(self) -> Mapping[str, IndexSet]:
        """The index sets of masks that were made before, by parameter name; they are taken as they are."""
        return {}

    def matrix_masks(self, net: Net) -> Masks:
        """Masks of the weights of fully connected layers, [outputs, inputs]; none by default."""
        return {}

    def stored_matrices(self) -> Mapping[str, int]:
        """Number of weights left in each fully connected layer that was pruned before, by parameter name."""
        return {}

    # One-shot pruning in a build

    def check_one_shot(self) -> None:
        """Refuse to prune without training, where the method or its settings need some.

        Raises:
            InputError: the reason, and how to prune instead.
        """

    def check_by_layers(self) -> None:
        """Refuse settings that mean nothing where every layer has settings of its own.

        Raises:
            InputError: naming the setting.
        """

    def notes(self, *, pruned: bool, folded: bool) -> list[str]:
        """What to warn of in a build, one a line.

        Args:
            pruned: a layer was pruned.
            folded: batch normalisation seems folded into the weights, so they are not those that were trained.
        """
        if not pruned:
            return [f"method {self.name} pruned no layer: the engine is dense"]
        if folded:
            return [
                "batch normalisation seems folded into the weights: scores differ from those of the trained weights"
            ]
        return []

    def coarser(self) -> str | None:
        """The setting that makes lists coarser, for a net none of whose layers gains from being packed."""
        return None

    # Training

    @property
    def regularises(self) -> bool:
        """Whether there is anything to train towards before the masks are made; `regulariser` then gives it."""
        return False

    @property
    def retrain(self) -> bool:
        """Whether the masked net is trained from scratch after the training towards the masks."""
        return False

    @property
    def prepares(self) -> bool:
        """Whether there is a stage ``prepare``: a net that the method made is trained before its masks are."""
        return self.converts and self.regularises

    def check_training(self, *, prepare: int, regularise: int, finetune: int) -> None:
        """Refuse stages that the method has no use for, and a training that lacks one that it needs.

        Args:
            prepare: epochs before masks are trained.
            regularise: epochs towards the masks.
            finetune: epochs with the masks held.

        Raises:
            InputError: naming the method, and what to leave out or to give.
        """
        if prepare and not self.prepares:
            raise InputError(f"a stage prepare means nothing to method {self.name}", remedy="leave it out")

    def regulariser(self, model: torch.nn.Module, layers: Sequence[ConvLayer]) -> Regulariser:
        """What trains a module towards the masks of the layers, whose names its parameters carry."""
        raise NotImplementedError(f"method {self.name} does not regularise")

    @property
    def repairs(self) -> bool:
        """Whether `repair` changes anything after the fine-tune; checkpoints then keep the weights before it."""
        return False

    def repair(self, masks: Masks, original: Weights, before: Weights, tuned: Weights, net: Net) -> Repair:
        """What changes after the fine-tune.

        Args:
            masks: of the pruned layers, as they were held.
            original: weights before pruning.
            before: masked weights before the fine-tune.
            tuned: weights after it.
            net: around the layers.
        """
        return Repair()

    # Another net

    def convert(
        self, model: torch.fx.GraphModule, layers: Sequence[ConvLayer], example: Sequence[torch.Tensor], seed: int
    ) -> torch.fx.GraphModule:
        """The net that is trained and exported in place of a model.

        Args:
            model: the module of an exported program.
            layers: to convert.
            example: inputs of the module.
            seed: of random numbers.

        Raises:
            InputError: a net that cannot be converted.
        """
        raise NotImplementedError(f"method {self.name} makes no other net")

    def deployed(self, model: torch.nn.Module, layers: Sequence[ConvLayer], macs: int) -> Deployed:
        """Make the trained net, of ``macs`` before, what is exported, in place."""
        raise NotImplementedError(f"method {self.name} makes no other net")

    # Records

    def report(self, layers: Sequence[ConvLayer], weights: Weights, net: Net) -> dict[str, Any]:
        """Figures about the weights that masks were chosen by, as JSON has them."""
        return {}

    def paper_index_bytes(self, index: IndexSet) -> int | None:
        """Index bytes of a layer in the storage format of the method's paper; None where there is none."""
        return None

    def paper_bytes_by_layer(self, index_sets: Mapping[str, IndexSet]) -> dict[str, int]:
        """`paper_index_bytes` of every layer that has them."""
        sizes = {name: self.paper_index_bytes(index) for name, index in index_sets.items()}
        return {name: size for name, size in sizes.items() if size is not None}

    def paper_counting(self, dense_params: int, net: NetCounts) -> Counting | None:
        """How the method's authors count a net of ``dense_params``; None where that is the common counting."""
        return None
