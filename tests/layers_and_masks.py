"""Layers and hypothesis strategies that the tests of index sets and of pruning share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from trtkp.index.conv_layer import ConvLayer

PLAIN = ConvLayer(
    name="conv.weight",
    node="conv",
    filters=4,
    channels=3,
    kernel=(3, 3),
    strides=(1, 1),
    pads=(1, 1, 1, 1),
    dilations=(1, 1),
    groups=1,
    input_size=(8, 8),
    output_size=(8, 8),
    bias=False,
    stem=False,
)


@pytest.fixture(scope="session")
def new_layer() -> Callable[..., ConvLayer]:
    """A 3x3 layer of 4 filters and 3 channels, with the given fields changed."""
    return lambda **changes: replace(PLAIN, **changes)


@st.composite
def _masks(draw: Any) -> tuple[np.ndarray[Any, Any], int]:
    groups = draw(st.integers(1, 3))
    filters = groups * draw(st.integers(1, 4))
    channels = draw(st.integers(1, 5))
    rows = draw(st.integers(1, 8))
    columns = draw(st.integers(1, 64 // rows if draw(st.booleans()) else min(4, 64 // rows)))
    shape = (filters, channels, rows, columns)
    match draw(st.sampled_from(["any", "none", "all", "kernel", "stripe", "few"])):
        case "none":
            return np.zeros(shape, bool), groups
        case "all":
            return np.ones(shape, bool), groups
        case "kernel":
            kernels = draw(hnp.arrays(bool, shape[:2]))
            return np.broadcast_to(kernels[:, :, None, None], shape).copy(), groups
        case "stripe":
            stripes = draw(hnp.arrays(bool, (filters, 1, rows, columns)))
            return np.broadcast_to(stripes, shape).copy(), groups
        case "few":  # filters share few lists
            pool = draw(hnp.arrays(bool, (2, *shape[1:])))
            return pool[draw(hnp.arrays(np.int64, filters, elements=st.integers(0, 1)))], groups
    seed = draw(st.integers(0, 2**32 - 1))
    return np.random.default_rng(seed).random(shape) < draw(st.sampled_from([0.05, 0.5, 0.95])), groups


@pytest.fixture(scope="session")
def masks_and_groups() -> st.SearchStrategy[tuple[np.ndarray[Any, Any], int]]:
    """Masks of every kind with their number of ONNX groups."""
    return _masks()
