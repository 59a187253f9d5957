"""The planner: its choices follow the times, or the predictions where nothing can be timed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper

from trtkp.errors import InputError
from trtkp.graph.passes.pack import apply_masks, pack_convolutions, packed_nodes
from trtkp.index.index_set import from_mask
from trtkp.machine.timing import Timing
from trtkp.plan import planner
from trtkp.plan import race as race_module
from trtkp.plan.cost import CPU, GPU, Machine, predicted_time
from trtkp.plan.lowerings import LOWERINGS
from trtkp.plan.lowerings.gather import EQUAL_GROUPS
from trtkp.plan.lowerings.work import Work
from trtkp.plan.planner import Plan, PlanRequest, apply_plan, make_plan
from trtkp.shapes import Shape
from trtkp.verification.bundle import compare_graphs, dense_graph

Mask = np.ndarray[Any, np.dtype[np.bool_]]


def taps(*kept: int, filters: int = 16, channels: int = 16) -> Mask:
    """A layer whose kernels all keep the same taps."""
    mask = np.zeros((filters, channels, 9), bool)
    mask[..., kept] = True
    return mask.reshape(filters, channels, 3, 3)


def kernels(density: float, filters: int = 16, channels: int = 16) -> Mask:
    """A layer whose filters all keep the same channels."""
    mask = np.zeros((filters, channels, 3, 3), bool)
    mask[:, : round(density * channels)] = True
    return mask


def scattered(filters: int = 16, channels: int = 16) -> Mask:
    """Every plane keeps four taps of its own."""
    order = np.random.default_rng(0).random((filters, channels, 9)).argsort(-1)
    return (order < 4).reshape(filters, channels, 3, 3)


#: The lowerings that these tests choose from. Another one in the table must not change their answers.
KNOWN = ("dense", "box", "rectangles", "taps", "gather", *(f"gather-{groups}" for groups in EQUAL_GROUPS), "split")


@pytest.fixture(autouse=True)
def only_the_known(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in LOWERINGS.keys() - set(KNOWN):
        monkeypatch.delitem(LOWERINGS, name)


@dataclass
class Net:
    """A chain of packed 3x3 convolutions with ReLU."""

    masks: list[Mask]
    size: int = 8
    batch: int = 2
    dtype: type = np.float32
    model: ir.Model = field(init=False)
    value_shapes: dict[str, Shape] = field(default_factory=dict)

    def __post_init__(self) -> None:
        rng = np.random.default_rng(0)
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(self.dtype))
        channels = self.masks[0].shape[1]
        nodes, weights, value = [], [], "x"
        self.value_shapes["x"] = self.shape(channels)
        for i, mask in enumerate(self.masks):
            weight = rng.standard_normal(mask.shape) / np.sqrt(9 * mask.shape[1])
            weights.append(numpy_helper.from_array(weight.astype(self.dtype), f"w{i}"))
            nodes.append(helper.make_node("Conv", [value, f"w{i}"], [f"c{i}"], f"conv{i}", pads=[1] * 4))
            nodes.append(helper.make_node("Relu", [f"c{i}"], [f"r{i}"], f"relu{i}"))
            value = f"r{i}"
            self.value_shapes[value] = self.shape(mask.shape[0])
        last = self.masks[-1].shape[0]
        graph = helper.make_graph(
            nodes, "chain",
            [helper.make_tensor_value_info("x", kind, ["N", channels, self.size, self.size])],
            [helper.make_tensor_value_info(value, kind, ["N", last, self.size, self.size])],
            weights,
        )  # fmt: skip
        proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
        self.model = ir.from_proto(onnx.shape_inference.infer_shapes(proto))
        masks = {f"w{i}": mask for i, mask in enumerate(self.masks)}
        apply_masks(self.model, masks)
        pack_convolutions(self.model, {name: from_mask(mask) for name, mask in masks.items()}, {})

    def shape(self, channels: int) -> Shape:
        return (self.batch, channels, self.size, self.size)

    def plan(self, *, measure: bool, **options: Any) -> Plan:
        return make_plan(self.model, {"x": self.value_shapes["x"]}, self.value_shapes, PlanRequest(measure, **options))

    def assert_exact(self, plan: Plan) -> None:
        precision = "fp16" if self.dtype is np.float16 else "fp32"
        lowered = apply_plan(self.model, plan.choices)
        assert not packed_nodes(lowered)
        check = compare_graphs("plan", lowered, dense_graph(self.model), {"x": self.value_shapes["x"]}, precision)
        assert check.status == "verified", check.summary


@pytest.fixture
def race(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[list[str]]]:
    """Replaces the clock: gives the contenders of every race, each of which has run once.

    Every lowering that applies is timed, however slow it is predicted to be. ``net`` are the times of the dense net and
    of the planned one.
    """

    def install(
        layer: Mapping[str, float], net: tuple[float, float] = (2.0, 1.0), *, forecast: bool = False
    ) -> list[list[str]]:
        if not forecast:
            monkeypatch.setattr(planner, "WORTH_TIMING", float("inf"))
            monkeypatch.setattr(planner, "MAX_TIMED", 99)
        races: list[list[str]] = []

        def fake(calls: Mapping[str, Callable[[], object]], **_: Any) -> dict[str, Timing]:
            for call in calls.values():
                call()
            races.append(list(calls))
            whole = dict(zip(("dense", "planned"), net, strict=True))
            times = whole if set(calls) == set(whole) else {name: layer.get(name, 9.0) for name in calls}
            return {name: Timing(time, time, time, 1) for name, time in times.items()}

        monkeypatch.setattr(race_module, "time_interleaved", fake)
        return races

    return install


# --- measured ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("best", ["box", "rectangles", "taps"])
def test_the_fastest_form_wins(race: Any, best: str) -> None:
    races = race({"dense": 1.0, best: 0.5})
    net = Net([taps(0, 4)])
    plan = net.plan(measure=True)
    assert plan.choices == {"conv0": best}
    layer = plan.layers[0]
    assert (layer.name, layer.why, layer.measured) == ("w0", "2.00 times dense", True)
    assert layer.candidates == {"dense": 1.0, "box": 9.0, "rectangles": 9.0, "taps": 9.0} | {best: 0.5}
    assert layer.spread == {name: (time, time) for name, time in layer.candidates.items()}
    assert layer.inapplicable["gather"] == "lists are not whole kernels"
    assert layer.inapplicable["gather-1"] == "its groups' lists join to 100% of the kernels"
    assert set(layer.candidates) | set(layer.inapplicable) == set(LOWERINGS)
    assert races == [["dense", "box", "rectangles", "taps"], ["dense", "planned"]]
    assert plan.measured
    assert plan.dense_ms is not None
    assert plan.planned_ms is not None
    assert (plan.dense_ms.median_ms, plan.planned_ms.median_ms) == (2.0, 1.0)
    net.assert_exact(plan)


@pytest.mark.parametrize(
    ("time", "choice", "why"),
    [
        (1 / 1.04, "box", "1.04 times dense"),
        (1 / 1.02, "dense", "box gains 1.02, less than 1.03"),
        (1.0, "dense", "fastest"),
        (1.5, "dense", "fastest"),
    ],
)
def test_a_gain_within_the_noise_is_none(race: Any, time: float, choice: str, why: str) -> None:
    races = race({"dense": 1.0, "box": time})
    plan = Net([taps(4, 5)]).plan(measure=True)
    assert plan.choices == {"conv0": choice}
    assert plan.layers[0].why == why
    # a net that is dense anyway is not raced against itself
    assert len(races) == (1 if choice == "dense" else 2)


def test_a_net_that_is_slower_goes_back_to_dense(race: Any) -> None:
    race({"dense": 1.0, "box": 0.5}, net=(1.0, 1.001))
    plan = Net([taps(4, 5), taps(0, 1)]).plan(measure=True)
    assert set(plan.choices.values()) == {"dense"}
    note = "the planned net took 1.001 ms, the dense one 1.000 ms: every layer stays dense"
    assert plan.notes == (note,)
    assert [layer.why for layer in plan.layers] == [f"box won alone, but {note}"] * 2
    assert plan.dense_ms == plan.planned_ms
    assert plan.layers[0].candidates["box"] == 0.5


def test_identical_layers_are_timed_once(race: Any) -> None:
    races = race({"dense": 1.0, "taps": 0.5}, net=(5.0, 2.5))
    same, wider, other = taps(0, 4), taps(0, 4, filters=32), taps(1, 3)
    plan = Net([same, same, other, same, wider]).plan(measure=True)
    assert len(races) == 3 + 1
    assert [layer.node for layer in plan.layers] == [f"conv{i}" for i in range(5)]
    assert [layer.name for layer in plan.layers] == [f"w{i}" for i in range(5)]
    assert set(plan.choices.values()) == {"taps"}


def test_the_lists_do_not_matter_to_the_time(race: Any) -> None:
    """Layers of equal geometry whose lists are of equal lengths are timed once."""
    races = race({"dense": 1.0, "gather": 0.5}, net=(2.0, 1.0))
    first = kernels(0.5, 32, 32)
    plan = Net([first, np.roll(first, 3, axis=1)]).plan(measure=True)
    assert len(races) == 1 + 1
    assert plan.layers[0].candidates == plan.layers[1].candidates
    assert set(plan.choices.values()) == {"gather"}


def test_equal_lowerings_are_timed_once(race: Any, granule: int) -> None:
    """One group of kernels: the list as it is and the union of one group are one engine."""
    races = race({"dense": 1.0, "gather": 0.5})
    plan = Net([kernels(0.5, channels=2 * granule)]).plan(measure=True)
    assert "gather-1" not in races[0]
    assert plan.layers[0].candidates["gather-1"] == plan.layers[0].candidates["gather"] == 0.5


def test_hopeless_forms_are_not_timed(race: Any) -> None:
    races = race({"dense": 1.0}, forecast=True)
    few = Net([taps(0, 1, 3, 4, filters=8, channels=64)], size=16)  # six copies of the input for eight filters
    layer = few.plan(measure=True).layers[0]
    assert races == [["dense", "box"]]
    assert layer.inapplicable["taps"].startswith("predicted ")
    assert layer.inapplicable["taps"].endswith(" times the dense time, not timed")
    assert set(layer.candidates) == {"dense", "box", "rectangles"}


def test_a_net_leaves_out_what_does_not_pay(race: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The layers alone promise 3 of 10 ms; the last of them costs what the others gain."""
    net = Net([taps(0, 4), taps(0, 4, filters=32), taps(0, 4, channels=32), taps(0, 4, filters=8)])
    race({"dense": 1.0, "box": 0.2})
    plan = net.plan(measure=True)  # the clock says 1 ms for any planned net: less than expected
    assert set(plan.choices.values()) == {"box"}

    counted: list[int] = []
    slow = {4: 10.5, 2: 8.4, 1: 9.0, 3: 8.0}

    def times(_: Any, plan: Plan, nodes: Any) -> tuple[Timing, Timing]:
        count = len(list(nodes))
        median = slow[count] if count not in counted else slow[count] + later
        counted.append(count)
        return Timing(10.0, 10.0, 10.0, 1), Timing(median, median, median, 1)

    later = 0.0
    monkeypatch.setattr(planner._Search, "time", times)
    plan = net.plan(measure=True)
    assert counted == [4, 2, 1, 2]
    assert sorted(plan.choices.values()) == ["box", "box", "dense", "dense"]
    assert plan.planned_ms == Timing(8.4, 8.4, 8.4, 1)
    assert plan.notes == ("2 of 4 packed layers go back to dense, the whole net is faster so",)
    dense = [layer for layer in plan.layers if layer.choice == "dense"]
    assert {layer.why for layer in dense} == {f"box won alone, but {plan.notes[0]}"}
    net.assert_exact(plan)

    counted.clear()
    later = 2.0  # the best of the races was luck: timed anew it is slower than dense
    plan = net.plan(measure=True)
    assert set(plan.choices.values()) == {"dense"}
    assert plan.dense_ms == plan.planned_ms == Timing(10.0, 10.0, 10.0, 1)


def test_a_gain_must_show_in_the_fast_runs_too() -> None:
    """On a busy machine the median alone may favour one by chance."""
    lucky, dense = Timing(5.0, 4.0, 9.0, 30), Timing(10.0, 4.0, 12.0, 30)
    assert lucky.gain_over(dense) == 1.0
    assert dense.gain_over(lucky) == 0.5


def test_nothing_to_weigh_is_not_timed(race: Any) -> None:
    races = race({})
    plan = Net([scattered()]).plan(measure=True)
    assert races == []
    assert plan.layers[0].why == "no other lowering applies"
    assert set(plan.layers[0].inapplicable) == set(LOWERINGS) - {"dense"}


def test_progress_is_reported(race: Any) -> None:
    race({})
    steps: list[tuple[str, int, int]] = []
    Net([taps(4), taps(4, 5)]).plan(measure=True, progress=lambda *step: steps.append(step))
    assert steps == [("Planning layers", done, 2) for done in range(3)]


@pytest.mark.serial
def test_a_form_that_must_win_does() -> None:
    """1x1 of a 3x3 kernel: a ninth of the work, in one plain convolution."""
    net = Net([taps(4, filters=64, channels=64)], size=32, batch=4)
    plan = net.plan(measure=True)
    layer = plan.layers[0]
    assert layer.choice != "dense"
    assert layer.candidates["dense"] > 2 * layer.candidates["box"]
    assert plan.dense_ms is not None
    assert plan.planned_ms is not None
    assert plan.planned_ms.median_ms * 2 < plan.dense_ms.median_ms
    net.assert_exact(plan)


# --- predicted --------------------------------------------------------------------------------------------------------


def test_large_layers_leave_dense_for_a_large_gain() -> None:
    net = Net([taps(4, 5, filters=256, channels=256)], size=32, batch=8)
    plan = net.plan(measure=False)
    assert not plan.measured
    layer = plan.layers[0]
    assert layer.choice == "box"
    assert layer.why.startswith("predicted ")
    assert layer.candidates["dense"] == 1.0
    assert layer.candidates["box"] < 1 / planner.PREDICTED_GAIN
    assert not layer.measured
    assert plan.dense_ms is None


def test_launch_bound_layers_stay_dense() -> None:
    plan = Net([kernels(0.25), taps(4)], size=4, batch=1).plan(measure=False)
    assert set(plan.choices.values()) == {"dense"}


def test_a_small_predicted_gain_stays_dense() -> None:
    """Two thirds of the taps in one box: at most 1.5; eight ninths of the channels: at most 1.13."""
    large = {"filters": 256, "channels": 256}
    most = Net([taps(0, 1, 3, 4, 6, 7, **large), kernels(224 / 256, **large)], size=64, batch=8)
    first, second = most.plan(measure=False).layers
    assert first.choice == "box"
    assert second.choice == "dense"
    best = min(second.candidates, key=lambda name: second.candidates[name])
    assert best == "gather"
    assert second.why == "predicted gain of gather is below 1.2"
    assert 1 < 1 / second.candidates[best] < 1.2


def test_half_precision_is_planned_by_its_own_rate() -> None:
    single, half = (Net([kernels(0.5, 256, 256)], 16, 8, dtype) for dtype in (np.float32, np.float16))
    costs = [net.plan(measure=False).layers[0].candidates["gather"] for net in (single, half)]
    assert costs[0] < costs[1] < 1  # arithmetic is cheap in half precision: traffic and launches weigh more
    half.assert_exact(half.plan(measure=False))


def test_predicted_time_is_a_roofline() -> None:
    weight, source, target = (256, 256, 3, 3), (8, 256, 32, 32), (8, 256, 32, 32)
    macs = 8 * 32 * 32 * 256 * 256 * 9
    assert predicted_time(Work(1.0), weight, source, target, 4, GPU[4]) == pytest.approx(
        macs / GPU[4].mac_rate + GPU[4].launch_s
    )
    traffic = 4 * (8 * 256 * 32 * 32 * 2 + 0.01 * 256 * 256 * 9)
    assert predicted_time(Work(0.01), weight, source, target, 4, GPU[4]) == pytest.approx(
        traffic / GPU[4].bandwidth + GPU[4].launch_s
    )


@pytest.mark.parametrize(("itemsize", "machine"), [(2, GPU[2]), (4, GPU[4]), (4, CPU)])
def test_less_work_is_never_predicted_slower(itemsize: int, machine: Machine) -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        weight = (*rng.integers(1, 512, 2).tolist(), 3, 3)
        size = rng.integers(1, 64, 2).tolist()
        batch = int(rng.integers(1, 64))
        shapes = ((batch, weight[1], *size), (batch, weight[0], *size))
        work = {"macs": rng.random(), "reads": 4 * rng.random(), "writes": 4 * rng.random(), "kernels": 3}
        time = predicted_time(Work(**work), weight, *shapes, itemsize, machine)
        assert time >= 3 * machine.launch_s
        for name, amount in work.items():
            less = work | {name: amount * 0.5 if name != "kernels" else 2}
            assert predicted_time(Work(**less), weight, *shapes, itemsize, machine) <= time
        assert predicted_time(Work(**work, efficiency=0.5), weight, *shapes, itemsize, machine) >= time


def test_fewer_taps_or_channels_are_never_predicted_slower() -> None:
    def cost(mask: Mask, form: str) -> float:
        return Net([mask], 32, 8).plan(measure=False).layers[0].candidates[form]

    boxes = [cost(taps(*kept, filters=64, channels=64), "box") for kept in ((4,), (4, 5), (0, 1, 3, 4), (0, 8))]
    assert boxes == sorted(boxes)
    lists = [cost(kernels(density, 64, 64), "gather") for density in (0.25, 0.5, 0.75)]
    assert lists == sorted(lists)


# --- asked for --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", KNOWN)
def test_a_form_that_was_asked_for(race: Any, granule: int, name: str) -> None:
    races = race({})
    size = {"filters": 2 * granule, "channels": 2 * granule}  # half of the channels are one granule
    net = Net([taps(4, 5, **size), kernels(0.5, **size), scattered(**size)])
    plan = net.plan(measure=True, only=name)
    assert races == []
    assert not plan.measured
    for layer in plan.layers:
        if layer.choice == name:
            assert layer.why == "asked for"
        else:
            assert layer.choice == "dense"
            assert layer.why == f"{name} does not apply: {layer.inapplicable[name]}"
    used = [layer.node for layer in plan.layers if layer.choice == name]
    assert used == {
        "dense": ["conv0", "conv1", "conv2"], "box": ["conv0"], "rectangles": ["conv0"],
        "taps": ["conv0", "conv1"], "gather": ["conv1"], "gather-1": ["conv1"],
    }.get(name, [])  # fmt: skip
    net.assert_exact(plan)


def test_unknown_lowering() -> None:
    with pytest.raises(InputError, match="--lowering winograd: not known; use one of auto, dense, box, rectangles"):
        Net([taps(4)]).plan(measure=False, only="winograd")


def test_the_packed_model_is_left_alone(race: Any) -> None:
    race({"dense": 1.0, "box": 0.5})
    net = Net([taps(4, 5)])
    before = ir.to_proto(net.model).SerializeToString(deterministic=True)
    apply_plan(net.model, net.plan(measure=True).choices)
    assert ir.to_proto(net.model).SerializeToString(deterministic=True) == before
