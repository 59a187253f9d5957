"""The race of all layers in few engines: how many are built, and what every layer is said to take."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from tests.plan.test_planner import Net
from trtkp.engine import Backend, BuildRequest, BuildResult, get_backend
from trtkp.engine.base import Availability, EngineProfile, NodeTime
from trtkp.engine.trt.tensorrt_rtx import TensorRTRTXBackend
from trtkp.errors import JobError
from trtkp.graph.passes.pack import packed_nodes
from trtkp.kernels.prediction import known_gpu
from trtkp.machine.packages import importable
from trtkp.plan import race as race_module
from trtkp.plan.cache import TimingCache
from trtkp.plan.planner import PlanRequest, make_plan
from trtkp.plan.race import race_layers, single_layer
from trtkp.plan.side_by_side import shares, side_by_side
from trtkp.plan.target import _MOST_BUILDS, EngineTarget

NAMES = ("dense", "gather")


def cost(node: ir.Node) -> float:
    """Milliseconds of a node on the stand-in: more for every operator and for every filter."""
    weight = node.inputs[1] if node.op_type == "Conv" else None
    return len(node.op_type) + (int(weight.shape[0]) if weight is not None and weight.shape is not None else 0)  # type: ignore[arg-type]


class Counting(Backend):
    """Its engines are ONNX files, which it runs in ONNX Runtime; its profile is that of `cost`."""

    name: ClassVar[Any] = "tensorrt"
    artefact: ClassVar[str] = "model.engine"

    def __init__(self, broken: Callable[[ir.Model], bool] = lambda _: False) -> None:
        self.broken, self.built, self.tried = broken, 0, 0
        self.devices: set[int] = set()

    def availability(self, device: int = 0) -> Availability:
        return Availability(True, True, "1.0", "the stand-in")

    def build(self, request: BuildRequest, progress: Any = None) -> BuildResult:
        self.tried += 1
        if self.broken(ir.load(request.onnx)):
            raise JobError("no implementation was found")
        self.built += 1
        self.devices.add(request.device)
        return BuildResult((request.onnx,), "1.0", (), 0.0, 1)

    def open(self, path: Path, **_: Any) -> Any:
        raise NotImplementedError

    def profile(
        self, path: Path, feeds: Mapping[str, Any], *, threads: Any = None, runs: int = 20, device: int = 0
    ) -> EngineProfile:
        self.devices.add(device)
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        assert all(np.isfinite(found).all() for found in session.run(None, dict(feeds)))
        nodes = tuple(NodeTime(str(node.name), node.op_type, (), (), cost(node)) for node in ir.load(path).graph)
        return EngineProfile(nodes, sum(node.ms for node in nodes), runs)


@pytest.fixture
def net() -> Net:
    """Four layers, two of them alike. Every layer reads half of its channels, the same in all filters."""
    masks = []
    for filters, channels in ((16, 16), (16, 16), (32, 16), (24, 32)):
        mask = np.zeros((filters, channels, 3, 3), bool)
        mask[:, ::2] = True
        masks.append(mask)
    return Net(masks, dtype=np.float32, size=8, batch=1)


def on(backend: Backend) -> EngineTarget:
    return EngineTarget(known_gpu("L4"), None, backend)


def race(net: Net, backend: Backend, cache: TimingCache | None = None) -> list[race_module.LayerRace]:
    pairs = [(node, NAMES) for node in packed_nodes(net.model)]
    return race_layers(pairs, net.value_shapes, cache or TimingCache.in_memory(), on(backend))


def expected(net: Net, node: ir.Node, name: str) -> float:
    return sum(cost(part) for part in single_layer(node, name, net.value_shapes).graph)


def test_one_engine_and_every_layer_its_own_time(net: Net, tmp_path: Path) -> None:
    backend = Counting()
    found = race(net, backend, TimingCache(tmp_path))
    assert backend.built == 1
    for race_, node in zip(found, packed_nodes(net.model), strict=True):
        assert race_.failed == {}
        assert {name: time.median_ms for name, time in race_.times.items()} == {
            name: pytest.approx(expected(net, node, name)) for name in NAMES
        }
    assert found[0].times["dense"].median_ms != found[3].times["dense"].median_ms
    assert race(net, backend, TimingCache(tmp_path)) == found
    assert backend.built == 1


def test_the_layers_race_on_the_gpu_of_the_build(net: Net) -> None:
    backend = Counting()
    pairs = [(node, NAMES) for node in packed_nodes(net.model)]
    target = replace(on(backend), device=1)
    times = race_layers(pairs, net.value_shapes, TimingCache.in_memory(), target)
    assert all(race_.times for race_ in times)
    assert backend.devices == {1}
    assert target.identity == on(backend).identity  # times are of a kind of GPU, whatever its number


def test_weights_bound_the_engines(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = race(net, Counting())
    monkeypatch.setattr(race_module, "MOST_WEIGHT_BYTES", 1)
    backend = Counting()
    assert [race_.times.keys() for race_ in race(net, backend)] == [race_.times.keys() for race_ in whole]
    assert backend.built == 3  # a layer each; two are alike


def _gathers_32(model: ir.Model) -> bool:
    """Whether a model holds the gather form of the layer of 32 channels, and nothing else is wrong with it."""
    return any(n.op_type == "Gather" and n.inputs[0].shape[1] == 32 for n in model.graph)  # type: ignore[union-attr, index]


def test_one_form_that_does_not_build_leaves_the_others(net: Net) -> None:
    backend = Counting(_gathers_32)
    found = race(net, backend)
    assert [set(race_.times) for race_ in found] == [set(NAMES)] * 3 + [{"dense"}]
    assert found[3].failed == {"gather": "no implementation was found"}
    assert backend.tried <= _MOST_BUILDS


def test_nothing_builds(net: Net) -> None:
    backend = Counting(lambda _: True)
    assert [set(race_.failed) for race_ in race(net, backend)] == [set(NAMES)] * 4
    assert backend.tried <= _MOST_BUILDS


def _holds_32(model: ir.Model) -> bool:
    """Whether a model holds the dense form of the layer that reads 32 channels."""
    return any(n.op_type == "Conv" and n.inputs[1].shape[1] == 32 for n in model.graph)  # type: ignore[union-attr, index]


def test_layer_that_cannot_be_compared_stays_dense(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its dense form does not build: the others are planned all the same."""
    monkeypatch.setattr("trtkp.plan.planner.WORTH_TIMING", float("inf"))
    monkeypatch.setattr("trtkp.plan.planner._checked_whole", lambda _model, plan, *_: plan)
    backend = Counting(_holds_32)
    request = PlanRequest(measure=True, target=on(backend))
    plan = make_plan(net.model, {"x": net.value_shapes["x"]}, net.value_shapes, request)
    assert [layer.measured for layer in plan.layers] == [True, True, True, False]
    assert plan.layers[3].choice == "dense"
    assert plan.layers[3].why == "its dense form cannot be built: no implementation was found"
    assert plan.layers[3].gain_ms == 0


def test_plan_of_a_net_builds_one_engine_for_its_layers(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trtkp.plan.planner.WORTH_TIMING", float("inf"))
    backend = Counting()
    request = PlanRequest(measure=True, target=on(backend))
    plan = make_plan(net.model, {"x": net.value_shapes["x"]}, net.value_shapes, request)
    assert backend.built == 1  # every other form has more operators, so nothing leaves dense and no net is raced
    assert all(layer.measured and layer.choice == "dense" for layer in plan.layers)
    for layer, node in zip(plan.layers, packed_nodes(net.model), strict=True):
        assert layer.candidates["gather"] == pytest.approx(expected(net, node, "gather"))


def test_time_that_layers_share_is_nobodys() -> None:
    def profile(*names: str) -> EngineProfile:
        return EngineProfile(tuple(NodeTime(name, "", (), (), 1.0) for name in names), 1.0, 1)

    foreign = "{ForeignNode[slot1/conv...slot12/after]}"
    assert shares(profile("slot1/conv + slot1/relu", "slot2/conv", foreign)) == {"slot2": 1.0}
    assert shares(profile("slot1/slot7/conv", "slot2/timeslot3/conv")) == {"slot1": 1.0, "slot2": 1.0}
    copy = "Reformatting CopyNode for Input Tensor 0 to slot3/conv"
    assert shares(profile("slot3/conv", copy, "myelin")) == {"slot3": 2.0}


def test_in_onnx_runtime_every_layer_has_a_time(net: Net) -> None:
    found = race(net, get_backend("onnxruntime"))
    assert all(set(race_.times) == set(NAMES) and not race_.failed for race_ in found)


@pytest.mark.skipif(not importable("tensorrt_rtx"), reason="package tensorrt_rtx is not installed")
def test_all_layers_build_in_tensorrt_rtx(net: Net, tmp_path: Path) -> None:
    models = [single_layer(node, name, net.value_shapes) for node in packed_nodes(net.model) for name in NAMES]
    whole = side_by_side({f"slot{number}": model for number, model in enumerate(models)})
    assert len(whole.graph.inputs) == len(whole.graph.outputs) == len(models)
    ir.save(whole, tmp_path / "net.onnx")
    built = TensorRTRTXBackend().build(BuildRequest(tmp_path / "net.onnx", tmp_path, {}, targets=("sm86",)))
    assert built.engine_bytes > 0
