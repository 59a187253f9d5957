"""Differences and accuracy over batches, against NumPy on everything at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trtkp.comparison.difference import Batch, score
from trtkp.errors import InputError

Array = np.ndarray[Any, Any]


class Fake:
    """A runner that computes its outputs with NumPy."""

    def __init__(self, **outputs: Callable[[Array], Array]) -> None:
        self.outputs = outputs

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        return {name: compute(feeds["x"]) for name, compute in self.outputs.items()}


def scored(*runners: Fake, batches: list[Batch]) -> Any:
    return score({f"engine{i}": runner for i, runner in enumerate(runners)}, batches)  # type: ignore[misc]


@given(st.integers(0, 2**32 - 1), st.lists(st.integers(1, 5), min_size=1, max_size=4), st.booleans())
def test_sums_over_batches(seed: int, sizes: list[int], padded: bool) -> None:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(sum(sizes), 7))
    labels = rng.integers(0, 7, len(x))
    noise = rng.normal(size=7)
    batches, begin = [], 0
    for size in sizes:
        part = x[begin : begin + size]
        feed = np.concatenate([part, rng.normal(size=(3, 7))]) if padded else part
        batches.append(Batch({"x": feed}, size, labels[begin : begin + size]))
        begin += size
    found = scored(Fake(y=lambda x: x), Fake(y=lambda x: x + noise), batches=batches)
    base, other = found["engine0"], found["engine1"]
    assert (base.difference.max_abs, base.difference.relative, base.difference.top1_agreement) == (0, 0, 1)
    assert base.accuracy == np.mean(x.argmax(1) == labels)
    assert other.accuracy == np.mean((x + noise).argmax(1) == labels)
    assert other.difference.samples == len(x)
    assert other.difference.max_abs == pytest.approx(np.abs(noise).max())
    assert other.difference.relative == pytest.approx(np.linalg.norm(x + noise - x) / np.linalg.norm(x))
    assert other.difference.top1_agreement == np.mean((x + noise).argmax(1) == x.argmax(1))


def test_the_worst_output_counts() -> None:
    batch = [Batch({"x": np.ones((2, 3))}, 2)]
    found = scored(Fake(a=lambda x: x, b=lambda x: x), Fake(a=lambda x: 1.1 * x, b=lambda x: 1.5 * x), batches=batch)
    assert found["engine1"].difference.relative == pytest.approx(0.5)
    assert found["engine1"].accuracy is None


@pytest.mark.parametrize(("value", "expected"), [(np.nan, np.nan), (np.inf, np.inf)])
def test_what_is_not_finite_is_not_hidden(value: float, expected: float) -> None:
    batches = [Batch({"x": np.ones((1, 3))}, 1) for _ in range(2)]
    values = iter([value, 1.0])
    found = scored(Fake(y=lambda x: x), Fake(y=lambda x: x * next(values)), batches=batches)
    np.testing.assert_equal(found["engine1"].difference.max_abs, expected)
    np.testing.assert_equal(found["engine1"].difference.relative, expected)


def test_maps_have_no_top_1() -> None:
    found = scored(*[Fake(y=lambda x: x)] * 2, batches=[Batch({"x": np.ones((1, 3, 4, 4))}, 1)])
    assert found["engine1"].difference.top1_agreement is None


def test_refusals() -> None:
    batch = [Batch({"x": np.ones((2, 3))}, 2)]
    with pytest.raises(
        InputError, match="engine1: has outputs z, but the baseline has y; compare engines of one model"
    ):
        scored(Fake(y=lambda x: x), Fake(z=lambda x: x), batches=batch)
    with pytest.raises(InputError, match=r"engine1: output y has shape \[2, 2\], but the baseline's has \[2, 3\]"):
        scored(Fake(y=lambda x: x), Fake(y=lambda x: x[:, :2]), batches=batch)
    labelled = [Batch({"x": np.ones((2, 3))}, 2, np.array([0, 3]))]
    with pytest.raises(InputError, match=r"labels 0\.\.3"):
        scored(Fake(y=lambda x: x), batches=labelled)
