r"""KEP: kernel elements pruning (Neural Networks, 2024, doi 10.1016/j.neunet.2024.106708).

Known from the abstract: the elements of each kernel plane are ranked, unimportant ones are removed under a growing
penalty that a prior mask selects, and few indices are needed. Reconstructed here (the full text was not at hand): the
constraint set is

    S_n = { W : ||w_oc||_0 <= n for every kernel plane },    dist(W, S_n) = min_{Z in S_n} ||W - Z||_F,

whose minimiser keeps the n elements of largest magnitude in every plane: planes are disjoint, so the problem separates,
and swapping a kept element with a larger dropped one lowers the distance. With positions shared by several planes, the
same argument keeps the n positions of largest energy, the sum of squares over the planes that share them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import comb
from typing import Any

import numpy as np
import numpy.typing as npt

from trtkp.errors import InputError
from trtkp.prune.conv_layer import ConvLayer
from trtkp.prune.index_set import MAX_TAPS, IndexSet
from trtkp.prune.method import Masks

__all__ = ["DEFAULT_N", "KEP", "SHARES", "paper_index_bytes", "top_n_mask"]

#: Which planes of W[F, C, R, S] share their positions, as axes that are summed over.
SHARES: dict[str, tuple[int, ...]] = {"none": (), "per-channel": (0,), "per-filter": (1,), "per-layer": (0, 1)}

#: Elements kept per plane when neither ``n`` nor ``ratio`` is given: 4 of 9.
DEFAULT_N = 4


@dataclass(frozen=True)
class KEP:
    """Keep the n most energetic elements of every kernel plane.

    Scope: convolutions with more than one tap; by default neither the stem nor depthwise layers, and with neither ``n``
    nor ``ratio`` given no kernels of up to 4 elements.

    Args:
        n: elements kept per plane, the same in all layers.
        ratio: instead of ``n``, the share of elements to remove.
        allocation: what ``ratio`` means. ``global``: one magnitude threshold for the net, and each layer keeps the mean
            count above it, rounded to an integer of at least 1. ``uniform``: the same share in every layer.
        share: ``none`` (positions per plane), ``per-channel`` (the filters of a channel agree), ``per-filter`` (the
            channels of a filter agree: stripes) or ``per-layer``.
    """

    n: int | None = None
    ratio: float | None = None
    allocation: str = "global"
    share: str = "none"

    name = "kep"

    def __post_init__(self) -> None:
        if self.share not in SHARES:
            raise InputError(f"--share {self.share}: not known", remedy=f"use one of {', '.join(SHARES)}")
        if self.allocation not in ("global", "uniform"):
            raise InputError(f"--allocation {self.allocation}: not known", remedy="use global or uniform")
        if self.n is not None and self.ratio is not None:
            raise InputError("--n and --ratio exclude each other", remedy="give one of them")
        if self.n is not None and self.n < 1:
            raise InputError(f"--n {self.n}: at least one element of a plane is kept", remedy="give --n 1 or more")
        if self.ratio is not None and not 0 <= self.ratio < 1:
            raise InputError(f"--ratio {self.ratio}: not a share", remedy="give 0 <= ratio < 1")

    def settings(self) -> dict[str, Any]:
        """Every hyper-parameter as it takes effect."""
        effective = asdict(self)
        if self.ratio is None:
            effective.update(n=self.n or DEFAULT_N, allocation="uniform")
        return effective

    def inapplicable(self, layer: ConvLayer) -> str | None:
        """A plane of one element has nothing to drop."""
        if layer.taps == 1:
            return "1x1 kernel: a plane of one element has nothing to drop"
        if layer.taps > MAX_TAPS:
            return f"{layer.kernel[0]}x{layer.kernel[1]} kernel: index sets hold at most {MAX_TAPS} taps"
        return None

    def out_of_scope(self, layer: ConvLayer) -> str | None:
        """The stem, depthwise layers (few MACs, and much in every element), kernels too small for the default n."""
        if layer.stem:
            return "stem"
        if layer.depthwise:
            return "depthwise"
        if self.n is None and self.ratio is None and layer.taps <= DEFAULT_N:
            return f"{layer.kernel[0]}x{layer.kernel[1]} kernel: it has no more than {DEFAULT_N} elements"
        return None

    def allocate(self, layers: Sequence[ConvLayer], weights: Mapping[str, npt.NDArray[Any]]) -> dict[str, int]:
        """n of every layer.

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
        if self.allocation == "uniform":
            return {layer.name: _at_least_one((1 - self.ratio) * layer.taps, layer.taps) for layer in layers}
        magnitudes = {layer.name: np.abs(weights[layer.name]).ravel() for layer in layers}
        total = sum(m.size for m in magnitudes.values())
        cut = int(self.ratio * total)
        threshold = np.partition(np.concatenate(list(magnitudes.values())), cut)[cut]
        return {
            layer.name: _at_least_one(
                np.count_nonzero(magnitudes[layer.name] >= threshold) / (layer.filters * layer.channels), layer.taps
            )
            for layer in layers
        }

    def masks(self, layers: Sequence[ConvLayer], weights: Mapping[str, npt.NDArray[Any]]) -> Masks:
        """One mask per layer: n positions of every plane, shared as ``share`` says."""
        n = self.allocate(layers, weights)
        return {
            layer.name: top_n_mask(weights[layer.name], n[layer.name], SHARES[self.share], layer.groups)
            for layer in layers
        }

    def paper_index_bytes(self, index: IndexSet) -> int:
        """Index bytes of a layer in KEP's own storage; see `paper_index_bytes`."""
        return paper_index_bytes(index, self.share)


def top_n_mask(
    weight: npt.NDArray[Any], n: int, shared: tuple[int, ...] = (), groups: int = 1
) -> npt.NDArray[np.bool_]:
    """The n positions of largest energy in every plane of ``weight`` [F, C, R, S].

    ``shared`` lists the axes (0 filters, 1 channels) along which planes agree; filters of different ONNX groups see
    different channels, so those never share along axis 1 alone but do share a layer's positions. Of equal scores the
    lower tap is pruned first.
    """
    filters, channels, rows, columns = weight.shape
    energy = np.square(weight.reshape(groups, filters // groups, channels, rows * columns), dtype=np.float64)
    # filters of one ONNX group share a channel; a layer's positions are shared by all groups
    axes = tuple(axis + 1 for axis in shared) if len(shared) < 2 else (0, 1, 2)
    score = energy.sum(axis=axes, keepdims=True) if shared else energy
    order = np.argsort(score, axis=-1, kind="stable")
    mask = np.zeros(score.shape, bool)
    np.put_along_axis(mask, order[..., rows * columns - n :], True, axis=-1)
    return np.broadcast_to(mask, energy.shape).reshape(weight.shape).copy()


def paper_index_bytes(index: IndexSet, share: str) -> int:
    """Index bytes as KEP stores them: per list either a pattern id (a byte, or two where C(RS, n) > 256) or n nibbles.

    The smaller of the two is taken; kernels of more than 16 taps need a byte per position.
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
