"""Folding of Gathers and removal of dead parts, on random nets, against float64."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, given, settings

from tests.conftest import Array, error_of, run_model
from tests.graph.random_nets import in_float64, random_nets
from trtkp.graph.passes.channel_order import fold_channel_gathers
from trtkp.graph.passes.dead import remove_dead

PASSES = {
    "order": [fold_channel_gathers],
    "dead": [remove_dead],
    "both": [remove_dead, fold_channel_gathers],
    "reversed": [fold_channel_gathers, remove_dead],
}


@pytest.mark.parametrize("passes", PASSES)
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(net=random_nets())
def test_passes_are_exact(passes: str, net: tuple[ir.Model, dict[str, Array]]) -> None:
    model, feeds = net
    wanted = in_float64(model, feeds)
    weights = sum(
        np.size(v.const_value.numpy()) for v in model.graph.initializers.values() if v.const_value is not None
    )
    for run in PASSES[passes]:
        run(model)
    if passes == "dead":
        left = sum(
            np.size(v.const_value.numpy()) for v in model.graph.initializers.values() if v.const_value is not None
        )
        assert left <= weights + 600  # copies of shared weights, biases
    for batch in (feeds, {"x": feeds["x"][:1]}):
        results = run_model(model, batch)
        results = results if isinstance(results, list) else [results]
        for result, want in zip(results, wanted, strict=True):
            assert np.isfinite(result).all()
            assert error_of(result, want[: len(batch["x"])]) < 1e-5
