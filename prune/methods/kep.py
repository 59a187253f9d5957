r"""KEP: kernel elements pruning (Neural Networks, 2024, doi 10.1016/j.neunet.2024.106708).

KEP keeps n of the R·S elements of every kernel plane.

**From the abstract.** The elements of each kernel plane are ranked. Unimportant ones are removed under a controllable
penalty that a prior mask selects. Few indices are needed.

**Our reconstruction**, because we did not have the full text. The constraint set is

    S_n = { W : ||w_oc||_0 <= n for every kernel plane },    dist(W, S_n) = min_{Z in S_n} ||W - Z||_F.

The nearest Z keeps the n elements of largest magnitude in every plane: planes are disjoint, so the problem separates,
and exchanging a kept element for a larger dropped one lowers the distance. Where several planes share their positions,
the same argument keeps the n positions of largest energy, which is the sum of squares over these planes. That each
plane has positions of its own (``share`` none, the default) is our reading; no source at hand says it.

Training (`trtkp.pruning.methods.kep_penalty.GrowingPenalty`) pushes the weights that the mask drops towards zero before
they are removed. The mask is made from the pre-trained weights, as the abstract's "prior knowledge" suggests. With
``refresh``, which is ours, it is made again after every epoch.

**Ours.** ``filter_group`` and ``channel_block`` let the planes of a block (`trtkp.pruning.granularity`) share their
positions. The penalty follows the mask, so it pulls the lists of a group together. With ``cluster`` the groups are
made once, from the pre-trained weights: new groups would choose other positions, bring back what the penalty has pushed
down and push what had to stay. (PPT-KP can group again, because its penalty depends on the present norms.) ``nm`` keeps
2:4 inside lists that are stripes (`trtkp.pruning.nm`). The penalty then pushes what the lists or 2:4 drop.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import comb
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import numpy.typing as npt

from trtkp.errors import InputError
from trtkp.index.conv_layer import ConvLayer
from trtkp.index.index_set import IndexSet
from trtkp.pruning.granularity import Blocks, blocks_of
from trtkp.pruning.method import Masks, Method
from trtkp.pruning.nm import list_ratio, refined
from trtkp.pruning.options import (
    Allocation,
    ChannelBlock,
    Cluster,
    FilterGroup,
    Nm,
    exact_floor,
)
from trtkp.pruning.regulariser import layer_weights
from trtkp.pruning.scope import no_element_to_drop, stem_or_depthwise
from trtkp.settings import Setting, check

if TYPE_CHECKING:
    import torch

    from trtkp.pruning.methods.kep_penalty import GrowingPenalty

__all__ = ["DEFAULT_N", "KEP", "SHARES", "block_top_n_mask", "paper_index_bytes", "top_n_mask"]

#: Which planes of W[F, C, R, S] share their positions: the axes over which their energies are summed.
SHARES: dict[str, tuple[int, ...]] = {"none": (), "per-channel": (0,), "per-filter": (1,), "per-layer": (0, 1)}

#: Those whose lists have the same channels at every tap (stripes); only such lists have quads for 2:4.
_PRODUCTS = ("per-filter", "per-layer")

#: Elements kept per plane when neither ``n`` nor ``ratio`` is given: 4 of the 9 of a 3x3 kernel. Our choice.
DEFAULT_N = 4


@dataclass(frozen=True)
class KEP(Method):
    """Keep the n most energetic elements of every kernel plane.

    Scope: convolutions with more than one tap; by default neither the stem nor depthwise layers, and with neither ``n``
    nor ``ratio`` given no kernels of up to 4 elements.

    ``share`` says which planes share their positions: ``none`` (each has its own), ``per-channel`` (the filters of a
    channel agree), ``per-filter`` (the channels of a filter agree: stripes) or ``per-layer``. With ``allocation``
    global there is one magnitude threshold for the net, and each layer keeps the mean count above it, rounded to an
    integer of at least 1. ``masks`` gives the lists where ``nm`` is set.
    """

    n: Annotated[
        int | None,
        Setting("Elements kept of every kernel plane, the same in all layers.", ge=1, default="4", searched=True),
    ] = None
    ratio: Annotated[
        float | None, Setting("Share of the elements to remove, instead of --n.", ge=0, lt=1, searched=True)
    ] = None
    allocation: Allocation = "global"
    share: Annotated[
        str,
        Setting(
            "Planes that share their positions: none, per-channel, per-filter or per-layer.", choices=tuple(SHARES)
        ),
    ] = "none"
    filter_group: FilterGroup = 1
    channel_block: ChannelBlock = 1
    cluster: Cluster = False
    nm: Nm = None
    refresh: Annotated[
        bool,
        Setting(
            "Rank the elements again after every epoch of training; with --cluster, group the filters again.",
            trained=True,
        ),
    ] = False
    delta: Annotated[float, Setting("What the penalty's factor grows by at each raise.", trained=True)] = 1e-4
    every: Annotated[int, Setting("Iterations between two raises of the penalty's factor.", trained=True)] = 10
    norm: Annotated[Literal["l1", "l2"], Setting("Norm of the penalty, l1 or l2 (squared).", trained=True)] = "l2"

    name = "kep"
    searched_filter_group = 1

    def __post_init__(self) -> None:
        check(self)
        if self.n is not None and self.ratio is not None:
            raise InputError("--n and --ratio exclude each other", remedy="give one of them")
        if self.nm is not None and self.share not in _PRODUCTS:
            raise InputError(
                f"--nm {self.nm} needs lists with the same channels at every position, --share {self.share} has others",
                remedy=f"give --share {' or '.join(_PRODUCTS)}",
            )
        if self.share != "none" and (self.filter_group, self.channel_block) != (1, 1):
            raise InputError(
                f"--share {self.share} says already which planes share their positions",
                remedy="leave out --filter-group and --channel-block, or --share",
            )

    def settings(self) -> dict[str, Any]:
        """All settings with the values that take effect."""
        effective = asdict(self)
        if self.ratio is None:
            effective.update(n=self.n or DEFAULT_N, allocation="uniform")
        return effective

    def inapplicable(self, layer: ConvLayer) -> str | None:
        """Kernels of one element, and kernels with more taps than an index set holds."""
        return no_element_to_drop(layer)

    def out_of_scope(self, layer: ConvLayer) -> str | None:
        """The stem, depthwise layers, and kernels that are too small for the default n."""
        if (reason := stem_or_depthwise(layer)) is not None:
            return reason
        if self.n is None and self.ratio is None and layer.taps <= DEFAULT_N:
            return f"{layer.kernel[0]}x{layer.kernel[1]} kernel: it has no more than {DEFAULT_N} elements"
        return None

    def allocate(self, layers: Sequence[ConvLayer], weights: Mapping[str, npt.NDArray[Any]]) -> dict[str, int]:
        """The number of elements kept per plane, n, for every layer.

        With ``allocation`` global, a single magnitude threshold removes the share ``ratio`` of all elements. Each layer
        then keeps its mean number of elements above the threshold, rounded, at least 1. With uniform, every layer keeps
        ``round((1 - ratio) · R·S)``, at least 1.

        Raises:
            InputError: ``n`` is larger than a layer's kernel.
        """
        if self.ratio is None:
            n = self.n or DEFAULT_N
            for layer in layers:
                if n > layer.taps:
                    size = f"{layer.kernel[0]}x{layer.kernel[1]}"
                    remedy = f"give --n {layer.taps} or less, or leave the layer out with --skip"
                    raise InputError(
                        f"n = {n}, but a {size} kernel has {layer.taps} elements", layer=layer.name, remedy=remedy
                    )
            return {layer.name: n for layer in layers}
        ratio = list_ratio(self.ratio, self.nm)
        if self.allocation == "uniform":
            return {layer.name: _at_least_one((1 - ratio) * layer.taps, layer.taps) for layer in layers}
        magnitudes = {layer.name: np.abs(weights[layer.name]).ravel() for layer in layers}
        total = sum(m.size for m in magnitudes.values())
        cut = exact_floor(ratio * total)
        threshold = np.partition(np.concatenate(list(magnitudes.values())), cut)[cut]
        return {
            layer.name: _at_least_one(
                np.count_nonzero(magnitudes[layer.name] >= threshold) / (layer.filters * layer.channels), layer.taps
            )
            for layer in layers
        }

    def masks(self, layers: Sequence[ConvLayer], weights: Mapping[str, npt.NDArray[Any]]) -> Masks:
        """Keep n positions of every plane; planes share positions as ``share`` and the blocks say.

        Example:
            >>> conv = ConvLayer("conv.weight", "conv", filters=2, channels=2, kernel=(3, 3), strides=(1, 1),
            ...                  pads=(1, 1, 1, 1), dilations=(1, 1), groups=1, input_size=(8, 8), output_size=(8, 8),
            ...                  bias=False, stem=False)
            >>> weight = np.arange(36.0).reshape(2, 2, 3, 3)
            >>> mask = KEP(n=2).masks([conv], {"conv.weight": weight})["conv.weight"]
            >>> mask.sum(axis=(2, 3)).tolist()
            [[2, 2], [2, 2]]
            >>> mask[0, 0].astype(int).tolist()
            [[0, 0, 0], [0, 0, 0], [0, 1, 1]]
        """
        n = self.allocate(layers, weights)
        return {layer.name: self._mask(layer, weights[layer.name], n[layer.name]) for layer in layers}

    def _mask(self, layer: ConvLayer, weight: npt.NDArray[Any], n: int) -> npt.NDArray[np.bool_]:
        if (self.filter_group, self.channel_block) == (1, 1):
            return top_n_mask(weight, n, SHARES[self.share], layer.groups)
        energy = np.square(weight, dtype=np.float64)
        blocks = blocks_of(layer, energy, self.filter_group, self.channel_block, cluster=self.cluster)
        return block_top_n_mask(weight, n, blocks)

    @property
    def regularises(self) -> bool:
        """Always: a growing penalty is put on the weights that the mask drops."""
        return True

    def regulariser(self, model: torch.nn.Module, layers: Sequence[ConvLayer]) -> GrowingPenalty:
        """The growing penalty on the weights that the mask, made from the module's present weights, drops."""
        from trtkp.pruning.methods.kep_penalty import GrowingPenalty

        def rank() -> Masks:
            return self.masks(layers, layer_weights(model, layers))

        def inside(lists: Masks) -> Masks:
            return refined(lists, layer_weights(model, layers), layers)

        return GrowingPenalty(
            model, rank(), delta=self.delta, every=self.every, norm=self.norm, rank=rank if self.refresh else None,
            inside=inside if self.nm is not None else None,
        )  # fmt: skip

    def coarser(self) -> str | None:
        """``per-layer`` is the coarsest sharing."""
        return None if self.share == "per-layer" else "--share per-layer lets a layer's kernels share their positions"

    def paper_index_bytes(self, index: IndexSet) -> int:
        """Index bytes of a layer in KEP's storage format; see the function `paper_index_bytes`."""
        return paper_index_bytes(index, self.share)


def top_n_mask(
    weight: npt.NDArray[Any], n: int, shared: tuple[int, ...] = (), groups: int = 1
) -> npt.NDArray[np.bool_]:
    """Keep the n positions of largest energy in every plane; of equal energies the lower tap is dropped first.

    Args:
        weight: [F, C, R, S].
        n: positions to keep.
        shared: axes along which planes share their positions: 0 for filters, 1 for channels. With axis 0 alone, only
            filters of one ONNX group share, because those of another group read other channels. With both axes, all
            groups share the layer's positions.
        groups: number of ONNX groups.

    Returns:
        The mask, bool [F, C, R, S].

    Example:
        >>> weight = np.array([[3.0, 1.0], [0.0, 2.0]]).reshape(1, 1, 2, 2)
        >>> top_n_mask(weight, 2).astype(int).tolist()
        [[[[1, 0], [0, 1]]]]
    """
    filters, channels, rows, columns = weight.shape
    energy = np.square(weight.reshape(groups, filters // groups, channels, rows * columns), dtype=np.float64)
    # axis 0 here is the ONNX group: it is summed over only where the whole layer shares its positions
    axes = tuple(axis + 1 for axis in shared) if len(shared) < 2 else (0, 1, 2)
    score = energy.sum(axis=axes, keepdims=True) if shared else energy
    order = np.argsort(score, axis=-1, kind="stable")
    mask = np.zeros(score.shape, bool)
    np.put_along_axis(mask, order[..., rows * columns - n :], True, axis=-1)
    return np.broadcast_to(mask, energy.shape).reshape(weight.shape).copy()


def block_top_n_mask(weight: npt.NDArray[Any], n: int, blocks: Blocks) -> npt.NDArray[np.bool_]:
    """Keep the n positions of largest mean energy in every block of planes; ties as in `top_n_mask`.

    Args:
        weight: [F, C, R, S].
        n: positions to keep.
        blocks: the blocks; the planes of a block share their positions.

    Returns:
        The mask, bool [F, C, R, S].
    """
    energy = blocks.mean(np.square(weight, dtype=np.float64).reshape(*weight.shape[:2], -1))
    order = np.argsort(energy, axis=-1, kind="stable")
    kept = np.zeros(energy.shape, bool)
    np.put_along_axis(kept, order[..., energy.shape[-1] - n :], True, axis=-1)
    mask: npt.NDArray[np.bool_] = blocks.spread(kept).reshape(weight.shape)
    return mask


def paper_index_bytes(index: IndexSet, share: str) -> int:
    """Index bytes of a layer in KEP's storage format, as we reconstruct it from "few indices" in the abstract.

    A list is stored as a pattern id or as n positions, whichever is smaller for the layer. A pattern id takes 1 byte
    for up to 256 patterns (there are C(R·S, n)), else 2, 4 or 8. A position takes 4 bits, or a byte for kernels of more
    than 16 taps.

    Args:
        index: the index set.
        share: which planes share a list; see `SHARES`.
    """
    filters, channels, rows, columns = index.shape
    taps = rows * columns
    n = int(np.bitwise_count(index.taps).max(initial=np.uint8(0)))
    lists = {"none": filters * channels, "per-channel": channels * index.groups, "per-filter": filters, "per-layer": 1}[
        share
    ]
    patterns = comb(taps, n)
    identifier = lists * (1 if patterns <= 1 << 8 else 2 if patterns <= 1 << 16 else 4 if patterns <= 1 << 32 else 8)
    positions = (lists * n + 1) // 2 if taps <= 16 else lists * n
    return min(identifier, positions)


def _at_least_one(count: float, taps: int) -> int:
    return min(taps, max(1, round(count)))
