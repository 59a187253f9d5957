r"""SOKS: searching optimal kernel shapes for stripe-wise pruning (TNNLS 34, 2023, doi 10.1109/TNNLS.2022.3162067).

SOKS keeps some of the R·S positions of a kernel; all kernels of a filter group keep the same positions.

**From the abstract.** Learnable coefficient matrices under several regularisation terms find the important positions.
That gives irregular kernel shapes in every layer.

**From the same authors' ASKs** (Neurocomputing 446, 2021). The filters of a layer fall into d consecutive groups, and
all channels of a group keep one set of positions. `SHAPES` has their sets.

**Our reconstruction**, because we did not have the full text. Every filter group g has a matrix A^g, which starts at 1:

    W~_o = A^g(o) o W_o,
    L = CE + l1 sum_layers k sum_g |A^g|_1  -  l2 sum Var(|A^g|)  +  l3 sum_{g<h} cos(|A^g|, |A^h|),

where k is the layer's share of parameters or MACs, scaled to mean 1. The terms ask for sparsity, for a margin between
kept and dropped positions, and for shapes that differ between groups. Positions with ``|A| > threshold · max|A|`` stay,
at least one. Then A is folded into W, or the net is trained from scratch in the shapes found.

**SWP** (NeurIPS 2020; known from the paper and the authors' code) is one filter per group with ``remove_filters``. Its
threshold is absolute, because A starts at 1: positions with ``|A| > threshold`` stay, and a filter without any position
is removed. At every step of the search, coefficients that are not above the threshold are set to zero, and their
gradients too. A coefficient then stays zero, except that with ``cluster``, which is ours, its filter may join others.
Kernels of the next layer that read a removed filter stay, because batch normalisation makes its output a constant.

**Ours.** With ``cluster``, filters with similar stripes W~ share a matrix. A search groups them again after every
epoch. The matrix of a group becomes the mean magnitude of the matrices that its filters had, and the quotient goes into
W. So the net computes the same as before, and a coefficient keeps the distance that it has moved towards the threshold.
``nm`` keeps 2:4 inside the stripes (`trtkp.pruning.nm`), which then remove less.

With a ratio instead of the threshold, which is ours too, the score of a position is the mean magnitude of its stripes
of ``W~`` in the group, divided by that of the layer. ``|A|`` alone would not do: a short search moves A little, while
the weights of the positions differ much more. In our study (``docs/methods/accuracy.md``) no coefficient came under the
threshold, so the SOKS rows there were chosen by magnitude.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import numpy.typing as npt

from trtkp.errors import InputError
from trtkp.index.conv_layer import ConvLayer
from trtkp.index.index_set import IndexSet
from trtkp.pruning.granularity import Blocks, blocks_of
from trtkp.pruning.method import Counting, Masks, Method, NetCounts
from trtkp.pruning.nm import list_ratio
from trtkp.pruning.options import Allocation, Cluster, Nm, exact_floor
from trtkp.pruning.scope import no_element_to_drop, stem_or_depthwise
from trtkp.settings import Setting, check

if TYPE_CHECKING:
    import torch

    from trtkp.pruning.methods.soks_search import CoefficientSearch

__all__ = ["SHAPES", "SOKS", "shape_mask"]

#: ASKs' sets of positions 1..9 of a 3x3 kernel (row by row, 5 is the centre), one per filter group.
SHAPES: dict[str, tuple[str, ...]] = {
    "ASK_7": ("1245689", "2345678"),
    "ASK_6": ("124568", "234568", "245678", "245689"),
    "ASK_5a": ("24568",),
    "ASK_5b": ("24568", "24568", "24568", "13579"),
    "ASK_4a": ("1245", "2356", "4578", "5689"),
    "ASK_4b": ("2456", "2568", "4568", "2458"),
    "ASK_3a": ("245", "256", "458", "568"),
    "ASK_3b": ("258", "456"),
    "ASK_2": ("25", "45", "56", "58"),
}
_RATIO = 0.5
_COSTS = ("none", "params", "macs")


@dataclass(frozen=True)
class SOKS(Method):
    """Keep the important positions of every filter group's kernels.

    Scope: convolutions with more than one tap, neither the stem nor depthwise layers.

    ``groups`` is the authors' d: 1, 2 or 4. ``filter_group`` 1 with ``remove_filters`` is SWP, whose ``threshold`` is
    0.01, of coefficients that begin at 1. ``masks`` gives the lists where ``nm`` is set.
    """

    ratio: Annotated[
        float | None,
        Setting(
            "Share of the stripes to remove; after a search, in place of the threshold.",
            ge=0,
            lt=1,
            default="0.5 without a search",
            searched=True,
        ),
    ] = None
    allocation: Allocation = "global"
    groups: Annotated[
        int | None, Setting("Filter groups of a layer, of equal size.", ge=1, default="4", searched=True)
    ] = None
    filter_group: Annotated[int | None, Setting("Filters of a group, instead of --groups.", ge=1, searched=True)] = None
    cluster: Cluster = False
    shapes: Annotated[
        str | None,
        Setting(
            "A fixed set of kernel shapes, which has its own number of groups; nothing is searched.",
            choices=tuple(SHAPES),
            searched=True,
        ),
    ] = None
    nm: Nm = None
    remove_filters: Annotated[
        bool,
        Setting(
            "Let a filter group lose every position, as the filters of SWP do.", flag="--remove-filters/--keep-filters"
        ),
    ] = False
    threshold: Annotated[
        float,
        Setting(
            "A position stays where its coefficient is above this share of the largest of its matrix; with "
            "--remove-filters, above this itself.",
            ge=0,
            lt=1,
            trained=True,
        ),
    ] = 0.05
    sparsity: Annotated[float, Setting("Weight of the sparsity of coefficients in the loss.", ge=0, trained=True)] = (
        1e-4
    )
    margin: Annotated[
        float, Setting("Weight in the loss of the margin between kept and dropped positions.", ge=0, trained=True)
    ] = 1e-5
    diversity: Annotated[
        float, Setting("Weight in the loss of the difference between the shapes of groups.", ge=0, trained=True)
    ] = 1e-5
    cost: Annotated[
        str,
        Setting(
            "What weighs the sparsity of a layer: nothing, its parameters or its MACs.", choices=_COSTS, trained=True
        ),
    ] = "none"
    retrain: Annotated[
        bool,
        Setting(
            "After a search, train from scratch in the shapes found, instead of folding the coefficients in.",
            trained=True,
        ),
    ] = False

    name = "soks"

    def __post_init__(self) -> None:
        check(self)
        if self.groups is not None and self.filter_group is not None:
            raise InputError("--groups and --filter-group exclude each other", remedy="give one of them")
        if self.shapes is not None and (self.ratio, self.groups, self.filter_group) != (None, None, None):
            raise InputError(
                f"--shapes {self.shapes} says already what stays", remedy="leave out --ratio, --groups, --filter-group"
            )

    @property
    def zeroes(self) -> bool:
        """Whether a search sets coefficients to zero once they are not above the threshold, as SWP does."""
        return self.remove_filters and self.ratio is None

    @property
    def regularises(self) -> bool:
        """Fixed shapes leave nothing to search."""
        return self.shapes is None

    def settings(self) -> dict[str, Any]:
        """Every hyper-parameter as it takes effect."""
        effective = asdict(self)
        if self.shapes is not None:
            effective["groups"] = len(SHAPES[self.shapes])
        elif self.filter_group is None:
            effective["groups"] = self.groups or 4
        return effective

    def paper_index_bytes(self, index: IndexSet) -> int:
        """A bit per position and filter group."""
        return -(-index.shape[2] * index.shape[3] * index.filter_groups // 8)

    def paper_counting(self, dense_params: int, net: NetCounts) -> Counting:
        """FLOPs of every operator, as in the same authors' ASKs."""
        del dense_params
        return Counting("FLOPs of every operator", 0, net.elementwise_operations())

    def inapplicable(self, layer: ConvLayer) -> str | None:
        """A plane of one element has nothing to drop, and fixed shapes are of 3x3 kernels."""
        if (reason := no_element_to_drop(layer)) is not None:
            return reason
        if self.shapes is not None and layer.kernel != (3, 3):
            return f"{layer.kernel[0]}x{layer.kernel[1]} kernel: {self.shapes} is for 3x3"
        return None

    def out_of_scope(self, layer: ConvLayer) -> str | None:
        """The stem and depthwise layers."""
        return stem_or_depthwise(layer)

    def blocks(self, layer: ConvLayer, weight: npt.NDArray[Any]) -> Blocks:
        """A layer's filter groups, each over all channels."""
        per_group = layer.filters // layer.groups
        size = self.filter_group or -(-per_group // (self.groups or 4))
        stripes = np.abs(weight).mean(axis=1)
        return blocks_of(layer, stripes, size, layer.channels, cluster=self.cluster)

    def masks(self, layers: Sequence[ConvLayer], weights: Mapping[str, npt.NDArray[Any]]) -> Masks:
        """Keep positions by the present weights (at a ratio), or the positions of a fixed set of shapes.

        Example:
            >>> conv = ConvLayer("conv.weight", "conv", filters=2, channels=2, kernel=(3, 3), strides=(1, 1),
            ...                  pads=(1, 1, 1, 1), dilations=(1, 1), groups=1, input_size=(8, 8), output_size=(8, 8),
            ...                  bias=False, stem=False)
            >>> weight = np.arange(36.0).reshape(2, 2, 3, 3)
            >>> mask = SOKS(ratio=2 / 3, groups=1).masks([conv], {"conv.weight": weight})["conv.weight"]
            >>> mask[1, 0].astype(int).tolist()  # every kernel of the layer keeps the same three positions
            [[0, 0, 0], [0, 0, 0], [1, 1, 1]]
            >>> SOKS(shapes="ASK_2").masks([conv], {"conv.weight": weight})["conv.weight"].sum(axis=(2, 3)).tolist()
            [[2, 2], [2, 2]]
        """
        if self.shapes is not None:
            return {layer.name: shape_mask(SHAPES[self.shapes], layer) for layer in layers}
        blocks = {layer.name: self.blocks(layer, weights[layer.name]) for layer in layers}
        scores = self.scores(layers, weights, blocks)
        return self.masks_of_scores(layers, scores, blocks, _RATIO if self.ratio is None else self.ratio)

    def scores(
        self, layers: Sequence[ConvLayer], weights: Mapping[str, npt.NDArray[Any]], blocks: Mapping[str, Blocks]
    ) -> dict[str, npt.NDArray[np.float64]]:
        """Score of each position: mean magnitude of its stripes in the group, divided by the layer's, [G, R·S]."""
        found = {}
        for layer in layers:
            magnitude = np.abs(weights[layer.name].reshape(layer.filters, layer.channels, layer.taps))
            mean = float(magnitude.mean(dtype=np.float64))
            found[layer.name] = blocks[layer.name].mean(magnitude)[:, 0] / max(mean, 1e-30)
        return found

    def masks_of_scores(
        self,
        layers: Sequence[ConvLayer],
        scores: Mapping[str, npt.NDArray[np.float64]],
        blocks: Mapping[str, Blocks],
        ratio: float | None,
    ) -> Masks:
        """Masks from scores of positions.

        Args:
            layers: the layers.
            scores: by parameter name, the score of each position, [G, R·S].
            blocks: the filter groups of each layer.
            ratio: share of stripes to remove; None to keep positions above the threshold.
        """
        if ratio is None:
            kept = {name: self.above_threshold(score) for name, score in scores.items()}
        else:
            kept = self._by_ratio(layers, scores, blocks, list_ratio(ratio, self.nm))
        masks: Masks = {}
        for layer in layers:
            positions, score = kept[layer.name], scores[layer.name]
            if not self.remove_filters:
                empty = ~positions.any(axis=1)
                positions[empty, score[empty].argmax(axis=1)] = True
            of_filter = positions[blocks[layer.name].group_of_filter].reshape(layer.filters, 1, *layer.kernel)
            masks[layer.name] = np.broadcast_to(of_filter, layer.weight_shape).copy()
        return masks

    def above_threshold(self, magnitudes: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
        """Whether each coefficient of a layer stays, bool [G, R·S], from their magnitudes [G, R·S]."""
        largest = 1.0 if self.remove_filters else magnitudes.max(axis=1, keepdims=True)
        above: npt.NDArray[np.bool_] = magnitudes > self.threshold * largest
        return above

    def _by_ratio(
        self,
        layers: Sequence[ConvLayer],
        scores: Mapping[str, npt.NDArray[np.float64]],
        blocks: Mapping[str, Blocks],
        ratio: float,
    ) -> dict[str, npt.NDArray[np.bool_]]:
        pools = [[layer] for layer in layers] if self.allocation == "uniform" else [list(layers)]
        kept = {}
        for pool in pools:
            sizes = [np.repeat(blocks[layer.name].sizes, layer.taps) for layer in pool]
            flat = np.concatenate([scores[layer.name].ravel() for layer in pool])
            stays = _all_but_lowest(flat, np.concatenate(sizes), ratio)
            ends = np.cumsum([scores[layer.name].size for layer in pool])[:-1]
            for layer, part in zip(pool, np.split(stays, ends), strict=True):
                kept[layer.name] = part.reshape(scores[layer.name].shape)
        return kept

    def regulariser(self, model: torch.nn.Module, layers: Sequence[ConvLayer]) -> CoefficientSearch:
        """The search: it puts a coefficient matrix on every filter group of the module's convolutions."""
        from trtkp.pruning.methods.soks_search import CoefficientSearch

        return CoefficientSearch(model, layers, self)


def shape_mask(shapes: Sequence[str], layer: ConvLayer) -> npt.NDArray[np.bool_]:
    """The mask of a fixed set of shapes, bool [F, C, 3, 3].

    The filters fall into as many equal consecutive groups as there are shapes, and each group keeps one shape.

    Args:
        shapes: positions 1 to 9 to keep, row by row, such as ``"2456"``; see `SHAPES`.
        layer: a layer with 3x3 kernels.
    """
    group = np.arange(layer.filters) * len(shapes) // layer.filters
    positions = np.array([[str(p) in shape for p in range(1, 10)] for shape in shapes])
    return np.broadcast_to(positions[group].reshape(-1, 1, 3, 3), layer.weight_shape).copy()


def _all_but_lowest(scores: npt.NDArray[Any], sizes: npt.NDArray[Any], ratio: float) -> npt.NDArray[np.bool_]:
    """False for the lowest scores whose sizes add up to at most the share ``ratio``; of equal scores the first ones."""
    order = np.argsort(scores, kind="stable")
    count = np.searchsorted(np.cumsum(sizes[order]), exact_floor(ratio * int(sizes.sum())), side="right")
    stays = np.ones(len(scores), bool)
    stays[order[:count]] = False
    return stays
