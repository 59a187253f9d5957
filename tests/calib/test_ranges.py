"""Ranges against an independent computation in NumPy, on values that the test has itself."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from trtkp.calib.ranges import measure_ranges
from trtkp.errors import InputError, JobError

Array = np.ndarray[Any, Any]


@pytest.fixture
def model(new_graph: Any) -> ir.Model:
    """``x``, its double ``d``, the positive part ``r`` and the constant ``k``."""
    graph = new_graph()
    x = graph.input("x", ("n", 3, 4, 4))
    d = graph.op("Mul", x, graph.constant("two", np.array(2, np.float32)), output="d")
    r = graph.op("Relu", d, output="r")
    zero = graph.op("Mul", x, graph.constant("zero", np.array(0, np.float32)), output="z")
    k = graph.op("Add", zero, graph.constant("k0", np.array(-1.5, np.float32)), output="k")
    return graph.model(graph.op("Add", r, k, output="y"))


def batches(count: int = 6, seed: int = 0, growth: float = 0.3) -> list[Array]:
    rng = np.random.default_rng(seed)
    return [(rng.standard_t(4, (8, 3, 4, 4)) * (1 + growth * i)).astype(np.float32) for i in range(count)]


def values(tensor: str, data: list[Array]) -> Array:
    doubled = 2 * np.concatenate(data).ravel()
    return {"x": doubled / 2, "d": doubled, "r": np.maximum(doubled, 0)}[tensor]


@pytest.mark.parametrize("method", ["min-max", "entropy", "percentile"])
def test_extremes(model: ir.Model, method: str) -> None:
    data = batches()
    found = measure_ranges(model, ["x", "d", "r"], data, method=method)
    assert set(found) == {"x", "d", "r"}
    for tensor, its in found.items():
        want = values(tensor, data)
        assert (its.low, its.high) == (want.min(), want.max())
        assert 0 < its.amax <= np.abs(want).max()
        assert (its.amax == np.abs(want).max()) == (method == "min-max")


@pytest.mark.parametrize("percentile", [90.0, 99.0, 99.9])
def test_percentile(model: ir.Model, percentile: float) -> None:
    data = batches()
    found = measure_ranges(model, ["d", "r"], data, method="percentile", percentile=percentile)
    for tensor in ("d", "r"):
        magnitudes = np.sort(np.abs(values(tensor, data)))
        rank = int(np.ceil(percentile / 100 * len(magnitudes))) - 1
        bin_width = np.abs(values(tensor, data[:1])).max() / 2048
        assert abs(found[tensor].amax - magnitudes[rank]) <= 1.01 * bin_width
    assert found["r"].amax < found["d"].amax or percentile > 99


def entropy_threshold(histogram: Array, edges: Array, levels: int) -> float:
    """The limit with the smallest divergence between the clipped histogram and its approximation by ``levels``."""
    middle = len(histogram) // 2
    best, limit = np.inf, 0.0
    for half in range(levels // 2, middle + 1):
        low, high = middle - half, min(middle + half + 1, len(histogram))
        inside = histogram[low:high].astype(np.float64)
        clipped = inside.copy()
        clipped[0] += histogram[:low].sum()
        clipped[-1] += histogram[high:].sum()
        width = len(inside) // levels
        level = np.minimum(np.arange(len(inside)) // width, levels - 1)
        mass = np.bincount(level, inside, levels)
        # the rest behind the last full level counts for it, but is spread over none
        filled = (clipped != 0) & (np.arange(len(inside)) < levels * width)
        share = np.bincount(level, filled, levels)
        spread = np.divide(mass, share, out=np.zeros(levels), where=share > 0)[level]
        approximation = np.where(np.arange(len(inside)) < levels * width, np.floor(spread), 0.0)
        p, q = smoothed(clipped), smoothed(approximation)
        if p is None or q is None:
            continue
        p, q = p / p.sum(), q / q.sum()
        divergence = float(np.sum(p * np.log(p / q)))
        if divergence < best - 1e-12:
            best, limit = divergence, max(abs(edges[low]), abs(edges[high]))
    return limit


def smoothed(histogram: Array, epsilon: float = 1e-4) -> Array | None:
    """Empty bins get epsilon, the others give it."""
    empty = histogram == 0
    if empty.all():
        return None
    if not empty.any():
        return histogram
    taken = epsilon * empty.sum() / (~empty).sum()
    return None if taken >= 1 else histogram + np.where(empty, epsilon, -taken)


def test_entropy(model: ir.Model) -> None:
    data = batches(1, seed=3)
    found = measure_ranges(model, ["d"], data, method="entropy")["d"]
    doubled = values("d", data)
    limit = float(np.abs(doubled).max())
    histogram, edges = np.histogram(doubled, 512, range=(-limit, limit))
    want = entropy_threshold(histogram, edges, 256)
    assert found.amax == pytest.approx(min(want, limit), rel=0.03)


def test_a_constant_tensor_has_its_magnitude_and_one_of_zeros_none(model: ir.Model) -> None:
    for method in ("min-max", "entropy", "percentile"):
        found = measure_ranges(model, ["k", "z"], batches(2), method=method)
        assert (found["k"].low, found["k"].high, found["k"].amax) == (-1.5, -1.5, 1.5)
        assert found["z"].amax == 0


def test_one_batch_of_one_sample(model: ir.Model) -> None:
    sample = batches(1)[0][:1]
    for method in ("min-max", "entropy", "percentile"):
        found = measure_ranges(model, ["d"], [sample], method=method)["d"]
        assert 0 < found.amax <= 2 * np.abs(sample).max()


def test_batches_of_different_sizes(model: ir.Model) -> None:
    data = batches(3)
    uneven = [data[0], data[1][:3], data[2][:1]]
    found = measure_ranges(model, ["d"], uneven, method="min-max")["d"]
    assert found.high == max(2 * part.max() for part in uneven)


class KilledError(Exception):
    pass


@pytest.mark.parametrize("method", ["min-max", "entropy", "percentile"])
def test_goes_on_where_it_was_killed(model: ir.Model, method: str, tmp_path: Path) -> None:
    # the time of the entropy method grows with the square of the bins, and these with the range
    data, state, served = batches(20, growth=0.02), tmp_path / "state.npz", []

    def until(last: int) -> Iterator[Array]:
        for i, batch in enumerate(data):
            if i == last:
                raise KilledError
            served.append(i)
            yield batch

    whole = measure_ranges(model, ["d", "r"], data, method=method)
    with pytest.raises(KilledError):
        measure_ranges(model, ["d", "r"], until(12), method=method, state=state, key="a")
    assert state.is_file()
    calls = []
    resumed = measure_ranges(
        model, ["d", "r"], data, method=method, state=state, key="a", progress=lambda *step: calls.append(step)
    )
    assert resumed == whole
    assert calls[0][1] == 8  # the state was written after eight batches
    # a state of other data, or one that is cut short, counts for nothing
    assert measure_ranges(model, ["d", "r"], data, method=method, state=state, key="b") == whole
    state.write_bytes(state.read_bytes()[:100])
    assert measure_ranges(model, ["d", "r"], data, method=method, state=state, key="a") == whole


def test_errors(model: ir.Model) -> None:
    with pytest.raises(InputError, match=r"--calibrator magic: not known; use one of min-max, entropy, percentile"):
        measure_ranges(model, ["d"], batches(1), method="magic")
    with pytest.raises(InputError, match="--percentile 0: must be above 0"):
        measure_ranges(model, ["d"], batches(1), method="percentile", percentile=0)
    with pytest.raises(InputError, match="no batch"):
        measure_ranges(model, ["d"], [])


@pytest.mark.parametrize("method", ["min-max", "entropy", "percentile"])
def test_infinity_inside_the_net(model: ir.Model, method: str) -> None:
    huge = np.full((1, 3, 4, 4), 3e38, np.float32)
    huge[0, 0, 0, 0] = 1
    with pytest.raises(JobError, match="check model and data"):
        measure_ranges(model, ["d"], [huge], method=method)
