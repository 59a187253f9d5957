"""2:4 inside lists: of every four channels in a row of a list, each filter keeps the two largest weights at each tap.

The form that sparse tensor cores compute (``mma.sp``): a coarse list that filters share, and a fine choice of every
filter inside it. The list and the choice share one budget: to remove the share ``ratio`` of a layer, lists remove
`list_ratio` of it and the choice halves what they leave. Which channels a list takes is decided by what 2:4 can be
expected to keep of them (`expected_kept`, `in_expected_order`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from trtkp.index.conv_layer import ConvLayer
from trtkp.index.index_set import QUAD, QUAD_KEPT, IndexSet, from_mask

__all__ = ["FORMS", "expected_kept", "in_expected_order", "list_ratio", "refined", "two_four_mask"]

#: What ``--nm`` takes.
FORMS = ("2:4",)


def list_ratio(ratio: float, nm: str | None = FORMS[0]) -> float:
    """The share that lists remove so that they and 2:4 together remove ``ratio``; 0 where 2:4 alone removes as much.

    Without ``nm`` the lists remove all of it.
    """
    return ratio if nm is None else max(0.0, 2 * ratio - 1)


def expected_kept(weight: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """``w · p(q)``, what 2:4 can be expected to keep of every weight of ``weight`` [F, C, R, S].

    A weight's rank i, from 0, is that of its magnitude among those of its filter and tap, of equal ones the later
    channel above; ``q = (i + 1/2) / C``. It is among the two largest of itself and three others, each of which is
    smaller with probability q, where at least two of the three are:

        p(q) = q³ + 3 q² (1 - q).
    """
    q = (_ranks(np.abs(weight)) + 0.5) / weight.shape[1]
    kept: npt.NDArray[np.float64] = weight * (q**3 + 3 * q**2 * (1 - q))
    return kept


def in_expected_order(weight: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """``weight`` [F, C, R, S] with kernels scaled: in every filter the n-th smallest norm goes to the n-th least kept.

    The L1 norms of a filter stay the same set, so with lists of one filter nothing moves between filters and layers;
    inside of one they follow the norms of `expected_kept`. Those do not compare filters: their probabilities are of
    lists that keep all channels.
    """
    norms = np.abs(weight).sum(axis=(2, 3), dtype=np.float64)
    ranks = _ranks(np.abs(expected_kept(weight)).sum(axis=(2, 3)))
    wanted = np.take_along_axis(np.sort(norms, axis=1), ranks, axis=1)
    scale = np.divide(wanted, norms, out=np.ones_like(norms), where=norms > 0)
    scaled: npt.NDArray[np.float64] = weight * scale[:, :, None, None]
    return scaled


def _ranks(values: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Rank along axis 1 from 0, of equal values the later above."""
    return np.argsort(np.argsort(values, axis=1, kind="stable"), axis=1, kind="stable")


def refined(
    lists: Mapping[str, npt.NDArray[np.bool_]], weights: Mapping[str, npt.NDArray[Any]], layers: Sequence[ConvLayer]
) -> dict[str, npt.NDArray[np.bool_]]:
    """What 2:4 keeps of the lists of several layers, entries in their order."""
    groups = {layer.name: layer.groups for layer in layers}
    return {name: two_four_mask(weights[name], from_mask(mask, groups[name])) for name, mask in lists.items()}


def two_four_mask(weight: npt.NDArray[Any], index: IndexSet) -> npt.NDArray[np.bool_]:
    """What 2:4 keeps of product lists, bool [F, C, R, S]; of equal magnitudes the earlier entry stays.

    Args:
        weight: [F, C, R, S].
        index: its lists; the order of the entries defines the quads.

    Raises:
        InputError: the lists are not products (`IndexSet.products`).
    """
    flat = np.abs(weight.reshape(*weight.shape[:2], -1).astype(np.float64))
    mask = np.zeros(flat.shape, bool)
    for filters, taps, channels in index.products():
        block = np.ix_(filters, channels, taps)
        length = len(channels)
        # short quads are filled up with what is never kept
        padded = np.full((len(filters), len(taps), -(-length // QUAD) * QUAD), -1.0)
        padded[..., :length] = flat[block].transpose(0, 2, 1)
        quads = padded.reshape(*padded.shape[:2], -(-length // QUAD), QUAD)
        kept = np.zeros(quads.shape, bool)
        np.put_along_axis(kept, np.argsort(-quads, axis=-1, kind="stable")[..., :QUAD_KEPT], True, axis=-1)
        mask[block] = kept.reshape(padded.shape)[..., :length].transpose(0, 2, 1)
    return mask.reshape(weight.shape)
