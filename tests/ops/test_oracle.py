"""The oracle itself, once, against PyTorch in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

TORCH = {
    "": lambda x: x,
    "Relu": torch.relu,
    "Relu6": functional.relu6,
    "Silu": functional.silu,
    "HardSwish": functional.hardswish,
    "LeakyRelu": lambda x: functional.leaky_relu(x, 0.3),
}


@pytest.mark.parametrize("activation", TORCH)
@pytest.mark.parametrize(
    ("groups", "kernel", "strides", "pads", "dilations"),
    [
        (1, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1)),
        (2, (3, 2), (2, 1), (0, 2, 1, 1), (1, 3)),
        (4, (1, 5), (1, 3), (2, 0, 0, 3), (2, 1)),
        (1, (1, 1), (2, 2), (0, 0, 0, 0), (1, 1)),
    ],
)
def test_oracle_against_torch(
    oracle: Any, activation: str, groups: int, kernel: Any, strides: Any, pads: Any, dilations: Any
) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 4, 9, 11)) * 4
    weight = rng.normal(size=(8, 4 // groups, *kernel))
    mask = rng.random(weight.shape) < 0.5
    bias = rng.normal(size=8)
    top, left, bottom, right = pads
    product = functional.conv2d(
        functional.pad(torch.tensor(x), (left, right, top, bottom)),
        torch.tensor(weight * mask),
        torch.tensor(bias),
        strides,
        0,
        dilations,
        groups,
    )
    residual = rng.normal(size=product.shape)
    want = TORCH[activation](product + torch.tensor(residual)).numpy()
    got = oracle(
        x, weight, mask, bias=bias, residual=residual, activation=activation, alpha=0.3,
        strides=strides, pads=pads, dilations=dilations, groups=groups,
    )  # fmt: skip
    np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-12)
