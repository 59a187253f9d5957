"""Which layers go back, and how graphs are scored."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trtkp.calib.sensitivity import Scorer, choose_unquantised, relative_error
from trtkp.data.samples import Samples
from trtkp.errors import JobError
from trtkp.shapes import ShapeRange


@given(st.lists(st.floats(0, 1), max_size=12), st.floats(0, 3))
def test_the_fewest_layers_go_back(costs: list[float], max_drop: float) -> None:
    costs = sorted(costs, reverse=True)
    layers = [str(i) for i in range(len(costs))]
    scored = []

    def score(kept: Sequence[str]) -> float:
        scored.append(list(kept))
        return 0.9 - sum(costs[int(name)] for name in kept) / 100

    back = choose_unquantised(layers, 0.9, max_drop, score)
    lost = [sum(costs[k:]) for k in range(len(costs) + 1)]
    # losses nearer to the limit than 1e-6 may fall on either side of it
    fewest = next(k for k, loss in enumerate(lost) if loss <= max_drop + 1e-6)
    most = next((k for k, loss in enumerate(lost) if loss <= max_drop - 1e-6), len(layers))
    assert back == layers[: len(back)]
    assert fewest <= len(back) <= most
    assert len(scored) <= len(layers).bit_length() + 2
    assert len(back) == len(layers) or layers[len(back) :] in scored


def test_nothing_goes_back_after_one_look() -> None:
    calls = []
    assert choose_unquantised(["a", "b"], 0.9, 0.5, lambda kept: calls.append(kept) or 0.9) == []
    assert len(calls) == 1


def test_relative_error() -> None:
    assert relative_error({"y": np.array([3.0, 4.0])}, {"y": np.array([3.0, 0.0])}) == pytest.approx(4 / 3)
    assert relative_error({"y": np.ones(4)}, {"y": np.zeros(4)}) == 2


def classifier(new_graph: Any, *, factor: float = 1.0) -> Any:
    graph = new_graph()
    x = graph.input("x", ("n", 3))
    return graph.model(graph.op("Mul", x, graph.constant("f", np.array([factor, 1, 1], np.float32)), output="y"))


PROFILE = {"x": ShapeRange((1, 3), (2, 3), (4, 3))}


def test_accuracy_with_labels_and_agreement_without(new_graph: Any) -> None:
    x = np.eye(3, dtype=np.float32)[[0, 1, 2, 0, 1]]
    labelled = Scorer(classifier(new_graph), Samples(x, np.array([0, 1, 2, 1, 1])), PROFILE, 1, fuse_qdq=True)
    assert (labelled.measure, labelled.score(labelled.expected)) == ("accuracy", pytest.approx(0.8))
    free = Scorer(classifier(new_graph), Samples(x), PROFILE, 1, fuse_qdq=True)
    assert (free.measure, free.score(free.expected)) == ("agreement", 1.0)
    other = free.outputs(classifier(new_graph, factor=-1))
    assert free.score(other) == pytest.approx(0.6)
    assert free.error(other) == pytest.approx(np.sqrt(8 / 5))


def test_a_net_that_decides_nothing(new_graph: Any) -> None:
    graph = new_graph()
    x = graph.input("x", ("n", 1, 2, 2))
    profile = {"x": ShapeRange((1, 1, 2, 2), (2, 1, 2, 2), (4, 1, 2, 2))}
    samples = Samples(np.ones((3, 1, 2, 2), np.float32))
    scorer = Scorer(graph.model(graph.op("Relu", x, output="y")), samples, profile, 1, fuse_qdq=True)
    assert scorer.measure is None
    assert scorer.score(scorer.expected) is None


def test_nan_in_the_net(new_graph: Any) -> None:
    graph = new_graph()
    x = graph.input("x", ("n", 3))
    model = graph.model(graph.op("Sqrt", x, output="y"))
    with pytest.raises(JobError, match="layer y: is NaN or infinite on this data; check model and data"):
        Scorer(model, Samples(-np.ones((2, 3), np.float32)), PROFILE, 1, fuse_qdq=True)
