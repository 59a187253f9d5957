"""Random legal orders of the calls that TensorRT makes, under AddressSanitizer and UBSan, over emulated kernels.

TensorRT sets a shape once for each profile and a tactic before every trial, the same ones again and again; it clones
plugins, attaches them to contexts, moves tensors, and times tactics on made-up inputs, lists included.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.emulation.cases import BASES, TOLERANCE
from tests.emulation.programs import run

from .cases import Layer, dynamic_layer, listed_layer

#: Seeds of each layer, a thousand in all. A dynamic pattern is two kernels, which take several times as long.
SEEDS = [120] * 8 + [20] * 2
#: Most pixels of a sample, packed rows and weights: an emulated kernel takes some milliseconds then.
PIXELS, ROWS, WEIGHTS = 9, 32, 6000


def is_small(layer: Layer) -> bool:
    """Whether a layer is cheap to emulate and has several samples."""
    batch, _, p, q = layer.output_shape
    weight = layer.inputs[1]
    return 2 <= batch <= 4 and p * q <= PIXELS and weight.shape[-2] <= ROWS and weight.size <= WEIGHTS


def small_layer(number: int) -> tuple[Layer, Any]:
    """A small layer: three bases and types with lists of any kind, five with 2:4 weights or a dynamic pattern."""
    base, dtype = BASES[number % 3], ("float16", "bfloat16", "float32")[number // 3 % 3]
    for seed in range(number, 1 << 16, 97):
        if number < 6:
            made: tuple[Layer, Any] = listed_layer(seed, base=base, dtype=dtype, blocks=number % 2 == 0)
        elif number < 8:
            made = listed_layer(seed, base=base, dtype="float16", blocks=number % 2 == 0, two_four=True)
        else:
            made = dynamic_layer(seed, dtype="float32" if number == 8 else "float16", whole=number % 2 == 0)
        if is_small(made[0]):
            return made
    raise AssertionError("no small layer")


@pytest.mark.slow
@pytest.mark.parametrize(("number", "seeds"), list(enumerate(SEEDS)))
def test_any_legal_order_of_calls(number: int, seeds: int, plugin_host: Path, oracle: Any, tmp_path: Path) -> None:
    layer, case = small_layer(number)
    tolerance = TOLERANCE.get(layer.dtype, 2e-6)
    replace(layer, lines=(f"tolerance {tolerance}",)).write(tmp_path / "case")
    want = np.ascontiguousarray(case.want(oracle).transpose(0, 2, 3, 1), np.float64)
    (tmp_path / "case.want").write_bytes(want.tobytes())
    done = run(plugin_host, "orders", tmp_path / "case", str(1000 * number), str(1000 * number + seeds))
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    assert f"orders {seeds} calls " in done.stdout
    assert "log 1" not in done.stdout  # no plugin found an error
