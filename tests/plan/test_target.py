"""Plans for a GPU: the plugin against standard operators, by the model of the kernels or by what a device says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from tests.emulation.programs import build_library
from tests.plan.test_planner import Net
from trtkp.engine import get_backend
from trtkp.errors import InputError
from trtkp.graph.packing import pack_for_tiles
from trtkp.graph.passes.pack import packed_nodes, read_packed
from trtkp.index.index_set import from_mask
from trtkp.kernels.capi import Library, load_library
from trtkp.kernels.prediction import GPUS, known_gpu
from trtkp.machine.gpu import Gpu, GpuReport
from trtkp.machine.timing import Timing
from trtkp.plan.cache import TimingCache
from trtkp.plan.lowerings import PLUGIN
from trtkp.plan.planner import PlanRequest, make_plan
from trtkp.plan.race import apply_plan, single_layer
from trtkp.plan.target import EngineTarget, _in_turn, machine_of, plugin_nodes
from trtkp.verification.bundle import compare_graphs, dense_graph


@pytest.fixture(scope="module")
def library() -> Library:
    return load_library(build_library())


def grouped(density: float, filters: int = 256, channels: int = 256, group: int = 64, seed: int = 0) -> Any:
    """Whole kernels, lists shared by groups of filters, channels in blocks of 8."""
    rng = np.random.default_rng(seed)
    mask = np.zeros((filters, channels, 3, 3), bool)
    for first in range(0, filters, group):
        blocks = rng.permutation(channels // 8)[: max(1, round(density * channels / 8))]
        for block in blocks:
            mask[first : first + group, 8 * block : 8 * block + 8] = True
    return mask


def single_filters(density: float, filters: int = 256, channels: int = 256) -> Any:
    rng = np.random.default_rng(0)
    return np.broadcast_to(rng.random((filters, channels, 1, 1)) < density, (filters, channels, 3, 3)).copy()


def net(mask: Any, dtype: Any = np.float16) -> Net:
    made = Net([mask], dtype=dtype, size=28, batch=32)
    for node in packed_nodes(made.model):  # as for an engine: blocks of 8
        _, packed = read_packed(node)
        assert packed.list_block in (1, 8)
    return made


def plan_on(made: Net, target: EngineTarget, **options: Any) -> Any:
    request = PlanRequest(target=target, **{"measure": False} | options)
    return make_plan(made.model, {"x": made.value_shapes["x"]}, made.value_shapes, request)


@pytest.mark.parametrize("gpu", ["A100", "L4", "RTX 4090"])
def test_shared_lists_are_predicted_to_pay_as_plugins(library: Library, gpu: str) -> None:
    target = EngineTarget(known_gpu(gpu), library)
    plan = plan_on(net(grouped(0.25)), target)
    (layer,) = plan.layers
    assert layer.choice == PLUGIN
    assert not layer.measured
    assert layer.candidates[PLUGIN] == min(layer.candidates.values()) < 1 / 1.2
    assert layer.why.startswith("predicted ")
    # no form is faster than its share of the arithmetic
    assert layer.candidates[PLUGIN] >= 0.25


def test_dense_lists_are_not(library: Library) -> None:
    (layer,) = plan_on(net(grouped(1.0)), EngineTarget(known_gpu("L4"), library)).layers
    assert layer.choice == "dense"
    assert layer.candidates[PLUGIN] > 0.9


def test_hopper_is_harder(library: Library) -> None:
    """Its dense kernels use an instruction that ours do not: the same layer gains less there."""
    shares = [
        plan_on(net(grouped(0.5)), EngineTarget(known_gpu(gpu), library)).layers[0].candidates[PLUGIN]
        for gpu in ("A100", "H100")
    ]
    assert shares[0] < shares[1]


def test_what_cannot_be_a_plugin_says_why(library: Library) -> None:
    (layer,) = plan_on(net(grouped(0.25)), EngineTarget(known_gpu("L4"))).layers
    assert layer.inapplicable[PLUGIN] == "the plugin library is not installed"
    assert PLUGIN not in layer.candidates


def test_forced_plugin(library: Library) -> None:
    made = net(grouped(0.25))
    plan = plan_on(made, EngineTarget(known_gpu("L4"), library), only=PLUGIN)
    assert plan.choices == {"conv0": PLUGIN}
    with pytest.raises(InputError, match="only the backend tensorrt has it"):
        plan_on(made, EngineTarget(known_gpu("L4")), only=PLUGIN)
    with pytest.raises(InputError, match=r"use one of auto, dense, .*, plugin"):
        plan_on(made, EngineTarget(known_gpu("L4"), library), only="what")


@pytest.mark.parametrize("mask", [grouped(0.25, 32, 32, 8), single_filters(0.25, 32, 32)])
def test_nodes_that_stay_packed_compute_the_same(mask: Any) -> None:
    made = Net([mask, mask], dtype=np.float32)
    mixed = apply_plan(made.model, {"conv0": PLUGIN, "conv1": "dense"})
    assert [node.op_type for node in packed_nodes(mixed)] == ["KernelIndexConvRelu"]
    assert mixed.opset_imports["trtkp"] == 1
    assert plugin_nodes(mixed) == 1
    check = compare_graphs("plan", mixed, dense_graph(made.model), {"x": made.value_shapes["x"]}, "fp32")
    assert check.status == "verified", check.summary
    assert "trtkp" not in apply_plan(made.model, {"conv0": "dense", "conv1": "dense"}).opset_imports


def test_tiles() -> None:
    packed = pack_for_tiles(np.ones((48, 20, 3, 3), np.float32), from_mask(grouped(0.4, 48, 24, 16)[:, :20]))
    assert packed.index.shape[1] % 8 == 0
    assert packed.list_block == 8


class Clock(EngineTarget):
    """A target whose device is a table."""

    def race(self, models: Mapping[str, ir.Model], shapes: Mapping[str, Any], time_limit_s: float) -> dict[str, Timing]:
        table = {"dense": 2.0, "planned": 0.5}  # the net gains what its layer does
        raced.append(list(models))
        for name, model in models.items():
            assert (plugin_nodes(model) > 0) == (name == "planned")
        return {name: Timing(table[name], table[name], table[name], 5) for name in models}

    def race_layers(
        self, models: Mapping[str, ir.Model], shapes: Any, time_limit_s: float, failed: dict[str, str]
    ) -> dict[str, Timing]:
        raced.append(list(models))
        times = {
            slot: 0.5 if plugin_nodes(model) else 2.0 + number for number, (slot, model) in enumerate(models.items())
        }
        return {slot: Timing(time, time, time, 5) for slot, time in times.items()}


raced: list[list[str]] = []


def test_measured_on_the_device(library: Library, tmp_path: Any) -> None:
    raced.clear()
    made, target = net(grouped(0.25)), Clock(known_gpu("L4"), library)
    plan = plan_on(made, target, measure=True, cache=TimingCache(tmp_path))
    (layer,) = plan.layers
    assert (layer.choice, layer.measured, plan.measured) == (PLUGIN, True, True)
    assert layer.candidates[PLUGIN] == 0.5
    assert raced[0][:2] == ["slot0", "slot1"]
    assert len(raced[0]) <= len(layer.candidates)  # lowerings of equal structure race once
    assert raced[1] == ["dense", "planned"]
    # times of the device are kept for it, and for no other
    plan_on(made, target, measure=True, cache=TimingCache(tmp_path))
    assert len(raced) == 3
    plan_on(made, Clock(known_gpu("A100"), library), measure=True, cache=TimingCache(tmp_path))
    assert len(raced) == 5


def test_old_gpus_get_no_plugins(monkeypatch: pytest.MonkeyPatch, library: Library) -> None:
    turing = Gpu(0, "Tesla T4", (7, 5), 16 << 30, 40, 4 << 20)
    monkeypatch.setattr("trtkp.plan.target.find_gpus", lambda: GpuReport((turing,), None, None, ""))
    monkeypatch.setattr("trtkp.plan.target.installed_plugins", lambda: library)
    found = EngineTarget.here(get_backend("tensorrt"), precision="fp16", plugins=True)
    assert found is not None
    assert found.library is None


def test_single_layers_bring_the_body_of_the_operator() -> None:
    made = Net([grouped(0.5, 32, 32, 8)], dtype=np.float32)
    (node,) = packed_nodes(made.model)
    plugin, dense = (single_layer(node, form, made.value_shapes) for form in (PLUGIN, "dense"))
    assert plugin_nodes(plugin) == 1
    check = compare_graphs("layer", plugin, dense, {"x": made.value_shapes["x"]}, "fp32")
    assert check.status == "verified", check.summary


def test_machine_of_a_gpu() -> None:
    for gpu in GPUS.values():
        half, full = machine_of(gpu, 2), machine_of(gpu, 4)
        assert half.mac_rate > full.mac_rate
        assert half.bandwidth == gpu.bandwidth
    h100 = machine_of(known_gpu("H100"), 2)
    assert h100.mac_rate == pytest.approx(989e12 / 2, rel=0.01)
    a100 = machine_of(replace(known_gpu("A100")), 4)
    assert a100.mac_rate == pytest.approx(19.5e12 / 2, rel=0.01)


def test_rounds_are_in_turn_and_in_milliseconds() -> None:
    seen: list[str] = []
    calls = {name: lambda name=name: seen.append(name) or {"a": 1.5, "b": 2.5}[name] for name in ("a", "b")}
    times = _in_turn(calls, time_limit_s=60)  # type: ignore[arg-type]
    assert (times["a"].median_ms, times["b"].median_ms, times["a"].runs) == (1.5, 2.5, 30)
    assert seen[:4] == ["a", "b", "a", "b"]
    assert _in_turn({"a": lambda: 1.0}, time_limit_s=0.0)["a"].runs == 3
