"""Pins: the predicted tactic on every node that a plugin computes, for the GPU that it was predicted for."""

from __future__ import annotations

import re

import numpy as np
import pytest

from tests.emulation.programs import build_library
from tests.plan.test_planner import Net
from tests.plan.test_target import grouped, net
from trtkp.graph.passes.pack import packed_nodes, read_packed
from trtkp.kernels.capi import Library, load_library
from trtkp.kernels.prediction import known_gpu
from trtkp.plan.lowerings import PLUGIN
from trtkp.plan.pins import ATTRIBUTE, predicted_pins, write_pins
from trtkp.plan.race import single_layer, structure
from trtkp.plan.target import EngineTarget
from trtkp.verification.bundle import compare_graphs


@pytest.fixture(scope="module")
def library() -> Library:
    return load_library(build_library())


@pytest.mark.parametrize(("gpu", "capability"), [("A100", 80), ("L4", 89)])
def test_the_pin_is_the_fastest_prediction(library: Library, gpu: str, capability: int) -> None:
    made, target = net(grouped(0.25)), EngineTarget(known_gpu(gpu), library)
    (node,) = packed_nodes(made.model)
    pins = predicted_pins(made.model, made.value_shapes, target)
    read, written = (made.value_shapes[str(v.name)] for v in (node.inputs[0], node.outputs[0]) if v is not None)
    best = target.predicted_tactic(node, read_packed(node)[1], read, written)
    assert pins == {str(node.name): f"sm_{capability}={best.tactic}"}
    assert re.fullmatch(r"\w+_\d+x\d+\w*", best.tactic)
    write_pins(made.model, pins)
    assert node.attributes.get_string(ATTRIBUTE) == pins[str(node.name)]


def test_a_tactic_that_plugins_do_not_offer_is_not_pinned(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    made, target = net(grouped(0.25)), EngineTarget(known_gpu("L4"), library)
    free = predicted_pins(made.model, made.value_shapes, target)
    fastest = next(iter(free.values())).partition("=")[2]
    needed = Library.workspace_bytes
    monkeypatch.setattr(
        Library, "workspace_bytes", lambda self, d, name: (64 << 20) + 1 if name == fastest else needed(self, d, name)
    )
    assert next(iter(predicted_pins(made.model, made.value_shapes, target).values())).partition("=")[2] != fastest


def test_a_pinned_node_computes_the_same_where_there_is_no_plugin() -> None:
    """And its race is another one, because its engine may be."""
    made = Net([grouped(0.5, 32, 32, 8)], dtype=np.float32)
    (node,) = packed_nodes(made.model)
    free, dense = (single_layer(node, form, made.value_shapes) for form in (PLUGIN, "dense"))
    write_pins(made.model, {str(node.name): "sm_89=mma_64x64"})
    pinned = single_layer(node, PLUGIN, made.value_shapes)
    check = compare_graphs("layer", pinned, dense, {"x": made.value_shapes["x"]}, "fp32")
    assert check.status == "verified", check.summary
    assert structure(pinned) != structure(free)
