"""2:4 sparsity inside lists: each filter keeps, at each tap, the two largest of every four listed weights.

No paper behind the methods has this; it is ours, made for sparse tensor cores (``mma.sp``), which compute this pattern.
Filters share a coarse list of channels, and each filter makes its own choice of weights inside the list.

``ratio`` is what both remove together. To remove the share ``ratio`` of a layer, the lists remove `list_ratio` of it,
and 2:4 halves the rest. Channels are ranked for the lists by what 2:4 is expected to keep of them (`expected_kept`,
`in_expected_order`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from trtkp.index.conv_layer import ConvLayer
from trtkp.index.index_set import QUAD, QUAD_KEPT, IndexSet, from_mask

__all__ = ["NM_PATTERNS", "expected_kept", "in_expected_order", "list_ratio", "refined", "two_four_mask"]

#: What ``--nm`` takes.
NM_PATTERNS = ("2:4",)


def list_ratio(ratio: float, nm: str | None = NM_PATTERNS[0]) -> float:
    """The share of a layer that lists remove, so that lists and 2:4 together remove ``ratio``: ``2 · ratio - 1``.

    Up to a ratio of 0.5 the lists remove nothing, because 2:4 alone removes half. Without ``nm`` the lists remove
    ``ratio`` themselves.

    Example:
        >>> list_ratio(0.75), list_ratio(0.5), list_ratio(0.75, nm=None)
        (0.5, 0.0, 0.75)
    """
    return ratio if nm is None else max(0.0, 2 * ratio - 1)


def expected_kept(weight: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """``w · p(q)``: each weight times the probability that 2:4 keeps it, float64 [F, C, R, S].

    Let i be the rank of the weight's magnitude among those of its filter and tap, counted from 0 (ties: the later
    channel ranks higher), and ``q = (i + 1/2) / C``. In a quad with three random others, each of them is smaller with
    probability q. The weight is among the two largest of the four if at least two of the others are smaller:

        p(q) = q³ + 3 q² (1 - q).

    Args:
        weight: [F, C, R, S].

    Example:
        >>> weight = np.array([4.0, 1.0, 3.0, 2.0]).reshape(1, 4, 1, 1)
        >>> expected_kept(weight).ravel().round(3).tolist()
        [3.828, 0.043, 2.051, 0.633]
    """
    q = (_ranks(np.abs(weight)) + 0.5) / weight.shape[1]
    kept: npt.NDArray[np.float64] = weight * (q**3 + 3 * q**2 * (1 - q))
    return kept


def in_expected_order(weight: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """``weight`` [F, C, R, S] with its kernels scaled so that their L1 norms rank as those of `expected_kept`.

    Within a filter, the kernel with the n-th smallest expected norm gets the filter's n-th smallest L1 norm. The set of
    norms of a filter does not change, so with lists of one filter no budget moves between filters or layers. The norms
    of `expected_kept` themselves would move it, and wrongly: their probabilities assume lists that keep all channels.
    """
    norms = np.abs(weight).sum(axis=(2, 3), dtype=np.float64)
    ranks = _ranks(np.abs(expected_kept(weight)).sum(axis=(2, 3)))
    wanted = np.take_along_axis(np.sort(norms, axis=1), ranks, axis=1)
    scale = np.divide(wanted, norms, out=np.ones_like(norms), where=norms > 0)
    scaled: npt.NDArray[np.float64] = weight * scale[:, :, None, None]
    return scaled


def _ranks(values: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Rank of each value along axis 1, from 0; of equal values the later ranks higher."""
    return np.argsort(np.argsort(values, axis=1, kind="stable"), axis=1, kind="stable")


def refined(
    lists: Mapping[str, npt.NDArray[np.bool_]], weights: Mapping[str, npt.NDArray[Any]], layers: Sequence[ConvLayer]
) -> dict[str, npt.NDArray[np.bool_]]:
    """Masks after 2:4 was applied inside the lists of several layers.

    Args:
        lists: parameter name to the mask of its lists, bool [F, C, R, S].
        weights: parameter name to weight, [F, C, R, S].
        layers: the layers of these parameters.

    Raises:
        InputError: see `two_four_mask`.
    """
    groups = {layer.name: layer.groups for layer in layers}
    return {name: two_four_mask(weights[name], from_mask(mask, groups[name])) for name, mask in lists.items()}


def two_four_mask(weight: npt.NDArray[Any], index: IndexSet) -> npt.NDArray[np.bool_]:
    """The weights that 2:4 keeps inside lists, bool [F, C, R, S]; of equal magnitudes the earlier entry stays.

    Args:
        weight: [F, C, R, S].
        index: the lists. A quad is four consecutive entries of a list.

    Raises:
        InputError: the lists do not have the same channels at every tap (`IndexSet.products`).

    Example:
        >>> weight = np.array([4.0, -1.0, 3.0, 2.0]).reshape(1, 4, 1, 1)
        >>> two_four_mask(weight, from_mask(np.ones((1, 4, 1, 1), bool))).ravel().tolist()
        [True, False, True, False]
    """
    flat = np.abs(weight.reshape(*weight.shape[:2], -1).astype(np.float64))
    mask = np.zeros(flat.shape, bool)
    for filters, taps, channels in index.products():
        block = np.ix_(filters, channels, taps)
        length = len(channels)
        # the last quad may be short: no magnitude is below zero, so -1 is never among the two largest of a full quad
        padded = np.full((len(filters), len(taps), -(-length // QUAD) * QUAD), -1.0)
        padded[..., :length] = flat[block].transpose(0, 2, 1)
        quads = padded.reshape(*padded.shape[:2], -(-length // QUAD), QUAD)
        kept = np.zeros(quads.shape, bool)
        np.put_along_axis(kept, np.argsort(-quads, axis=-1, kind="stable")[..., :QUAD_KEPT], True, axis=-1)
        mask[block] = kept.reshape(padded.shape)[..., :length].transpose(0, 2, 1)
    return mask.reshape(weight.shape)
