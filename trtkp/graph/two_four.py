"""2:4 weights as sparse tensor cores take them: half of the columns, and metadata that says which half.

Of every four columns of a row (a quad) at most two are not 0. `compress` stores two columns of each quad, and records
their places in the layout that ``mma.sp::ordered_metadata.m16n8k32`` reads (PTX ISA, "Matrix fragments for sparse
mma.m16n8k32 with .f16 and .bf16"):

- A place takes 2 bits and a quad 4, with the lower place first.
- A 32-bit word holds the quads of 16 columns of two rows: row g of a block of 16 rows in its lower half, and row g + 8
  in its upper half.
- Word 4·g + t of a step of 64 columns describes columns 16·t to 16·t + 15. That is the lane from which the instruction
  reads it: with sparsity selector 0, lanes t = 0 and 1 of every four give columns 0 to 31; with selector 1, lanes
  t = 2 and 3 give columns 32 to 63.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from trtkp.errors import InputError
from trtkp.index.index_set import QUAD, QUAD_KEPT

__all__ = ["BLOCK_ROWS", "LANES", "STEP_COLUMNS", "STORED_COLUMNS", "compress", "expand"]

#: Rows of a block of metadata, columns of a step, and the weights that a row stores for those columns.
BLOCK_ROWS, STEP_COLUMNS = 16, 64
STORED_COLUMNS = STEP_COLUMNS * QUAD_KEPT // QUAD
#: Words of metadata for one block and step: one for each lane of a warp.
LANES = 32


def compress(rows: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], npt.NDArray[np.int32]]:
    """Compress 2:4 weights.

    Args:
        rows: [rows, K], with at most two values that are not 0 in every four columns.

    Returns:
        Weights [rows, 32·S] and metadata int32 [ceil(rows / 16), S, 32], with S = ceil(K / 64). Padding is 0 in the
        weights, and the places 0 and 1 in the metadata, so that every word is valid.

    Raises:
        InputError: a quad has more than two values that are not 0.

    Example:
        >>> weight, metadata = compress(np.array([[0, 5, 0, 7]], np.float16))
        >>> weight[0, :2].tolist(), int(metadata[0, 0, 0]) & 0b1111  # places 1 (lower bits) and 3
        ([5.0, 7.0], 13)
    """
    count, columns = rows.shape
    steps, blocks = -(-columns // STEP_COLUMNS), -(-count // BLOCK_ROWS)
    padded = np.zeros((blocks * BLOCK_ROWS, steps * STEP_COLUMNS // QUAD, QUAD), rows.dtype)
    padded.reshape(len(padded), -1)[:count, :columns] = rows
    used = padded != 0
    if used.sum(axis=2).max() > QUAD_KEPT:
        raise InputError(f"weights that are not 2:4: a quad keeps {used.sum(axis=2).max()} of {QUAD}")
    # The places that are used come first, then unused ones: a quad with fewer than two weights gets zeros from those.
    places = np.sort(np.argsort(~used, axis=2, kind="stable")[..., :QUAD_KEPT], axis=2)
    weight = np.take_along_axis(padded, places, axis=2).reshape(len(padded), steps * STORED_COLUMNS)[:count]
    # [block, half, g, step, t, quad of 16 columns]
    codes = (places[..., 0] | places[..., 1] << 2).reshape(blocks, 2, 8, steps, 4, 4).astype(np.uint32)
    halves = (codes << np.arange(0, 16, 4, dtype=np.uint32)).sum(axis=5, dtype=np.uint32)
    words = halves[:, 0] | halves[:, 1] << np.uint32(16)
    metadata = words.transpose(0, 2, 1, 3).reshape(blocks, steps, LANES)
    return np.ascontiguousarray(weight), np.ascontiguousarray(metadata).view(np.int32)


def expand(weight: npt.NDArray[Any], metadata: npt.NDArray[np.int32], columns: int) -> npt.NDArray[Any]:
    """The rows [rows, columns] that `compress` was given: its inverse."""
    blocks, steps, _ = metadata.shape
    words = metadata.view(np.uint32).reshape(blocks, steps, 8, 4, 1)
    places = words >> np.arange(0, 32, 2, dtype=np.uint32) & np.uint32(3)
    places = places.reshape(blocks, steps, 8, 4, 2, 8).transpose(0, 4, 2, 1, 3, 5)
    places = places.reshape(blocks * BLOCK_ROWS, steps * STORED_COLUMNS)[: len(weight)].astype(np.int64)
    rows = np.zeros((len(weight), steps * STEP_COLUMNS), weight.dtype)
    np.put_along_axis(rows, places + np.arange(steps * STORED_COLUMNS) // QUAD_KEPT * QUAD, weight, axis=1)
    return np.ascontiguousarray(rows[:, :columns])
