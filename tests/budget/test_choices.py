"""The exact choice under a budget, against trying everything."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trtkp.budget.choices import DENSE, Choice, Level, cheapest, choose, total

LAYERS = st.lists(
    st.lists(st.tuples(st.floats(0, 10), st.floats(0.01, 10)), min_size=1, max_size=4), min_size=1, max_size=4
)


@given(LAYERS, st.floats(0.05, 1))
def test_no_other_choice_spoils_less(layers: list[list[tuple[float, float]]], share: float) -> None:
    errors = [np.array([error for error, _ in layer]) for layer in layers]
    costs = [np.array([cost for _, cost in layer]) for layer in layers]
    budget = share * sum(cost.max() for cost in costs)
    picked = choose(errors, costs, budget)
    every = [
        (sum(error[k] for error, k in zip(errors, levels, strict=True)), levels)
        for levels in product(*(range(len(cost)) for cost in costs))
        if sum(cost[k] for cost, k in zip(costs, levels, strict=True)) <= budget
    ]
    if not every:
        assert picked is None
        return
    assert picked is not None
    assert sum(cost[k] for cost, k in zip(costs, picked, strict=True)) <= budget * (1 + 1e-6)
    found = sum(error[k] for error, k in zip(errors, picked, strict=True))
    assert found <= min(every)[0] + 1e-5 * max(1.0, *(float(error.max()) for error in errors))


def test_a_budget_of_nothing() -> None:
    assert choose([np.ones(2)], [np.ones(2)], 0.0) is None


def test_totals() -> None:
    choices = {
        "a": [Choice(DENSE, 2.0, 100, 0.0), Choice(Level(0.5), 1.5, 50, 0.1)],
        "b": [Choice(DENSE, 1.0, 30, 0.0)],
    }
    assert cheapest(choices, by="latency_ms") == pytest.approx(2.5)
    assert cheapest(choices, by="macs") == 80
    assert total({"a": choices["a"][1], "b": choices["b"][0]}, by="macs") == 80


def test_labels() -> None:
    assert DENSE.label == "dense"
    assert Level(0.5, 64, 8).label == "50% of 64 x 8"
