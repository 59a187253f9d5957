"""What a node tells its plugin of its lists is what the C interface finds in them."""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np
import pytest

from tests.emulation.cases import BASES, random_case
from trtkp.graph.packing import PackedConv


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("blocks", [False, True])
def test_of_random_lists(base: str, blocks: bool, library_path: Path) -> None:
    library = ctypes.CDLL(str(library_path))
    found = set()
    for seed in range(40):
        case = random_case(seed, base=base, dtype="float32", blocks=blocks)
        lists = [
            array.ctypes.data_as(ctypes.c_void_p)
            for array in (case.packed.index, case.packed.row_group, case.packed.filters)
        ]
        block = ctypes.c_int32()
        assert library.trtkpConvCheckLists(ctypes.byref(case.desc()), *lists, ctypes.byref(block)) == 0
        assert case.packed.list_block == block.value
        found.add(block.value)
    assert 8 in found if blocks else 1 in found


def packed(base: str, entries: list[int], shape: tuple[int, int, int, int] = (1, 12, 3, 3)) -> PackedConv:
    """One list."""
    index = np.array([entries], np.int32)
    none = np.zeros(1, np.int32)
    return PackedConv(base, shape, 1, np.zeros((1, len(entries)), np.float32), index, none, none)


@pytest.mark.parametrize(
    ("entries", "block"),
    [
        ([*range(8)], 8),
        ([8, 9, 10, 11, 12, 12, 12, 12], 8),  # the last block runs past C
        ([12] * 8, 8),
        ([*range(4, 12)], 1),  # not from a multiple of 8
        ([0, 1, 2, 3, 4, 5, 6, 8], 1),
        ([*range(7), 12], 1),
        ([*range(4)], 1),
    ],
)
def test_of_channels(entries: list[int], block: int) -> None:
    assert packed("KernelIndexConv", entries).list_block == block


def test_of_entries() -> None:
    radix, padding = 1 << 16, 9 << 16
    assert packed("PatternConv", [5 * radix + c for c in range(8)]).list_block == 8
    assert packed("PatternConv", [5 * radix + c for c in range(8, 12)] + [padding] * 4).list_block == 8
    assert packed("PatternConv", [*range(4), *(radix + c for c in range(4, 8))]).list_block == 1
