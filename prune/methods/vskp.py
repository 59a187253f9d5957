r"""V-SKP: vectorised-kernel structured kernel pruning (IEEE Access 11, 2023, doi 10.1109/ACCESS.2023.3326534).

V-SKP removes whole kernels, the same number from every filter of a layer.

**From the paper's abstract and the authors' code.** With kernels as vectors ``v_oc`` and the feature vector of a filter
``f_o = sum_c v_oc``, the score of a kernel is

    s_oc = ||v_oc||_1 · (alpha + (1 - alpha) · |cos(f_o, v_oc)|).

Phase 1 sorts the N scores of all layers and takes the threshold ``t = sorted[floor(ratio · N)]``. The budget of a layer
is the number of its kernels whose score is at most t. Phase 2 removes the same number of kernels from every filter,
``budget // F``, those of lowest score. At least one kernel stays, and of equal scores the lower channel is removed
first.

1x1 layers have the scores ``|w|`` and a threshold of their own, which cannot take the largest ``pointwise_keep`` of
each such layer. ``beta`` multiplies the scores of a layer by ``1 - beta · Var(||v||_1)`` (the variance times 200 for
1x1), which moves budgets between layers. We do not know whether the paper's figures were made with it.

After the fine-tune, `reactivate` repairs filters that did not move. `mask_of_matrix` is the rule for fully connected
layers; these are not convolutions and have no index sets. Both are in the authors' code, and off by default here.

**Ours.** ``filter_group`` and ``channel_block`` choose whole blocks of kernels (`trtkp.pruning.granularity`) by their
mean score; with 1 x 1 the method is the paper's. ``cluster`` groups filters with similar scores, and ``round_to``
rounds the number of retained channels. Blocks keep the budget of a layer, rounded to whole blocks:
``floor(channel blocks · share)``. ``nm`` keeps 2:4 inside the lists (`trtkp.pruning.nm`): ``ratio`` is then what lists
and 2:4 remove together, and the kernels of a filter are ranked by what 2:4 is expected to keep of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt

from trtkp.errors import InputError
from trtkp.index.conv_layer import ConvLayer
from trtkp.index.index_set import IndexSet, Kind
from trtkp.pruning.granularity import Blocks, blocks_of, rounded
from trtkp.pruning.method import Counting, Masks, Method, Net, NetCounts, Repair, Weights
from trtkp.pruning.nm import list_ratio
from trtkp.pruning.options import (
    Allocation,
    ChannelBlock,
    Cluster,
    FilterGroup,
    Nm,
    Pointwise,
    RoundTo,
    exact_floor,
)
from trtkp.pruning.scope import no_kernel_to_drop, stem_or_pointwise
from trtkp.settings import Setting, check, check_values

__all__ = [
    "VSKP",
    "counted_with_batch_norm",
    "equalised",
    "index_list",
    "kernel_bitmap",
    "kernel_scores",
    "mask_of_bitmap",
    "mask_of_list",
    "mask_of_matrix",
    "reactivate",
    "unmoved_filters",
]

_EPSILON = 1e-6  # least product of norms in the cosine, as in the authors' code


@dataclass(frozen=True)
class VSKP(Method):
    """Keep the same number of kernels in every filter of a layer, those of largest score.

    Scope: everything but the stem and depthwise layers; 1x1 layers only with ``pointwise``.

    The authors take ``alpha`` 0.95 for CIFAR and 0.85 for ResNet-50 on ImageNet. ``masks`` gives the lists where ``nm``
    is set.
    """

    ratio: Annotated[float, Setting("Share of the kernels to remove.", ge=0, lt=1, searched=True)] = 0.5
    allocation: Allocation = "global"
    alpha: Annotated[
        float, Setting("Weight of a kernel's magnitude against its direction; 1 is magnitude alone.", ge=0, le=1)
    ] = 0.95
    beta: Annotated[
        float, Setting("Weight of the variance of a layer's magnitudes in its scores; 0 leaves it out.")
    ] = 0.0
    pointwise: Pointwise = True
    pointwise_keep: Annotated[
        float, Setting("Share of a 1x1 layer's weights that no threshold may prune.", ge=0, lt=1)
    ] = 1e-3
    filter_group: FilterGroup = 1
    filter_group_1x1: Annotated[
        int | None,
        Setting(
            "Filters that share a list in 1x1 layers, which gain only from larger groups.",
            ge=1,
            default="as --filter-group",
        ),
    ] = None
    channel_block: ChannelBlock = 1
    cluster: Cluster = False
    round_to: RoundTo = 1
    fully_connected: Annotated[
        bool, Setting("Prune the weights of fully connected layers too, those of least magnitude.", trained=True)
    ] = False
    reactivate: Annotated[
        bool,
        Setting(
            "After the fine-tune, restore the kernels that read a filter whose weights it did not change.", trained=True
        ),
    ] = False
    nm: Nm = None

    name = "vskp"
    searched_filter_group = 64

    def __post_init__(self) -> None:
        check(self)
        if self.reactivate and (self.filter_group, self.channel_block, self.nm) != (1, 1, None):
            raise InputError(
                "--reactivate changes single kernels", remedy="leave out --filter-group, --channel-block and --nm"
            )

    @property
    def expects_two_four(self) -> bool:
        """With ``nm``: lists are of channels, and 2:4 applies inside them."""
        return self.nm is not None

    def paper_index_bytes(self, index: IndexSet) -> int:
        """Bytes of the paper's bitmap format, ceil(C/8) per filter."""
        return kernel_bitmap(index).nbytes

    def paper_counting(self, dense_params: int, net: NetCounts) -> Counting:
        """See `counted_with_batch_norm`."""
        return counted_with_batch_norm(dense_params, net)

    def inapplicable(self, layer: ConvLayer) -> str | None:
        """Layers with one kernel per filter, and kernels with more taps than an index set holds."""
        return no_kernel_to_drop(layer)

    def out_of_scope(self, layer: ConvLayer) -> str | None:
        """The stem, and 1x1 layers unless ``pointwise`` is set."""
        return stem_or_pointwise(layer, pointwise=self.pointwise)

    def masks(self, layers: Sequence[ConvLayer], weights: Mapping[str, npt.NDArray[Any]]) -> Masks:
        """Remove the same number of kernels from every filter of a layer; 1x1 layers have a threshold of their own.

        Example:
            >>> conv = ConvLayer("conv.weight", "conv", filters=2, channels=4, kernel=(3, 3), strides=(1, 1),
            ...                  pads=(1, 1, 1, 1), dilations=(1, 1), groups=1, input_size=(8, 8), output_size=(8, 8),
            ...                  bias=False, stem=False)
            >>> norms = np.array([[8.0, 7.0, 6.0, 1.0], [2.0, 3.0, 4.0, 5.0]])
            >>> weight = np.broadcast_to(norms[:, :, None, None], (2, 4, 3, 3))
            >>> mask = VSKP(ratio=0.5, allocation="uniform").masks([conv], {"conv.weight": weight})["conv.weight"]
            >>> mask[:, :, 0, 0].astype(int).tolist()
            [[1, 1, 0, 0], [0, 0, 1, 1]]
        """
        kernels = {layer.name: self.scores(layer, weights[layer.name]) for layer in layers}
        blocks = {layer.name: self._blocks(layer, kernels[layer.name]) for layer in layers}
        scores = {name: blocks[name].mean(kernels[name]) for name in kernels}
        masks: Masks = {}
        for kind in (
            [layer for layer in layers if layer.taps > 1],
            [layer for layer in layers if layer.taps == 1],
        ):
            for layer, count in zip(kind, self._removed(kind, scores, blocks), strict=True):
                kept = blocks[layer.name].spread(equalised(scores[layer.name], count))
                masks[layer.name] = np.broadcast_to(kept[:, :, None, None], layer.weight_shape).copy()
        return masks

    def check_one_shot(self) -> None:
        """Refuse what a build cannot do: prune fully connected layers, which have no index sets, and repair."""
        if self.fully_connected:
            raise InputError(
                "--fully-connected prunes layers without index sets", remedy="use trtkp prune, then trtkp build"
            )
        if self.reactivate:
            raise InputError(
                "--reactivate repairs filters that a fine-tune did not move, and a build trains nothing",
                remedy="use trtkp prune with --data and --epochs, then trtkp build",
            )

    def check_by_layers(self) -> None:
        """Refuse ``fully_connected``, whose layers have no ratio there, and ``reactivate``, which links layers."""
        for setting in ("fully_connected", "reactivate"):
            if getattr(self, setting):
                flag = "--" + setting.replace("_", "-")
                raise InputError(f"{flag} does not work with an allocation file", remedy="leave it out")

    def check_training(self, *, prepare: int, regularise: int, finetune: int) -> None:
        """``reactivate`` needs a fine-tune."""
        if self.reactivate and not finetune:
            raise InputError(
                "--reactivate repairs filters that a fine-tune did not move", remedy="give --data and --epochs"
            )
        super().check_training(prepare=prepare, regularise=regularise, finetune=finetune)

    def matrix_masks(self, net: Net) -> Masks:
        """With ``fully_connected``, `mask_of_matrix` of every fully connected layer."""
        if not self.fully_connected:
            return {}
        return {name: mask_of_matrix(weight, self.ratio) for name, weight in net.matrices().items()}

    @property
    def repairs(self) -> bool:
        """Whether ``reactivate`` is set."""
        return self.reactivate

    def repair(self, masks: Masks, original: Weights, before: Weights, tuned: Weights, net: Net) -> Repair:
        """Let layers read the filters before them that the fine-tune did not move; see the function `reactivate`.

        The report has the number of kernels that came back, by layer, under ``reactivated``.
        """
        changed: Masks = {}
        weights, restored = {}, {}
        for name, following in net.next_convolutions().items():
            if name not in masks or following not in masks:
                continue
            held = changed.get(following, masks[following])
            channels = unmoved_filters(before[name], tuned[name])
            mask, weight = reactivate(channels, held, original[following], tuned[following])
            if count := int((mask & ~held)[:, :, 0, 0].sum()):
                changed[following], weights[following], restored[following] = mask, weight, count
        return Repair(changed, weights, {"reactivated": restored})

    @property
    def _ratio(self) -> float:
        """The share of kernels that the lists remove."""
        return list_ratio(self.ratio, self.nm)

    def _blocks(self, layer: ConvLayer, scores: npt.NDArray[np.float64]) -> Blocks:
        filters = self.filter_group_1x1 if layer.taps == 1 and self.filter_group_1x1 else self.filter_group
        return blocks_of(layer, scores, filters, self.channel_block, cluster=self.cluster)

    def scores(self, layer: ConvLayer, weight: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        """The score of each kernel, float64 [F, C], from a weight [F, C, R, S]."""
        if layer.taps > 1:
            return kernel_scores(weight, self.alpha, self.beta)
        magnitude = np.abs(weight.reshape(layer.filters, layer.channels).astype(np.float64))
        return magnitude * (1 - self.beta * 200 * magnitude.var())

    def _removed(
        self,
        layers: Sequence[ConvLayer],
        scores: Mapping[str, npt.NDArray[Any]],
        blocks: Mapping[str, Blocks],
    ) -> list[int]:
        """For each layer, the number of blocks that every filter group loses."""
        columns = {layer.name: blocks[layer.name].shape[1] for layer in layers}
        if self.allocation == "uniform":
            removed = [exact_floor(columns[layer.name] * self._ratio) for layer in layers]
        else:
            removed = self._below_threshold(layers, scores, blocks)
        return [
            columns[layer.name]
            - rounded(columns[layer.name] - count, self.round_to, self.channel_block, columns[layer.name])
            for layer, count in zip(layers, removed, strict=True)
        ]

    def _below_threshold(
        self, layers: Sequence[ConvLayer], scores: Mapping[str, npt.NDArray[Any]], blocks: Mapping[str, Blocks]
    ) -> list[int]:
        """Phase 1: for each layer, the number of blocks per filter group whose score is at most the net's threshold."""
        if not layers:
            return []
        pooled = np.concatenate([scores[layer.name].ravel() for layer in layers])
        weight = np.concatenate([blocks[layer.name].sizes.ravel() for layer in layers])
        order = np.argsort(pooled, kind="stable")
        # the first kernel beyond the share: with 1 x 1 blocks this is the authors' sorted[floor(ratio · N)]
        beyond = np.searchsorted(np.cumsum(weight[order]), exact_floor(self._ratio * int(weight.sum())), side="right")
        threshold = pooled[order[min(int(beyond), len(order) - 1)]]
        removed = []
        for layer in layers:
            score = scores[layer.name]
            below = score <= threshold
            if layer.taps == 1:
                below &= score < _largest(score, self.pointwise_keep)
            removed.append(blocks[layer.name].equal_share(below))
        return removed


def kernel_scores(weight: npt.NDArray[Any], alpha: float, beta: float = 0.0) -> npt.NDArray[np.float64]:
    """The score of each kernel, ``||v||_1 (alpha + (1 - alpha) |cos(f, v)|)``, float64 [F, C].

    Args:
        weight: [F, C, R, S].
        alpha: weight of the magnitude against the direction, 0 to 1.
        beta: weight of the variance of the norms; see the module.

    Example:
        >>> weight = np.array([[1.0, 1.0], [1.0, -1.0]]).reshape(1, 2, 1, 2)
        >>> kernel_scores(weight, alpha=1.0).tolist()  # the L1 norms
        [[2.0, 2.0]]
        >>> kernel_scores(weight, alpha=0.0).round(3).tolist()  # times the cosine with their sum, [2, 0]
        [[1.414, 1.414]]
    """
    vectors = weight.reshape(*weight.shape[:2], -1).astype(np.float64)
    feature = vectors.sum(axis=1, keepdims=True)
    norms = np.linalg.norm(vectors, axis=2) * np.linalg.norm(feature, axis=2)
    cosine = (vectors * feature).sum(axis=2) / np.maximum(norms, _EPSILON)
    magnitude = np.abs(vectors).sum(axis=2)
    scores: npt.NDArray[np.float64] = magnitude * (alpha + (1 - alpha) * np.abs(cosine))
    return scores * (1 - beta * magnitude.var())


def counted_with_batch_norm(dense_params: int, net: NetCounts) -> Counting:
    """The two ways in which the code of V-SKP's authors counts a net.

    - With batch normalisation: all parameters and statistics of the state dict, and as FLOPs the MACs plus one per
      element that batch normalisation outputs.
    - Without batch normalisation and biases: the weights of convolutions and fully connected layers, and the MACs.

    PPT-KP is by the same group; we assume that it counts in the same ways.

    Args:
        dense_params: our number of parameters of the dense net.
        net: counts of the net.
    """
    without = Counting("without BatchNorm and biases", net.product_weights() - dense_params, 0)
    return Counting("with BatchNorm and its statistics", net.statistics(), net.batch_norm_elements(), without)


def mask_of_matrix(weight: npt.NDArray[Any], ratio: float) -> npt.NDArray[np.bool_]:
    """The authors' rule for a fully connected layer: remove the share ``ratio`` of its weights, the smallest ones.

    Of equal magnitudes the earlier one is removed first.

    Args:
        weight: [outputs, inputs].
        ratio: share of the weights to remove.

    Raises:
        InputError: ``ratio`` is not at least 0 and below 1.

    Example:
        >>> mask_of_matrix(np.array([[3.0, -1.0], [0.5, 2.0]]), 0.5).tolist()
        [[True, False], [False, True]]
    """
    check_values(VSKP, {"ratio": ratio})
    mask = np.ones(weight.size, bool)
    mask[np.argsort(np.abs(weight).ravel(), kind="stable")[: exact_floor(ratio * weight.size)]] = False
    return mask.reshape(weight.shape)


def unmoved_filters(pruned: npt.NDArray[Any], tuned: npt.NDArray[Any], cosine: float = 0.9999) -> npt.NDArray[np.int64]:
    """Indices of the filters that a fine-tune did not move: nothing behind them reads their output.

    Args:
        pruned: the weight before the fine-tune, [F, C, R, S].
        tuned: the weight after it.
        cosine: filters whose two weights have a larger cosine count as not moved; 0.9999 is the authors' value.
    """
    one, other = (weight.reshape(len(weight), -1).astype(np.float64) for weight in (pruned, tuned))
    norms = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    return np.flatnonzero((one * other).sum(axis=1) > cosine * norms)


def reactivate(
    channels: npt.NDArray[np.int64],
    mask: npt.NDArray[np.bool_],
    original: npt.NDArray[Any],
    tuned: npt.NDArray[Any],
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[Any]]:
    """The authors' repair after a fine-tune: let the next layer read channels that nothing reads.

    For each such channel, the filter whose original kernel for it was largest gets this kernel back. It loses its
    smallest retained kernel in exchange, so every filter keeps its number of kernels.

    Args:
        channels: input channels of the next layer that nothing reads, as `unmoved_filters` finds them.
        mask: mask of the next layer, bool [F, C, R, S], of whole kernels.
        original: weight of the next layer before pruning, [F, C, R, S].
        tuned: weight of the next layer after the fine-tune.

    Returns:
        The new mask and the new weight of the next layer.
    """
    kept, weight = mask[:, :, 0, 0].copy(), np.where(mask, tuned, 0)
    sizes = np.abs(original).sum(axis=(2, 3))
    restored = np.zeros_like(kept)
    for channel in channels:
        filter_ = int(sizes[:, channel].argmax())
        present = np.abs(weight[filter_]).sum(axis=(1, 2))
        present[~kept[filter_] | restored[filter_]] = np.inf
        if kept[filter_, channel] or not np.isfinite(present).any():
            continue  # the filter reads the channel already, or all its kernels have come back in this way
        loses = int(present.argmin())
        kept[filter_, [loses, channel]] = False, True
        restored[filter_, channel] = True
        weight[filter_, loses] = 0
        weight[filter_, channel] = original[filter_, channel]
    return np.broadcast_to(kept[:, :, None, None], mask.shape).copy(), weight


def index_list(index: IndexSet) -> npt.NDArray[np.int32]:
    """V-SKP's expanded index format: the K channels that each filter keeps, ascending, int32 [F, K].

    Raises:
        InputError: the index set does not hold whole kernels, or filters keep different numbers of them.
    """
    kept = _kernels_of(index)
    counts = kept.sum(axis=1)
    if len(set(counts.tolist())) > 1:
        raise InputError(f"filters keep {counts.min()} to {counts.max()} kernels, V-SKP's list needs equal numbers")
    return np.nonzero(kept)[1].reshape(len(kept), -1).astype(np.int32)


def kernel_bitmap(index: IndexSet) -> npt.NDArray[np.uint8]:
    """V-SKP's compressed index format: one bit per kernel, uint8 [F, ceil(C/8)], the lowest channel in the highest bit.

    Raises:
        InputError: the index set does not hold whole kernels.

    Example:
        >>> from trtkp.index.index_set import from_mask
        >>> mask = np.zeros((1, 10, 3, 3), bool)
        >>> mask[:, [0, 9]] = True
        >>> [f"{byte:08b}" for byte in kernel_bitmap(from_mask(mask))[0]]
        ['10000000', '01000000']
    """
    return np.packbits(_kernels_of(index), axis=1, bitorder="big")


def mask_of_list(channels: npt.NDArray[Any], shape: tuple[int, int, int, int]) -> npt.NDArray[np.bool_]:
    """The mask of V-SKP's expanded index format, bool of the given shape.

    Args:
        channels: the channels that each filter keeps, [F, K], in any order.
        shape: F, C, R, S.

    Raises:
        InputError: a channel is out of bounds or named twice, or the number of filters is another.

    Example:
        >>> mask_of_list(np.array([[0, 2], [1, 2]]), (2, 3, 1, 1))[:, :, 0, 0].astype(int).tolist()
        [[1, 0, 1], [0, 1, 1]]
    """
    ascending = np.sort(channels, axis=1)
    in_bounds = channels.size == 0 or (ascending.min() >= 0 and ascending.max() < shape[1])
    if len(channels) != shape[0] or not in_bounds or np.any(np.diff(ascending, axis=1) == 0):
        raise InputError(f"a kernel list {list(channels.shape)} with channels that do not fit a weight {list(shape)}")
    kept = np.zeros(shape[:2], bool)
    np.put_along_axis(kept, channels.astype(np.int64), True, axis=1)
    return np.broadcast_to(kept[:, :, None, None], shape).copy()


def mask_of_bitmap(bitmap: npt.NDArray[np.uint8], shape: tuple[int, int, int, int]) -> npt.NDArray[np.bool_]:
    """The mask of V-SKP's compressed index format, bool of the given shape.

    Args:
        bitmap: uint8 [F, ceil(C/8)], the lowest channel in the highest bit.
        shape: F, C, R, S.

    Raises:
        InputError: the bitmap has another shape or dtype, or a bit beyond the last channel is set.
    """
    expected = (shape[0], -(-shape[1] // 8))
    if bitmap.dtype != np.uint8 or bitmap.shape != expected:
        raise InputError(f"a kernel bitmap {bitmap.dtype}{list(bitmap.shape)}, expected uint8{list(expected)}")
    bits = np.unpackbits(bitmap, axis=1, bitorder="big").astype(bool)
    if bits[:, shape[1] :].any():
        raise InputError(f"a kernel bitmap with a bit beyond channel {shape[1] - 1}")
    return np.broadcast_to(bits[:, : shape[1], None, None], shape).copy()


def _kernels_of(index: IndexSet) -> npt.NDArray[np.bool_]:
    if index.kind is not Kind.KERNEL:
        raise InputError(f"lists of kind {index.kind}: V-SKP's index formats hold whole kernels only")
    kept: npt.NDArray[np.bool_] = index.group_taps[index.group_of_filter] != 0
    return kept


def equalised(scores: npt.NDArray[np.float64], removed: int) -> npt.NDArray[np.bool_]:
    """Keep all but the ``removed`` lowest scores of every row; of equal scores the lower column is removed first.

    Example:
        >>> equalised(np.array([[3.0, 1.0, 2.0], [5.0, 5.0, 9.0]]), 1).astype(int).tolist()
        [[1, 0, 1], [0, 1, 1]]
    """
    kept = np.ones(scores.shape, bool)
    lowest = np.argsort(scores, axis=1, kind="stable")[:, :removed]
    np.put_along_axis(kept, lowest, False, axis=1)
    return kept


def _largest(scores: npt.NDArray[np.float64], share: float) -> float:
    """The smallest score among the largest ``share`` of all scores; infinity if that share is not even one score."""
    count = exact_floor(share * scores.size)
    return float(np.partition(scores.ravel(), scores.size - count)[scores.size - count]) if count else float("inf")
