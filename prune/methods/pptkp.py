r"""PPT-KP: pruning-point-training kernel pruning (AICAS 2023).

PPT-KP removes whole kernels whose L1 norm training has made small.

**From the abstract.** An L1 penalty, whose intensity depends on the kernel's own L1 norm, drives the norms of kernels
towards zero. That makes several margins in the distribution of the norms, and so several usable thresholds, the
pruning points.

**Our reconstruction**, because we did not have the full text. With norms ``a = ||w_oc||_1``, breakpoints
``tau_1 < ... < tau_B`` and intensities ``gamma_0 > ... > gamma_B >= 0``, the penalty is

    R(W) = lambda · sum phi(a),      phi'(a) = gamma_b   for   tau_b <= a < tau_{b+1},      tau_0 = 0.

Norms then drift towards zero with a speed proportional to gamma(a). The speed jumps at a breakpoint, and the flow of
norms past it is the same on both sides. The density below breakpoint b is therefore gamma_b / gamma_{b-1} times the
density above it: a dip below every breakpoint. That smaller norms are pushed harder is our inference; ``intensities``
can say otherwise. Breakpoints are quantiles of the dense net's norms, or of the norms after ``single_epochs``. 1x1
layers have norms, breakpoints and thresholds of their own and 0.6 times the strength, as in code by the same group.

How norms become masks is our reading too; no source at hand says it. One threshold holds for the whole net, every
filter keeps its largest kernel, and filters keep unequal numbers. ``equalise`` gives the filters of a layer equal
numbers, as V-SKP does. Without training this is plain L1 kernel pruning.

**Ours.** With ``filter_group`` and ``channel_block`` (`trtkp.pruning.granularity`), norms are means over blocks, both
in the threshold and in the penalty. ``proximal`` replaces the subgradient by a shrinking step on whole blocks after
each update, as in the group lasso (Yuan and Lin, JRSS B 68, 2006). A block of n kernels is shrunk sqrt(n) times as
strongly, so one strength suits every n. ``nm`` keeps 2:4 inside the lists (`trtkp.pruning.nm`): the lists then remove
less, and at a ratio the kernels of a filter are ranked by what 2:4 is expected to keep of them. Pruning points are
margins of the norms as they are.

The PPT-KP rows of our study (``docs/methods/accuracy.md``) use this proximal step, with breakpoints that follow from
the target ratio. They say nothing about the accuracy of the paper's own training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import numpy.typing as npt

from trtkp.errors import InputError
from trtkp.index.conv_layer import ConvLayer
from trtkp.index.index_set import IndexSet
from trtkp.pruning.granularity import Blocks, blocks_of, rounded
from trtkp.pruning.method import Counting, Masks, Method, Net, NetCounts
from trtkp.pruning.methods.vskp import counted_with_batch_norm, equalised
from trtkp.pruning.nm import list_ratio
from trtkp.pruning.one_shot import Pruning, prune_layers
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
from trtkp.settings import Setting, check

if TYPE_CHECKING:
    import torch

    from trtkp.pruning.methods.pptkp_penalty import NormDependentL1

__all__ = ["PPTKP", "PruningPoint", "kernel_norms", "kernel_sizes", "pools", "pruning_points"]

_RATIO = 0.5
_BINS = 100
#: A dip of the histogram is a margin if it is this share lower than the lower peak beside it, and lower by this many
#: standard deviations of a count of that size (the square root of the count). Both are ours. The second keeps the
#: scatter of norms that were never trained from making margins.
_DEPTH, _DEVIATIONS = 0.2, 4.0
#: Norms below this share of the largest have been driven to zero. They are left out of the histogram: their pile would
#: be a peak, and everything between it and the rest a margin.
_PILE = 0.02


@dataclass(frozen=True)
class PruningPoint:
    """A threshold in a margin of the distribution of norms.

    Attributes:
        threshold: kernels with at most this norm are removed.
        ratio: share of the norms that are at most the threshold.
        depth: by what share, 0 to 1, the histogram is lower in the margin than at the lower peak beside it.
    """

    threshold: float
    ratio: float
    depth: float


@dataclass(frozen=True)
class PPTKP(Method):
    """Remove the kernels of small L1 norm, at a ratio or at a pruning point.

    Scope: everything but the stem and depthwise layers; 1x1 layers only with ``pointwise``.

    Where ``equalise`` is set and the allocation is uniform, ``quantiles`` are of each filter's norms as they are. With
    ``proximal``, ``w <- w · max(0, 1 - lr · lambda · gamma · sqrt(n) / ||w||_2)`` after each step reaches exact zeros;
    without it ``lambda · gamma · sign(w)`` is added to the gradient. ``masks`` gives the lists where ``nm`` is set.
    """

    ratio: Annotated[
        float | None,
        Setting("Share of the kernels to remove.", ge=0, lt=1, default="0.5 without --point", searched=True),
    ] = None
    point: Annotated[
        int | None,
        Setting(
            "Pruning point to take instead of --ratio, counted from 1 at the smallest threshold.", ge=1, searched=True
        ),
    ] = None
    allocation: Allocation = "global"
    equalise: Annotated[bool, Setting("Keep the same number of kernels in every filter of a layer.")] = False
    pointwise: Pointwise = True
    filter_group: FilterGroup = 1
    channel_block: ChannelBlock = 1
    cluster: Cluster = False
    round_to: RoundTo = 1
    nm: Nm = None
    single_epochs: Annotated[
        int,
        Setting(
            "Epochs of the penalty on single kernels, before filters are grouped by the norms that it leaves.",
            ge=0,
            trained=True,
        ),
    ] = 0
    strength: Annotated[float, Setting("Strength of the penalty, lambda.", ge=0, trained=True)] = 1e-4
    quantiles: Annotated[
        Sequence[float],
        Setting("Breakpoints of the penalty: quantiles of the norms when it begins, rising.", gt=0, lt=1, trained=True),
    ] = (0.25, 0.5, 0.75)
    intensities: Annotated[
        Sequence[float],
        Setting("Intensities of the penalty, gamma: one more than there are breakpoints.", ge=0, trained=True),
    ] = (1.0, 0.5, 0.25, 0.0)
    proximal: Annotated[
        bool, Setting("Shrink whole blocks after each step instead of changing the gradient.", trained=True)
    ] = False

    name = "pptkp"
    searched_filter_group = 64

    def __post_init__(self) -> None:
        check(self)
        if self.ratio is not None and self.point is not None:
            raise InputError("--ratio and --point exclude each other", remedy="give one of them")
        if self.point is not None and self.allocation != "global":
            raise InputError(
                f"--point {self.point} is a threshold over the whole net",
                remedy=f"leave out --allocation {self.allocation}",
            )
        rising = [0.0, *self.quantiles, 1.0]
        if not all(low < high for low, high in pairwise(rising)):
            raise InputError(f"quantiles {list(self.quantiles)}: not rising between 0 and 1")
        if len(self.intensities) != len(self.quantiles) + 1:
            raise InputError(
                f"{len(self.intensities)} intensities for {len(self.quantiles)} breakpoints", remedy="give one more"
            )

    def settings(self) -> dict[str, Any]:
        """All settings with the values that take effect."""
        effective = asdict(self) | {"quantiles": list(self.quantiles), "intensities": list(self.intensities)}
        if self.ratio is None and self.point is None:
            effective["ratio"] = _RATIO
        return effective

    @property
    def expects_two_four(self) -> bool:
        """With ``nm`` at a ratio. A pruning point is a threshold of the norms as they were trained."""
        return self.nm is not None and self.point is None

    def paper_index_bytes(self, index: IndexSet) -> int:
        """Bytes of lists of unequal length: per kernel a channel of 1 byte (2 above 256 channels), int32 row pointers.

        Our reading: the abstract names no format.
        """
        kernels = int(np.diff(index.group_ptr) @ np.diff(index.entry_ptr))
        return kernels * (1 if index.shape[1] <= 1 << 8 else 2) + 4 * (index.shape[0] + 1)

    def paper_counting(self, dense_params: int, net: NetCounts) -> Counting:
        """As V-SKP's authors count, who are of the same group; see `counted_with_batch_norm`."""
        return counted_with_batch_norm(dense_params, net)

    def inapplicable(self, layer: ConvLayer) -> str | None:
        """Layers with one kernel per filter, and kernels with more taps than an index set holds."""
        return no_kernel_to_drop(layer)

    def out_of_scope(self, layer: ConvLayer) -> str | None:
        """The stem, and 1x1 layers unless ``pointwise`` is set."""
        return stem_or_pointwise(layer, pointwise=self.pointwise)

    def masks(self, layers: Sequence[ConvLayer], weights: Mapping[str, npt.NDArray[Any]]) -> Masks:
        """Keep the kernels whose norms are above the threshold, and the largest kernel of every filter.

        Raises:
            InputError: there are fewer pruning points than ``point``.

        Example:
            >>> conv = ConvLayer("conv.weight", "conv", filters=2, channels=4, kernel=(3, 3), strides=(1, 1),
            ...                  pads=(1, 1, 1, 1), dilations=(1, 1), groups=1, input_size=(8, 8), output_size=(8, 8),
            ...                  bias=False, stem=False)
            >>> norms = np.array([[8.0, 7.0, 6.0, 1.0], [2.0, 3.0, 4.0, 5.0]])
            >>> weight = np.broadcast_to(norms[:, :, None, None], (2, 4, 3, 3))
            >>> mask = PPTKP(ratio=0.5).masks([conv], {"conv.weight": weight})["conv.weight"]
            >>> mask[:, :, 0, 0].astype(int).tolist()
            [[1, 1, 1, 0], [0, 0, 0, 1]]
        """
        return self.masks_of_blocks(layers, weights, self.blocks(layers, weights))

    def blocks(self, layers: Sequence[ConvLayer], weights: Mapping[str, npt.NDArray[Any]]) -> dict[str, Blocks]:
        """The blocks of each layer, by parameter name."""
        return {
            layer.name: blocks_of(
                layer, kernel_norms(weights[layer.name]), self.filter_group, self.channel_block, cluster=self.cluster
            )
            for layer in layers
        }

    def masks_of_blocks(
        self, layers: Sequence[ConvLayer], weights: Mapping[str, npt.NDArray[Any]], blocks: Mapping[str, Blocks]
    ) -> Masks:
        """`masks` with given blocks, such as those with which the net was trained."""
        norms = {layer.name: blocks[layer.name].mean(kernel_norms(weights[layer.name])) for layer in layers}
        ratio = list_ratio(_RATIO if self.ratio is None else self.ratio, self.nm)
        compared = [[layer] for layer in layers] if self.allocation == "uniform" else pools(layers)
        masks: Masks = {}
        for pool in compared:
            threshold = self._threshold(pool, norms, blocks, ratio)
            for layer in pool:
                rows = self._kept(norms[layer.name], blocks[layer.name], threshold, ratio)
                if self.round_to > 1:
                    rows = self._rounded(rows, norms[layer.name])
                kept = blocks[layer.name].spread(rows)
                masks[layer.name] = np.broadcast_to(kept[:, :, None, None], layer.weight_shape).copy()
        return masks

    def points(
        self, layers: Sequence[ConvLayer], weights: Mapping[str, npt.NDArray[Any]]
    ) -> dict[str, list[PruningPoint]]:
        """The pruning points of each pool (see `pools`), by its `kernel_sizes`. ``point`` counts in each pool."""
        blocks = self.blocks(layers, weights)
        norms = {layer.name: blocks[layer.name].mean(kernel_norms(weights[layer.name])) for layer in layers}
        return {kernel_sizes(pool): pruning_points(_pooled(pool, norms)) for pool in pools(layers)}

    def at(self, point: int) -> PPTKP:
        """The same method at a pruning point."""
        return replace(self, ratio=None, point=point, allocation="global")

    def _threshold(
        self,
        pool: Sequence[ConvLayer],
        norms: Mapping[str, npt.NDArray[Any]],
        blocks: Mapping[str, Blocks],
        ratio: float,
    ) -> float:
        pooled = _pooled(pool, norms)
        if self.point is None:
            return _quantile(pooled, np.concatenate([blocks[layer.name].sizes.ravel() for layer in pool]), ratio)
        points = pruning_points(pooled)
        if len(points) < self.point:
            number = "1 pruning point" if len(points) == 1 else f"{len(points)} pruning points"
            raise InputError(
                f"--point {self.point}: the norms of {kernel_sizes(pool)} kernels have {number}",
                remedy="train longer or with more strength, or give --ratio",
            )
        return points[self.point - 1].threshold

    def _kept(
        self, norms: npt.NDArray[np.float64], blocks: Blocks, threshold: float, ratio: float
    ) -> npt.NDArray[np.bool_]:
        """Keep the blocks above the threshold, and the largest block of every row that has none above it."""
        if self.equalise:
            return equalised(norms, self._equal_count(norms, blocks, threshold, ratio))
        kept = norms > threshold
        empty = ~kept.any(axis=1)
        kept[empty, norms[empty].argmax(axis=1)] = True
        return kept

    def _equal_count(self, norms: npt.NDArray[np.float64], blocks: Blocks, threshold: float, ratio: float) -> int:
        """The number of blocks that every row loses: the share of the kernels that is at most the threshold.

        A threshold of zero means that more kernels are zero than the ratio asks for. More than the ratio is then
        removed only as far as every row has zeros.
        """
        columns = norms.shape[1]
        count = blocks.equal_share(norms <= threshold)
        if threshold == 0:
            count = min(count, max(int((norms == 0).sum(axis=1).min()), exact_floor(ratio * columns)))
        return min(columns - 1, count)

    def _rounded(self, kept: npt.NDArray[np.bool_], norms: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
        """Round the number of blocks of every row to what ``round_to`` allows, and keep the largest.

        Of equal blocks the later is kept, as in `equalised`.
        """
        columns = norms.shape[1]
        counts = [rounded(int(count), self.round_to, self.channel_block, columns) for count in kept.sum(axis=1)]
        ranks = np.argsort(np.argsort(norms, axis=1, kind="stable"), axis=1)
        return ranks >= columns - np.array(counts)[:, None]

    def report(self, layers: Sequence[ConvLayer], weights: Mapping[str, npt.NDArray[Any]], net: Net) -> dict[str, Any]:
        """All pruning points of the norms, under ``points``, with what the whole net would keep at each.

        A record holds:

        - ``point``: its number.
        - ``norms``: by kernel sizes, the threshold; None where the norms of these kernels have fewer points.
        - ``kernels``: kernels that the layers keep, and kernels that they have.
        - ``params`` and ``macs``: what the whole net keeps.

        The last three are None if a threshold is None, because ``--point`` refuses that number.
        """
        points = self.points(layers, weights)
        records = []
        for i in range(max(map(len, points.values()), default=0)):
            norms = {sizes: asdict(found[i]) if i < len(found) else None for sizes, found in points.items()}
            left: dict[str, Any] = {"kernels": None, "params": None, "macs": None}
            if None not in norms.values():
                pruning = prune_layers(self.at(i + 1), layers, weights)
                params, macs = net.retained(pruning.masks)
                left = {"kernels": _kernels(layers, pruning), "params": params, "macs": macs}
            records.append({"point": i + 1, "norms": norms, **left})
        return {"points": records}

    @property
    def regularises(self) -> bool:
        """Always: without the penalty the norms have no margins."""
        return True

    def regulariser(self, model: torch.nn.Module, layers: Sequence[ConvLayer]) -> NormDependentL1:
        """The norm-dependent penalty, with breakpoints from the module's present weights."""
        from trtkp.pruning.methods.pptkp_penalty import NormDependentL1

        return NormDependentL1(model, layers, self)


def _kernels(layers: Sequence[ConvLayer], pruning: Pruning) -> list[int]:
    """The number of kernels that the layers keep, and the number that they have."""
    removed = sum(int((~mask.any(axis=(2, 3))).sum()) for mask in (pruning.masks | pruning.lists).values())
    kernels = sum(layer.filters * layer.channels for layer in layers)
    return [kernels - removed, kernels]


def kernel_norms(weight: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """The L1 norm of each kernel of ``weight`` [F, C, R, S], float64 [F, C].

    Example:
        >>> kernel_norms(np.array([[1.0, -2.0], [0.0, 3.0]]).reshape(1, 2, 1, 2)).tolist()
        [[3.0, 3.0]]
    """
    norms: npt.NDArray[np.float64] = np.abs(weight.astype(np.float64)).sum(axis=(2, 3))
    return norms


def pools(layers: Sequence[ConvLayer]) -> list[list[ConvLayer]]:
    """Split layers into pools in which norms are compared: larger kernels, and 1x1 kernels. Empty pools are left out.

    A 3x3 kernel has nine weights and so a larger norm than a 1x1 kernel of equal weights.
    """
    parts = [[layer for layer in layers if (layer.taps > 1) is large] for large in (True, False)]
    return [part for part in parts if part]


def kernel_sizes(layers: Sequence[ConvLayer]) -> str:
    """The sizes of the layers' kernels, such as ``3x3`` or ``3x3, 5x5``."""
    return ", ".join(f"{rows}x{columns}" for rows, columns in sorted({layer.kernel for layer in layers}))


def pruning_points(norms: npt.NDArray[Any], bins: int = _BINS) -> list[PruningPoint]:
    """The margins of a distribution of norms, in rising order of their thresholds.

    A margin is a local minimum of the histogram that is clearly lower than the peaks on both sides (`_DEPTH`) and lower
    than the scatter of the counts explains (`_DEVIATIONS`). The threshold is the middle of its emptiest bins. Norms
    near zero are left out (`_PILE`), and so is the largest 0.5 %, whose tail would stretch the bins.

    Args:
        norms: [K].
        bins: bins of the histogram.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> norms = np.concatenate([rng.normal(1.0, 0.1, 2000), rng.normal(3.0, 0.3, 2000)])
        >>> [(round(point.threshold, 1), round(point.ratio, 2)) for point in pruning_points(norms)]
        [(1.7, 0.5)]
    """
    norms = np.sort(np.asarray(norms, np.float64).ravel())
    if not len(norms) or norms[-1] <= 0:
        return []
    top = float(np.quantile(norms, 0.995))
    counts, edges = np.histogram(norms, bins, (_PILE * top, top))
    points = []
    for i, count in enumerate(counts):
        height = min(_height(counts[:i][::-1], count, stop_at_equal=True), _height(counts[i + 1 :], count))
        fall = height - count
        if height and fall >= _DEPTH * height and fall > _DEVIATIONS * np.sqrt(height):
            last = i
            while last + 1 < bins and counts[last + 1] == count:
                last += 1
            threshold = float(edges[i] + edges[last + 1]) / 2
            share = float(np.searchsorted(norms, threshold, side="right")) / len(norms)
            points.append(PruningPoint(threshold, share, float(fall / height)))
    return points


def _height(counts: npt.NDArray[Any], floor: int, *, stop_at_equal: bool = False) -> int:
    """The largest count before the first that is lower than ``floor``, or, with ``stop_at_equal``, equals it."""
    lower = counts <= floor if stop_at_equal else counts < floor
    end = int(np.argmax(lower)) if lower.any() else len(counts)
    if stop_at_equal and end < len(counts) and end == 0 and counts[0] == floor:
        return 0  # the dip began further left, and the bin where it began stands for all of it
    return int(counts[:end].max(initial=0))


def _pooled(layers: Sequence[ConvLayer], norms: Mapping[str, npt.NDArray[Any]]) -> npt.NDArray[Any]:
    return np.concatenate([norms[layer.name].ravel() for layer in layers])


def _quantile(norms: npt.NDArray[Any], sizes: npt.NDArray[Any], ratio: float) -> float:
    """The largest norm such that the kernels with at most this norm are at most the share ``ratio`` of all kernels.

    -1, which is below every norm, if there is no such norm. If more than that share of the kernels is zero and the
    ratio is not 0, the result is 0: removing a kernel of zeros changes nothing, so all of them are removed.

    Args:
        norms: norm of each block, [K].
        sizes: kernels of each block, [K].
        ratio: share of the kernels.
    """
    order = np.argsort(norms, kind="stable")
    allowed = exact_floor(ratio * int(sizes.sum()))
    if 0 < allowed < int(sizes[norms == 0].sum()):
        return 0.0
    count = int(np.searchsorted(np.cumsum(sizes[order]), allowed, side="right"))
    # blocks of equal norm stay together or are removed together: a threshold cannot separate them
    while 0 < count < len(order) and norms[order[count - 1]] == norms[order[count]]:
        count -= 1
    return float(norms[order[count - 1]]) if count else -1.0
