"""The baseline: kernels by their L1 norm."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from trtkp.errors import InputError
from trtkp.index.conv_layer import ConvLayer
from trtkp.pruning.methods.l1 import L1


def test_largest_norms_stay(new_layer: Callable[..., ConvLayer]) -> None:
    layer = new_layer(filters=5, channels=8)
    weight = np.random.default_rng(0).normal(size=layer.weight_shape)
    mask = L1(ratio=0.5, allocation="uniform").masks([layer], {layer.name: weight})[layer.name]
    norms = np.abs(weight).sum(axis=(2, 3))
    for o in range(5):
        assert set(np.flatnonzero(mask[o, :, 0, 0])) == set(np.argsort(norms[o])[4:])


@pytest.mark.parametrize("options", [{"alpha": 0.9}, {"beta": 0.1}])
def test_nothing_but_the_norm(options: dict[str, float]) -> None:
    with pytest.raises(InputError, match="plain L1 has neither"):
        L1(**options)  # type: ignore[arg-type]
