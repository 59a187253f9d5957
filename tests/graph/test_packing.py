"""Packing: an exact inverse, the layout that is promised, and padding."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trtkp.graph.packing import ENTRY_RADIX, PackedConv, pack, unpack
from trtkp.index.index_set import Kind, from_mask


def test_unpack_is_the_inverse_on_the_mask(conv_cases: Any) -> None:
    seen = set()

    @settings(max_examples=150)
    @given(conv_cases(), st.sampled_from([1, 2, 5, 8]), st.sampled_from([1, 3, 8]), st.sampled_from("efd"))
    def check(case: Any, row_multiple: int, list_multiple: int, dtype: str) -> None:
        weight = case.weight.astype(dtype)
        index = from_mask(case.mask, case.groups)
        packed = pack(weight, index, row_multiple=row_multiple, list_multiple=list_multiple)
        dense = unpack(packed)
        assert dense.dtype == packed.weight.dtype == weight.dtype
        assert np.array_equal(dense, np.where(case.mask, weight, 0))
        seen.add(packed.base)
        check_layout(packed, row_multiple, list_multiple)
        assert np.count_nonzero(packed.weight) == np.count_nonzero(weight[case.mask])

    check()
    assert seen == {"KernelIndexConv", "StripeConv", "PatternConv"}


def check_layout(packed: PackedConv, row_multiple: int, list_multiple: int) -> None:
    filters, channels, rows, columns = packed.weight_shape
    taps = rows * columns
    for array in (packed.index, packed.row_group, packed.filters):
        assert array.dtype == np.int32
    assert packed.index.shape[1] % list_multiple == 0
    assert packed.index.shape[1] >= 1
    width = {"KernelIndexConv": taps, "StripeConv": channels, "PatternConv": 1}[packed.base] * packed.index.shape[1]
    assert packed.weight.shape == (len(packed.row_group), width)
    assert packed.weight.flags.c_contiguous
    assert (np.diff(packed.row_group) >= 0).all()
    assert (np.bincount(packed.row_group, minlength=len(packed.index)) % row_multiple == 0).all()
    assert sorted(packed.filters[packed.filters < filters]) == list(range(filters))
    assert (packed.filters <= filters).all()
    # zeros at padding, whether of rows or of lists
    tap, channel = packed.columns()
    padding = (tap == taps) | (channel == channels)
    assert (packed.weight[padding[packed.row_group]] == 0).all()
    assert (packed.weight[packed.filters == filters] == 0).all()
    # and entries that address nothing twice
    for g in range(len(packed.index)):
        real = list(zip(tap[g][~padding[g]], channel[g][~padding[g]], strict=True))
        assert len(set(real)) == len(real)


@pytest.mark.parametrize(
    ("mask", "base", "index", "columns"),
    [
        # channels 0 and 2 of 3, two taps: tap-major, channels innermost
        ([[[1, 1], [0, 0], [1, 1]]], "KernelIndexConv", [[0, 2]], [(0, 0), (0, 2), (1, 0), (1, 2)]),
        ([[[0, 1], [0, 1], [0, 1]]], "StripeConv", [[1]], [(1, 0), (1, 1), (1, 2)]),
        ([[[1, 0], [0, 1], [1, 1]]], "PatternConv", [[0, 2, 65537, 65538]], [(0, 0), (0, 2), (1, 1), (1, 2)]),
    ],
)
def test_layout_by_hand(mask: Any, base: str, index: Any, columns: list[tuple[int, int]]) -> None:
    mask = np.array(mask, bool).reshape(1, 3, 1, 2)
    weight = np.arange(1, 7, dtype=np.float32).reshape(mask.shape)
    packed = pack(weight, from_mask(mask))
    assert packed.base == base
    assert packed.index.tolist() == index
    assert packed.weight.tolist() == [[weight[0, channel, 0, tap] for tap, channel in columns]]
    tap, channel = packed.columns()
    assert list(zip(tap[0], channel[0], strict=True)) == columns


def test_padding_by_hand() -> None:
    mask = np.zeros((3, 2, 1, 2), bool)
    mask[0] = mask[2] = True
    mask[1, 1] = True
    weight = np.arange(1, 13, dtype=np.float32).reshape(mask.shape)
    packed = pack(weight, from_mask(mask), row_multiple=4, list_multiple=4)
    assert packed.index.tolist() == [[0, 1, 2, 2], [1, 2, 2, 2]]
    assert packed.row_group.tolist() == [0] * 4 + [1] * 4
    assert packed.filters.tolist() == [0, 2, 3, 3, 1, 3, 3, 3]
    assert packed.weight[0].tolist() == [1, 3, 0, 0, 2, 4, 0, 0]
    assert packed.weight[4].tolist() == [7, 0, 0, 0, 8, 0, 0, 0]


def test_many_channels_do_not_reach_into_the_next_tap() -> None:
    mask = np.zeros((1, 1 << 16, 1, 2), bool)
    mask[0, -1, 0, 1] = mask[0, 0, 0, 0] = True
    index = from_mask(mask)
    assert index.kind is Kind.PATTERN
    weight = np.arange(1 << 17, dtype=np.float32).reshape(mask.shape)
    packed = pack(weight, index, list_multiple=3)
    assert packed.index.tolist() == [[0, ENTRY_RADIX + 65535, 2 * ENTRY_RADIX]]
    assert np.array_equal(unpack(packed), np.where(mask, weight, 0))
