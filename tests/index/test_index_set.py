"""Index sets: exact conversion from masks and back, kinds, partitions, and every rule of the format."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trtkp.errors import InputError
from trtkp.index.index_set import IndexSet, Kind, from_mask


def random_mask(shape: tuple[int, ...], density: float = 0.5, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).random(shape) < density


def test_mask_to_index_set_to_mask_is_exact(masks_and_groups: st.SearchStrategy[Any]) -> None:
    @given(masks_and_groups)
    def check(case: tuple[np.ndarray[Any, Any], int]) -> None:
        mask, groups = case
        index = from_mask(mask, groups)
        index.validate("layer")
        assert np.array_equal(index.mask(), mask)
        assert index.retained == mask.sum()
        assert index.density == mask.sum() / mask.size
        assert (index.shape, index.groups) == (mask.shape, groups)
        # without a partition, a group is all the filters of an ONNX group that have one mask, by first filter
        per_group = len(mask) // groups
        lists = {(f // per_group, mask[f].tobytes()): f for f in reversed(range(len(mask)))}
        assert index.filter_groups == len(lists)
        assert list(index.filters[index.group_ptr[:-1]]) == sorted(lists.values())

    check()


def test_kind_is_what_the_lists_are(masks_and_groups: st.SearchStrategy[Any]) -> None:
    @given(masks_and_groups)
    def check(case: tuple[np.ndarray[Any, Any], int]) -> None:
        mask, groups = case
        planes = mask.reshape(*mask.shape[:2], -1)
        whole = np.all(planes.all(axis=2) | ~planes.any(axis=2))
        stripes = np.all(planes == planes[:, :1])
        assert from_mask(mask, groups).kind is (Kind.KERNEL if whole else Kind.STRIPE if stripes else Kind.PATTERN)

    check()


@pytest.mark.parametrize("shape", [(3, 2, 8, 8), (3, 2, 1, 64), (3, 2, 64, 1)])
def test_64_taps(shape: tuple[int, int, int, int]) -> None:
    for mask in (np.ones(shape, bool), random_mask(shape), random_mask(shape, 0.02)):
        index = from_mask(mask)
        index.validate("layer")
        assert np.array_equal(index.mask(), mask)
    last = np.zeros(shape, bool)
    last[:, :, -1, -1] = True
    assert set(from_mask(last).taps.tolist()) == {1 << 63}


def test_tap_bit_and_dtypes() -> None:
    mask = np.zeros((2, 3, 3, 4), bool)
    mask[1, 2, 1, 3] = mask[1, 2, 0, 0] = mask[1, 0, 2, 1] = True
    index = from_mask(mask)
    assert index.filters.tolist() == [0, 1]
    assert index.group_ptr.tolist() == [0, 1, 2]
    assert index.entry_ptr.tolist() == [0, 0, 2]
    assert index.channel.tolist() == [0, 2]
    assert index.taps.tolist() == [1 << (2 * 4 + 1), (1 << (1 * 4 + 3)) | 1]
    dtypes = [getattr(index, name).dtype for name in ("filters", "group_ptr", "entry_ptr", "channel", "taps")]
    assert dtypes == [np.int32, np.int32, np.int32, np.uint16, np.uint64]
    assert index.nbytes == 4 * 2 + 4 * 3 + 4 * 3 + 2 * 2 + 8 * 2


def test_many_channels() -> None:
    mask = np.zeros((1, 1 << 16, 1, 1), bool)
    mask[0, -1] = True
    index = from_mask(mask)
    index.validate("layer")
    assert index.channel.tolist() == [65535]
    assert np.array_equal(index.mask(), mask)


def test_equal_lists_in_different_onnx_groups_stay_apart() -> None:
    index = from_mask(np.ones((4, 2, 3, 3), bool), groups=2)
    assert index.group_ptr.tolist() == [0, 2, 4]
    assert index.kind is Kind.KERNEL


def test_filters_of_one_list_are_gathered_in_order() -> None:
    mask = np.zeros((4, 1, 1, 2), bool)
    mask[[0, 2], 0, 0, 1] = True
    index = from_mask(mask)
    assert index.filters.tolist() == [0, 2, 1, 3]
    assert index.group_ptr.tolist() == [0, 2, 4]
    assert index.entry_ptr.tolist() == [0, 1, 1]


@given(data=st.data())
def test_partition(data: st.DataObject) -> None:
    pool = random_mask((2, 3, 3, 3), seed=data.draw(st.integers(0, 9)))
    mask = pool[[0, 1, 0, 1, 0, 0]]
    order = data.draw(st.permutations([0, 2, 4, 5]))
    cut = data.draw(st.integers(1, 3))
    partition = [order[:cut], [3, 1], order[cut:]]
    index = from_mask(mask, partition=partition)
    index.validate("layer")
    assert index.filters.tolist() == [*order[:cut], 3, 1, *order[cut:]]
    assert index.group_ptr.tolist() == [0, cut, cut + 2, 6]
    assert np.array_equal(index.mask(), mask)
    assert index.retained == mask.sum()


@pytest.mark.parametrize(
    ("partition", "problem"),
    [
        ([[0, 1], [2]], "0..3 once"),
        ([[0, 1], [2, 3, 3]], "0..3 once"),
        ([[0, 1], [2, 4]], "0..3 once"),
        ([[0, 1], [2, -1]], "0..3 once"),
        ([[0, 1], [], [2, 3]], "0..3 once"),
        ([], "0..3 once"),
        ([[0], [1, 2], [3]], "crosses an ONNX group"),
        ([[0, 1], [2, 3]], "different masks"),
    ],
)
def test_partition_that_does_not_fit(partition: list[list[int]], problem: str) -> None:
    mask = np.ones((4, 2, 3, 3), bool)
    mask[3, 0, 0, 0] = False
    with pytest.raises(InputError, match=problem):
        from_mask(mask, groups=2, partition=partition)


@pytest.mark.parametrize(
    ("shape", "groups", "problem"),
    [
        ((1, 1, 5, 13), 1, "65 taps, an index set holds at most 64"),
        ((1, (1 << 16) + 1, 1, 1), 1, "65537 channels"),
        ((4, 1, 1, 1), 3, "4 filters in 3 ONNX groups"),
        ((4, 1, 1, 1), 0, "4 filters in 0 ONNX groups"),
    ],
)
def test_mask_that_no_index_set_holds(shape: tuple[int, ...], groups: int, problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        from_mask(np.ones(shape, bool), groups)


GOOD = from_mask(np.array([[1, 0, 1], [0, 1, 1], [0, 1, 1], [1, 1, 1]], bool).reshape(4, 3, 1, 1), groups=2)
I32, U16, U64 = np.int32, np.uint16, np.uint64

BROKEN = {
    "filters is int64": {"filters": GOOD.filters.astype(np.int64)},
    "group_ptr is uint32": {"group_ptr": GOOD.group_ptr.astype(np.uint32)},
    "entry_ptr is float32": {"entry_ptr": GOOD.entry_ptr.astype(np.float32)},
    "channel is int32": {"channel": GOOD.channel.astype(np.int32)},
    "taps is int64": {"taps": GOOD.taps.astype(np.int64)},
    r"filters is int32\[2-d\]": {"filters": GOOD.filters.reshape(2, 2)},
    r"taps is uint64\[0-d\]": {"taps": np.array(1, U64)},
    r"weight shape \(4, 0, 1, 1\)": {"shape": (4, 0, 1, 1)},
    r"weight shape \(4, 3, 13, 5\)": {"shape": (4, 3, 13, 5)},
    r"weight shape \(4, 65537, 1, 1\)": {"shape": (4, 65537, 1, 1)},
    "4 filters in 3 ONNX groups": {"groups": 3},
    "4 filters in 0 ONNX groups": {"groups": 0},
    "4 filters in -1 ONNX groups": {"groups": -1},
    "group_ptr has 1 values": {"group_ptr": np.zeros(1, I32), "entry_ptr": np.zeros(1, I32)},
    "group_ptr has 5 values, entry_ptr 4": {"entry_ptr": GOOD.entry_ptr[:-1]},
    "group_ptr does not run from 0 to 4": {"group_ptr": np.array([1, 1, 2, 3, 4], I32)},
    "group_ptr does not run .* at least 1": {"group_ptr": np.array([0, 1, 1, 3, 4], I32)},
    "group_ptr does not run from 0 to 4 .*": {"group_ptr": np.array([0, 1, 2, 3, 5], I32)},
    "group_ptr does .* steps of at least 1": {"group_ptr": np.array([0, 3, 2, 3, 4], I32)},
    "entry_ptr does not run from 0 to 9 in steps of at least 0": {"entry_ptr": np.array([0, 4, 2, 6, 9], I32)},
    "entry_ptr does not run from 0 to 9 .*": {"entry_ptr": np.array([0, 2, 4, 6, 8], I32)},
    "9 channels, 8 tap bitmasks": {"taps": GOOD.taps[:-1]},
    "filters is not a permutation of 0..3": {"filters": np.array([0, 1, 2, 2], I32)},
    "filters is not a permutation .*": {"filters": np.array([0, 1, 2, 4], I32)},
    "filters is not a permutation of .*": {"filters": np.array([0, 1, 2, -1], I32)},
    "filters is not a .*": {"shape": (6, 3, 1, 1)},
    "a filter group crosses an ONNX group": {
        "group_ptr": np.array([0, 1, 3, 4], I32), "entry_ptr": np.array([0, 2, 4, 9], I32),
        "channel": np.array([0, 2, 1, 2, 0, 1, 2, 0, 1], U16),
    },
    "channel 3, the weight has 3": {"channel": np.array([0, 3, 1, 2, 1, 2, 0, 1, 2], U16)},
    "not ascending and unique": {"channel": np.array([2, 0, 1, 2, 1, 2, 0, 1, 2], U16)},
    "not ascending and .*": {"channel": np.array([0, 2, 1, 2, 1, 2, 0, 2, 2], U16)},
    "an entry without taps": {"taps": np.array([1, 1, 1, 0, 1, 1, 1, 1, 1], U64)},
    "a tap beyond the 1x1 kernel": {"taps": np.array([1, 1, 1, 1, 1, 1, 1, 1, 2], U64)},
}  # fmt: skip


@pytest.mark.parametrize("problem", BROKEN)
def test_each_broken_rule_names_the_layer(problem: str) -> None:
    GOOD.validate("fine")
    broken: IndexSet = replace(GOOD, **BROKEN[problem])
    with pytest.raises(InputError, match=problem) as error:
        broken.validate("stage.conv.weight")
    assert error.value.layer == "stage.conv.weight"
    assert str(error.value).startswith("layer stage.conv.weight: ")


def test_lists_may_start_lower_than_the_one_before() -> None:
    mask = np.array([[0, 1], [1, 0]], bool).reshape(2, 2, 1, 1)
    index = from_mask(mask)
    index.validate("layer")
    assert index.channel.tolist() == [1, 0]


def test_arrays_of_hostile_size_are_judged_without_a_dense_array() -> None:
    filters = 200_000  # [groups, channels] would take 100 GB
    index = IndexSet(
        shape=(filters, 1 << 16, 8, 8),
        groups=1,
        filters=np.arange(filters, dtype=I32),
        group_ptr=np.arange(filters + 1, dtype=I32),
        entry_ptr=np.r_[np.zeros(filters, I32), np.array([1], I32)].astype(I32),
        channel=np.array([7], U16),
        taps=np.array([5], U64),
    )
    index.validate("layer")
    assert index.kind is Kind.PATTERN
    assert index.retained == 2
