r"""PPT-KP: pruning-point-training kernel pruning (AICAS 2023).

Known from the abstract: kernels go, their L1 norms are driven to zero by an L1 penalty whose intensity depends on the
kernel's own norm; that makes several margins in the distribution of the norms, and so several usable thresholds, the
pruning points. Reconstructed (the full text was not at hand): with norms ``a = ||w_oc||_1``, breakpoints
``tau_1 < ... < tau_B`` and intensities ``gamma_0 > ... > gamma_B >= 0``,

    R(W) = lambda · sum phi(a),      phi'(a) = gamma_b   for   tau_b <= a < tau_{b+1},      tau_0 = 0.

Norms drift towards zero at a speed proportional to gamma(a). At a breakpoint the speed jumps, and what flows past it is
conserved, so the density under it is gamma_b / gamma_{b-1} times that above: a dip under every breakpoint. That smaller
norms are pushed harder is our inference; ``intensities`` may say otherwise. Breakpoints are quantiles of the dense
net's norms, or of those that ``single_epochs`` of the penalty left. 1x1 layers have norms, breakpoints and thresholds
of their own and 0.6 times the strength, as the same group's code has it.

Pruning takes a threshold over the whole net, keeps the largest kernel of every filter, and leaves filters with unequal
numbers; ``equalise`` gives them equal ones as V-SKP does. Without training this is plain L1 kernel pruning.

Not from the paper: with ``filter_group`` and ``channel_block`` (`pruning.granularity`) norms are means over blocks, in
the threshold and in the penalty, which so pushes the kernels of a block alike; ``proximal`` shrinks whole blocks, those
of n kernels sqrt(n) as strongly, as the group lasso does (Yuan and Lin, JRSS B 68, 2006): one strength suits every n.
``nm`` keeps 2:4 inside the lists (`pruning.nm`), which then remove so much less; at a ratio, the kernels of a filter
are ranked by what 2:4 is expected to keep of them. Pruning points are margins of the norms as they are.
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
#: A dip is a margin when it is this much lower than the lower of the heights beside it, and by four standard deviations
#: of a count of that size.
_DEPTH, _DEVIATIONS = 0.2, 4.0
#: Norms below this share of the largest are the pile at zero, not a height beside a dip.
_PILE = 0.02


@dataclass(frozen=True)
class PruningPoint:
    """A threshold in a margin of the norms' distribution.

    Attributes:
        threshold: norm up to which kernels go.
        ratio: share of the norms up to it.
        depth: how much emptier the margin is than the lower of the heights beside it, 0 to 1.
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
        """Every hyper-parameter as it takes effect."""
        effective = asdict(self) | {"quantiles": list(self.quantiles), "intensities": list(self.intensities)}
        if self.ratio is None and self.point is None:
            effective["ratio"] = _RATIO
        return effective

    @property
    def expects_two_four(self) -> bool:
        """Lists are of channels; a pruning point is a threshold of the norms that were trained."""
        return self.nm is not None and self.point is None

    def paper_index_bytes(self, index: IndexSet) -> int:
        """Bytes of ragged lists: a channel of 1 byte (2 from 257 channels on) per kernel, int32 row pointers."""
        kernels = int(np.diff(index.group_ptr) @ np.diff(index.entry_ptr))
        return kernels * (1 if index.shape[1] <= 1 << 8 else 2) + 4 * (index.shape[0] + 1)

    def paper_counting(self, dense_params: int, net: NetCounts) -> Counting:
        """As V-SKP's authors, of the same group, count."""
        return counted_with_batch_norm(dense_params, net)

    def inapplicable(self, layer: ConvLayer) -> str | None:
        """One kernel per filter leaves nothing to choose."""
        return no_kernel_to_drop(layer)

    def out_of_scope(self, layer: ConvLayer) -> str | None:
        """The stem, and 1x1 layers where they are switched off."""
        return stem_or_pointwise(layer, pointwise=self.pointwise)

    def masks(self, layers: Sequence[ConvLayer], weights: Mapping[str, npt.NDArray[Any]]) -> Masks:
        """One mask per layer.

        Raises:
            InputError: the distribution has fewer pruning points than ``point``.
        """
        return self.masks_of_blocks(layers, weights, self.blocks(layers, weights))

    def blocks(self, layers: Sequence[ConvLayer], weights: Mapping[str, npt.NDArray[Any]]) -> dict[str, Blocks]:
        """The blocks of every layer."""
        return {
            layer.name: blocks_of(
                layer, kernel_norms(weights[layer.name]), self.filter_group, self.channel_block, cluster=self.cluster
            )
            for layer in layers
        }

    def masks_of_blocks(
        self, layers: Sequence[ConvLayer], weights: Mapping[str, npt.NDArray[Any]], blocks: Mapping[str, Blocks]
    ) -> Masks:
        """The same with the blocks given, such as those that were trained with."""
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
        """The pruning points of every pool, by `kernel_sizes`; ``point`` counts in each list."""
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
        """Blocks above the threshold, and the largest of every row that has none."""
        if self.equalise:
            return equalised(norms, self._equal_count(norms, blocks, threshold, ratio))
        kept = norms > threshold
        empty = ~kept.any(axis=1)
        kept[empty, norms[empty].argmax(axis=1)] = True
        return kept

    def _equal_count(self, norms: npt.NDArray[np.float64], blocks: Blocks, threshold: float, ratio: float) -> int:
        """Blocks that every row loses: the share of kernels below the threshold.

        Where that is zero, there are more zeros than the ratio, and beyond it goes only what is zero in every row.
        """
        columns = norms.shape[1]
        count = blocks.equal_share(norms <= threshold)
        if threshold == 0:
            count = min(count, max(int((norms == 0).sum(axis=1).min()), exact_floor(ratio * columns)))
        return min(columns - 1, count)

    def _rounded(self, kept: npt.NDArray[np.bool_], norms: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
        """As many blocks of every row as ``round_to`` allows, the largest; of equal ones the later, as `equalised`."""
        columns = norms.shape[1]
        counts = [rounded(int(count), self.round_to, self.channel_block, columns) for count in kept.sum(axis=1)]
        ranks = np.argsort(np.argsort(norms, axis=1, kind="stable"), axis=1)
        return ranks >= columns - np.array(counts)[:, None]

    def report(self, layers: Sequence[ConvLayer], weights: Mapping[str, npt.NDArray[Any]], net: Net) -> dict[str, Any]:
        """``points``: every pruning point of the norms, and what the whole net would keep there.

        A record has the number of the ``point``, and by the layers' kernel sizes in ``norms`` the threshold, None where
        those norms have fewer points. Then ``--point`` refuses the number, and these are None: ``kernels`` that the
        layers keep and those they have, ``params`` and ``macs`` of the whole net.
        """
        points = self.points(layers, weights)
        records = []
        for i in range(max(map(len, points.values()), default=0)):
            norms = {sizes: asdict(found[i]) if i < len(found) else None for sizes, found in points.items()}
            left: dict[str, Any] = {"kernels": None, "params": None, "macs": None}
            if None not in norms.values():
                pruning = prune_layers(self.at(i + 1), layers, weights)
                params, macs = net.left(pruning.masks)
                left = {"kernels": _kernels(layers, pruning), "params": params, "macs": macs}
            records.append({"point": i + 1, "norms": norms, **left})
        return {"points": records}

    @property
    def regularises(self) -> bool:
        """The penalty makes the margins."""
        return True

    def regulariser(self, model: torch.nn.Module, layers: Sequence[ConvLayer]) -> NormDependentL1:
        """The norm-dependent penalty, its breakpoints those of the module's weights."""
        from trtkp.pruning.methods.pptkp_penalty import NormDependentL1

        return NormDependentL1(model, layers, self)


def _kernels(layers: Sequence[ConvLayer], pruning: Pruning) -> list[int]:
    """Kernels that the layers keep, and those they have."""
    removed = sum(int((~mask.any(axis=(2, 3))).sum()) for mask in (pruning.masks | pruning.lists).values())
    kernels = sum(layer.filters * layer.channels for layer in layers)
    return [kernels - removed, kernels]


def kernel_norms(weight: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """L1 norm of every kernel of ``weight`` [F, C, R, S], float64 [F, C]."""
    norms: npt.NDArray[np.float64] = np.abs(weight.astype(np.float64)).sum(axis=(2, 3))
    return norms


def pools(layers: Sequence[ConvLayer]) -> list[list[ConvLayer]]:
    """Layers whose norms are compared: larger kernels, and 1x1 ones; none that is empty."""
    parts = [[layer for layer in layers if (layer.taps > 1) is large] for large in (True, False)]
    return [part for part in parts if part]


def kernel_sizes(layers: Sequence[ConvLayer]) -> str:
    """The sizes of the layers' kernels, such as ``3x3`` or ``3x3, 5x5``."""
    return ", ".join(f"{rows}x{columns}" for rows, columns in sorted({layer.kernel for layer in layers}))


def pruning_points(norms: npt.NDArray[Any], bins: int = _BINS) -> list[PruningPoint]:
    """The margins of a distribution of norms [K], in rising order of their thresholds.

    A margin is a local minimum of the histogram whose prominence (the lower of the two heights that one has to climb
    down from to reach it) stands out of what counts scatter by. Its threshold is the middle of its emptiest bins. The
    pile at zero is no height: what lies between it and the rest is where everything that was pushed away ends.
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
    """Largest count before one falls below ``floor`` (or reaches it)."""
    lower = counts <= floor if stop_at_equal else counts < floor
    end = int(np.argmax(lower)) if lower.any() else len(counts)
    if stop_at_equal and end < len(counts) and end == 0 and counts[0] == floor:
        return 0  # a bin further left stands for this one
    return int(counts[:end].max(initial=0))


def _pooled(layers: Sequence[ConvLayer], norms: Mapping[str, npt.NDArray[Any]]) -> npt.NDArray[Any]:
    return np.concatenate([norms[layer.name].ravel() for layer in layers])


def _quantile(norms: npt.NDArray[Any], sizes: npt.NDArray[Any], ratio: float) -> float:
    """The largest norm whose kernels and all smaller ones are at most a share ``ratio``; below all where none are.

    Zero where more than that share of the kernels is zero, unless nothing is to go: zeros can go for nothing.
    """
    order = np.argsort(norms, kind="stable")
    allowed = exact_floor(ratio * int(sizes.sum()))
    if 0 < allowed < int(sizes[norms == 0].sum()):
        return 0.0
    count = int(np.searchsorted(np.cumsum(sizes[order]), allowed, side="right"))
    # equal norms stay or go together
    while 0 < count < len(order) and norms[order[count - 1]] == norms[order[count]]:
        count -= 1
    return float(norms[order[count - 1]]) if count else -1.0
