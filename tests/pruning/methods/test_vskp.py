"""V-SKP against an independent computation, kernel by kernel; its index formats; budgets in exact integers."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from examples.digits_data import load
from examples.nets import resnet
from tests.pruning.known_nets import KnownNet
from trtkp.errors import InputError
from trtkp.index.conv_layer import ConvLayer
from trtkp.index.index_set import Kind, from_mask
from trtkp.pipeline.records import paper_counts
from trtkp.pruning.methods.vskp import (
    VSKP,
    index_list,
    kernel_bitmap,
    kernel_scores,
    mask_of_bitmap,
    mask_of_list,
    mask_of_matrix,
    reactivate,
    unmoved_filters,
)
from trtkp.pruning.one_shot import prune_one_shot

NewLayer = Callable[..., ConvLayer]


def score_of_kernel(filter_: np.ndarray[Any, Any], c: int, alpha: float) -> float:
    """The formula for one kernel of one filter [C, R, S], in Python numbers."""
    v = [float(x) for x in filter_[c].ravel()]
    f = [sum(float(x) for x in filter_[:, r, s]) for r in range(filter_.shape[1]) for s in range(filter_.shape[2])]
    dot = sum(a * b for a, b in zip(f, v, strict=True))
    norm = math.sqrt(sum(a * a for a in f)) * math.sqrt(sum(a * a for a in v))
    return sum(map(abs, v)) * (alpha + (1 - alpha) * abs(dot / max(norm, 1e-6)))


def expected_masks(weights: list[np.ndarray[Any, Any]], ratio: Fraction, alpha: float) -> list[np.ndarray[Any, Any]]:
    """Both phases in plain Python, for k x k layers."""
    scores = [[[score_of_kernel(w[o], c, alpha) for c in range(w.shape[1])] for o in range(len(w))] for w in weights]
    pooled = sorted(s for layer in scores for row in layer for s in row)
    threshold = pooled[math.floor(ratio * len(pooled))]
    masks = []
    for w, layer in zip(weights, scores, strict=True):
        pruned = sum(s <= threshold for row in layer for s in row)
        count = min(w.shape[1] - 1, pruned // len(w))
        mask = np.ones(w.shape, bool)
        for o, row in enumerate(layer):
            for c in sorted(range(len(row)), key=lambda c: (row[c], c))[:count]:
                mask[o, c] = False
        masks.append(mask)
    return masks


@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1), st.integers(0, 19), st.sampled_from([0.0, 0.85, 0.95, 1.0]))
def test_both_phases_against_plain_python(seed: int, twentieths: int, alpha: float) -> None:
    rng = np.random.default_rng(seed)
    shapes = [(3, 5, 3, 3), (4, 3, 3, 3), (2, 6, 5, 5)]
    weights = [(rng.standard_normal(s) * rng.uniform(0.3, 2)).astype(np.float32) for s in shapes]
    layers = [
        ConvLayer(f"l{i}", f"n{i}", s[0], s[1], s[2:], (1, 1), (1, 1, 1, 1), (1, 1), 1, (8, 8), (8, 8), False, False)
        for i, s in enumerate(shapes)
    ]
    method = VSKP(ratio=twentieths / 20, alpha=alpha)
    masks = method.masks(layers, {f"l{i}": w for i, w in enumerate(weights)})
    for i, mask in enumerate(expected_masks(weights, Fraction(twentieths, 20), alpha)):
        assert np.array_equal(masks[f"l{i}"], mask)


def test_alpha_1_is_plain_l1(new_layer: NewLayer) -> None:
    weight = np.random.default_rng(0).standard_normal((4, 3, 3, 3))
    np.testing.assert_allclose(kernel_scores(weight, alpha=1.0), np.abs(weight).sum(axis=(2, 3)))


def test_a_kernel_along_its_filter_beats_one_across_it_at_equal_size(new_layer: NewLayer) -> None:
    weight = np.zeros((1, 3, 1, 2))
    weight[0, 0, 0] = [2, 0]  # the feature vector points along the first axis
    weight[0, 1, 0] = [1, 0]
    weight[0, 2, 0] = [0, 1]
    along, across = kernel_scores(weight, alpha=0.5)[0, 1:]
    assert along > across


@pytest.mark.parametrize("allocation", ["global", "uniform"])
@pytest.mark.parametrize(("group", "block"), [(1, 1), (2, 1), (4, 2), (8, 8), (3, 5)])
def test_filters_of_a_group_agree_and_all_keep_the_same_number(
    new_layer: NewLayer, allocation: str, group: int, block: int
) -> None:
    layer = new_layer(filters=8, channels=16, groups=2)
    weight = np.random.default_rng(1).standard_normal(layer.weight_shape)
    method = VSKP(ratio=0.5, allocation=allocation, filter_group=group, channel_block=block)
    mask = method.masks([layer], {layer.name: weight})[layer.name]
    index = from_mask(mask, 2)
    assert index.kind is Kind.KERNEL
    kept = mask[:, :, 0, 0]
    for half in (kept[:4], kept[4:]):  # groups do not cross ONNX groups
        for first in range(0, 4, group):
            members = half[first : first + group]
            assert (members == members[0]).all()
    if 16 % block == 0:
        blocks = kept.reshape(8, 16 // block, block)
        assert (blocks == blocks[:, :, :1]).all()
        assert len({int(row.sum()) for row in kept}) == 1


def test_one_kernel_stays_in_every_filter(new_layer: NewLayer) -> None:
    layer = new_layer(filters=4, channels=5)
    weight = np.random.default_rng(2).standard_normal(layer.weight_shape)
    for allocation in ("global", "uniform"):
        mask = VSKP(ratio=0.999, allocation=allocation).masks([layer], {layer.name: weight})[layer.name]
        assert (mask[:, :, 0, 0].sum(axis=1) == 1).all()


def test_uniform_budgets_are_exact_where_the_product_is_an_integer(new_layer: NewLayer) -> None:
    layer = new_layer(filters=2, channels=100)
    weight = np.random.default_rng(3).standard_normal(layer.weight_shape)
    for hundredths in range(100):
        mask = VSKP(ratio=hundredths / 100, allocation="uniform").masks([layer], {layer.name: weight})[layer.name]
        assert (~mask[0, :, 0, 0]).sum() == hundredths


def test_of_equal_scores_the_lower_channel_goes_first(new_layer: NewLayer) -> None:
    layer = new_layer(filters=2, channels=4)
    method = VSKP(ratio=0.5, allocation="uniform")
    mask = method.masks([layer], {layer.name: np.ones(layer.weight_shape)})[layer.name]
    assert np.array_equal(mask[:, :, 0, 0], [[False, False, True, True]] * 2)


def test_1x1_layers_have_a_threshold_of_their_own_and_keep_their_largest(new_layer: NewLayer) -> None:
    rng = np.random.default_rng(4)
    big = new_layer(name="big", filters=8, channels=64, kernel=(1, 1))
    small = new_layer(name="small", filters=8, channels=64, kernel=(1, 1))
    wide = new_layer(name="wide", filters=8, channels=64)
    weights = {each.name: rng.standard_normal(each.weight_shape) for each in (big, small, wide)}
    weights["small"] *= 1e-3  # a global threshold would take all of it
    weights["wide"] *= 1e6
    masks = VSKP(ratio=0.5, pointwise_keep=0.25).masks([big, small, wide], weights)
    assert masks["small"].mean() == pytest.approx(0.25)  # all but the protected quarter
    assert masks["wide"].mean() == pytest.approx(0.5, abs=0.02)
    without = VSKP(ratio=0.5, pointwise_keep=0.0).masks([big, small, wide], weights)
    assert without["small"].sum(axis=1).max() == 1


def test_beta_moves_budget_away_from_the_even_layer(new_layer: NewLayer) -> None:
    rng = np.random.default_rng(5)
    layers = [new_layer(name="even", filters=8, channels=32), new_layer(name="uneven", filters=8, channels=32)]
    weights = {
        "even": np.full(layers[0].weight_shape, 0.11),
        "uneven": rng.uniform(0, 0.22, (8, 32, 1, 1)) * np.ones((1, 1, 3, 3)),
    }
    plain, moved = (VSKP(ratio=0.4, beta=beta).masks(layers, weights) for beta in (0.0, 0.75))
    assert moved["uneven"].sum() < plain["uneven"].sum()


def test_scope(new_layer: NewLayer) -> None:
    layers = [
        new_layer(name="stem", stem=True),
        new_layer(name="depthwise", filters=8, channels=1, groups=8),
        new_layer(name="point", kernel=(1, 1)),
        new_layer(name="conv"),
    ]
    weights = {each.name: np.random.default_rng(6).standard_normal(each.weight_shape) for each in layers}
    assert set(prune_one_shot(VSKP(), layers, weights).masks) == {"point", "conv"}
    pruning = prune_one_shot(VSKP(pointwise=False), layers, weights)
    assert set(pruning.masks) == {"conv"}
    assert pruning.left_dense == {
        "stem": "stem", "depthwise": "one channel per filter: no kernel can go", "point": "1x1 kernel",
    }  # fmt: skip


@settings(max_examples=25)
@given(st.integers(1, 6), st.integers(1, 20), st.integers(0, 2**32 - 1))
def test_index_forms_round_trip(filters: int, channels: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    keep = int(rng.integers(1, channels + 1))
    kept = np.argsort(rng.random((filters, channels)), axis=1) < keep
    mask = np.broadcast_to(kept[:, :, None, None], (filters, channels, 3, 3)).copy()
    index = from_mask(mask)
    channels_of = index_list(index)
    assert channels_of.dtype == np.int32
    assert np.array_equal(channels_of, [np.flatnonzero(row) for row in kept])
    bitmap = kernel_bitmap(index)
    assert bitmap.shape == (filters, -(-channels // 8))
    for o in range(filters):
        for c in range(channels):
            assert bool(bitmap[o, c // 8] >> (7 - c % 8) & 1) == kept[o, c]
    assert np.array_equal(mask_of_list(channels_of, mask.shape), mask)
    assert np.array_equal(mask_of_bitmap(bitmap, mask.shape), mask)


def test_bitmap_bytes_of_resnet_56_as_published(new_layer: NewLayer) -> None:
    blocks = [(16, 16)] * 18 + [(32, 16)] + [(32, 32)] * 17 + [(64, 32)] + [(64, 64)] * 17
    method = VSKP(ratio=0.7, allocation="uniform")
    total, kernels, expanded = 0, 0, 0
    for filters, channels in blocks:
        layer = new_layer(filters=filters, channels=channels)
        weight = np.random.default_rng(7).standard_normal(layer.weight_shape)
        index = from_mask(method.masks([layer], {layer.name: weight})[layer.name])
        total += method.paper_index_bytes(index)
        kernels += index_list(index).size
        expanded += index_list(index).nbytes
    assert total == 11_776
    assert expanded == 4 * kernels
    # whole kernels of every filter: a little less than the ratio goes
    assert 1 - kernels / sum(filters * channels for filters, channels in blocks) == 0.6875


@dataclass(frozen=True)
class Counts:
    """A net's parameters and MACs, and its parameters as the authors count them, where those are known."""

    factory: Callable[[], nn.Module]
    shape: tuple[int, int, int]
    params: int
    macs: int
    with_statistics: int | None = None
    without_batch_norm: int | None = None


KNOWN = {
    "resnet56": Counts(resnet.resnet56_cifar, (3, 32, 32), 853_018, 125_485_696, 857_082, 848_944),
    "resnet110": Counts(resnet.resnet110_cifar, (3, 32, 32), 1_727_962, 252_887_680),
    "resnet50": Counts(resnet.resnet50, (3, 224, 224), 25_557_032, 4_089_184_256),
}


def counted_by_modules(net: Counts) -> tuple[int, int, int]:
    """Elements of the state dict, weights among them, and elements that the batch normalisations give."""
    elements = []
    with torch.device("meta"), torch.no_grad():
        model = net.factory().eval()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.register_forward_hook(lambda module, given, out: elements.append(out.numel()))
        model(torch.empty(1, *net.shape))
    state = {name: value for name, value in model.state_dict().items() if not name.endswith("num_batches_tracked")}
    weights = sum(value.numel() for value in state.values() if value.ndim > 1)
    return sum(value.numel() for value in state.values()), weights, sum(elements)


@pytest.mark.slow
@pytest.mark.parametrize("name", KNOWN)
def test_known_nets_as_the_authors_count_them(name: str, tmp_path: Path) -> None:
    """Over the state dict with BatchNorm's statistics and a FLOP per element of it; without BatchNorm and biases."""
    net = KNOWN[name]
    torch.manual_seed(0)
    known = KnownNet(net.factory(), net.shape, tmp_path)
    assert (known.table.params, known.table.macs) == (net.params, net.macs)
    pruning, accounting = known.pruned(VSKP(ratio=0.7))
    counts = paper_counts(VSKP(), known.source, known.profile, accounting)
    assert counts is not None
    assert counts.other is not None
    state, weights, elements = counted_by_modules(net)
    assert (counts.dense_params, counts.dense_flops) == (state, net.macs + elements)
    assert (counts.other.dense_params, counts.other.dense_flops) == (weights, net.macs)
    if net.with_statistics is not None:
        assert (counts.dense_params, counts.other.dense_params) == (net.with_statistics, net.without_batch_norm)
    layers = {layer.name: layer for layer in known.table.layers}
    zeros = {name: int((~mask).sum()) for name, mask in pruning.masks.items()}
    flops = sum(count * prod(layers[name].output_size) for name, count in zeros.items())
    for each in (counts, counts.other):
        assert each.dense_params - each.retained_params == sum(zeros.values())
        assert each.dense_flops - each.retained_flops == flops
    assert flops > 0


@pytest.mark.parametrize(
    "settings_",
    [
        {"ratio": 1.0},
        {"ratio": -0.1},
        {"allocation": "some"},
        {"alpha": 1.5},
        {"filter_group": 0},
        {"channel_block": 0},
    ],
)
def test_bad_settings(settings_: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        VSKP(**settings_)


def test_bad_index_formats() -> None:
    ragged = np.zeros((2, 3, 1, 1), bool)
    ragged[0, :2] = True
    with pytest.raises(InputError, match="equal numbers"):
        index_list(from_mask(ragged))
    pattern = np.zeros((1, 1, 2, 2), bool)
    pattern[0, 0, 0, 0] = True
    with pytest.raises(InputError, match="whole kernels"):
        kernel_bitmap(from_mask(pattern))
    for channels in ([[0, 3]], [[1, 1]], [[-1, 0]], [[0], [1]]):
        with pytest.raises(InputError, match="do not fit"):
            mask_of_list(np.array(channels), (1, 3, 3, 3))
    with pytest.raises(InputError, match="beyond channel"):
        mask_of_bitmap(np.array([[0b00010000]], np.uint8), (1, 3, 3, 3))
    with pytest.raises(InputError, match="expected uint8"):
        mask_of_bitmap(np.zeros((1, 2), np.uint8), (1, 3, 3, 3))


def masks_in_numpy(
    weights: dict[str, np.ndarray[Any, Any]], ratio: float, alpha: float, beta: float
) -> dict[str, np.ndarray[Any, Any]]:
    """The published procedure once more, in whole arrays and sorted lists; 1x1 layers with a threshold of their own."""
    masks = {}
    for pool in ([n for n, w in weights.items() if w.shape[2] > 1], [n for n, w in weights.items() if w.shape[2] == 1]):
        scores = {}
        for name in pool:
            w = weights[name].astype(np.float64)
            if w.shape[2] == 1:
                size = np.abs(w[:, :, 0, 0])
                scores[name] = size * (1 - beta * 200 * np.var(size))
                continue
            f = w.sum(axis=1)
            dot = np.einsum("fcrs,frs->fc", w, f)
            cosine = dot / np.maximum(
                np.sqrt((w**2).sum(axis=(2, 3))) * np.sqrt((f**2).sum(axis=(1, 2)))[:, None], 1e-6
            )
            size = np.abs(w).sum(axis=(2, 3))
            scores[name] = size * (alpha + (1 - alpha) * np.abs(cosine)) * (1 - beta * np.var(size))
        if not pool:
            continue
        everything = sorted(s for score in scores.values() for s in score.ravel().tolist())
        t = everything[math.floor(Fraction(str(ratio)) * len(everything))]
        for name, score in scores.items():
            low = score <= t
            keep = math.floor(score.size / 1000)
            if weights[name].shape[2] == 1 and keep:
                low &= score < np.sort(score.ravel())[-keep]
            n = min(score.shape[1] - 1, int(low.sum()) // len(score))
            mask = np.ones(weights[name].shape, bool)
            for o, row in enumerate(score):
                mask[o, sorted(range(len(row)), key=lambda c: (row[c], c))[:n]] = False
            masks[name] = mask
    return masks


Weights = dict[str, np.ndarray[Any, Any]]


@pytest.fixture(scope="module")
def trained() -> Weights:
    """Convolution weights of a small net that four epochs of gradient descent have taught the digits."""
    (x, y), (test_x, test_y) = ((torch.from_numpy(x)[:, :, ::2, ::2], torch.from_numpy(y)) for x, y in load())
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 64, 1),
        nn.ReLU(), nn.Conv2d(64, 32, 1), nn.ReLU(), nn.Conv2d(32, 8, 5, padding=2), nn.ReLU(), nn.Flatten(),
        nn.Linear(512, 10),
    )  # fmt: skip
    optimiser = torch.optim.SGD(net.parameters(), 0.05, momentum=0.9, weight_decay=1e-4)
    for _ in range(4):
        for batch in torch.randperm(len(x)).split(32):
            optimiser.zero_grad()
            nn.functional.cross_entropy(net(x[batch]), y[batch]).backward()
            optimiser.step()
    with torch.no_grad():
        accuracy = float((net(test_x).argmax(dim=1) == test_y).float().mean())
    assert accuracy > 0.9, f"the net did not learn: {accuracy:.1%} of the test digits are right"
    return {name: w.detach().numpy() for name, w in net.named_parameters() if w.ndim == 4 and w.shape[1] > 1}


@pytest.fixture(scope="module")
def random() -> Weights:
    """Weights of the same kinds of layers as nothing has trained them."""
    rng = np.random.default_rng(0)
    shapes = {"a": (16, 16, 3, 3), "b": (32, 16, 3, 3), "c": (64, 32, 1, 1), "d": (32, 64, 1, 1), "e": (8, 32, 5, 5)}
    return {n: (rng.standard_normal(s) * rng.uniform(0.02, 0.1)).astype(np.float32) for n, s in shapes.items()}


@pytest.mark.parametrize("source", ["random", "trained"])
@pytest.mark.parametrize(("ratio", "alpha", "beta"), [(0.7, 0.95, 0.0), (0.5, 0.85, 0.75), (0.3, 0.0, 0.25)])
def test_bit_exact_against_an_independent_computation(
    new_layer: NewLayer, request: pytest.FixtureRequest, source: str, ratio: float, alpha: float, beta: float
) -> None:
    weights: Weights = request.getfixturevalue(source)
    shapes = {name: weight.shape for name, weight in weights.items()}
    layers = [new_layer(name=n, filters=s[0], channels=s[1], kernel=s[2:]) for n, s in shapes.items()]
    masks = VSKP(ratio=ratio, alpha=alpha, beta=beta).masks(layers, weights)
    expected = masks_in_numpy(weights, ratio, alpha, beta)
    assert set(masks) == set(expected) == set(weights)
    for name, want in expected.items():
        assert np.array_equal(masks[name], want), name
    assert 0.1 < 1 - np.mean([mask.mean() for mask in masks.values()]) <= ratio + 0.1


def test_retained_channels_are_rounded(new_layer: NewLayer) -> None:
    layer = new_layer(filters=8, channels=40)
    weight = np.random.default_rng(0).standard_normal(layer.weight_shape)
    for ratio, kept in ((0.55, 16), (0.5, 24), (0.99, 8), (0.05, 40), (0.1, 40)):
        method = VSKP(ratio=ratio, allocation="uniform", round_to=8)
        mask = method.masks([layer], {layer.name: weight})[layer.name]
        assert set(mask[:, :, 0, 0].sum(axis=1)) == {kept}, ratio


def test_clustered_groups_keep_more_of_the_scores(new_layer: NewLayer) -> None:
    rng = np.random.default_rng(0)
    layer = new_layer(filters=64, channels=32)
    kinds = rng.random((4, 32)) < 0.4  # filters of four kinds, shuffled
    weight = rng.standard_normal(layer.weight_shape) * np.where(kinds[rng.integers(0, 4, 64)], 1, 0.1)[..., None, None]
    scores = kernel_scores(weight, 0.95)
    kept = []
    for cluster in (False, True):
        method = VSKP(ratio=0.6, allocation="uniform", filter_group=8, cluster=cluster)
        mask = method.masks([layer], {layer.name: weight})[layer.name]
        assert from_mask(mask).filter_groups <= 8
        kept.append(scores[mask[:, :, 0, 0]].sum() / scores.sum())
    assert kept[1] > kept[0] + 0.1


def test_fully_connected_rule() -> None:
    weight = np.array([[3.0, -1.0, 2.0], [-0.5, 1.0, -4.0]])
    assert mask_of_matrix(weight, 0.5).tolist() == [[True, False, True], [False, False, True]]
    assert mask_of_matrix(weight, 0.34).sum() == 4
    assert mask_of_matrix(np.ones((1, 4)), 0.5).tolist() == [[False, False, True, True]]


def test_reactivation_restores_a_kernel_and_keeps_the_count() -> None:
    rng = np.random.default_rng(0)
    before = rng.standard_normal((6, 3, 3, 3))
    tuned = before + 0.5 * rng.standard_normal(before.shape)
    tuned[2] = before[2] * 1.0001
    assert unmoved_filters(before, tuned).tolist() == [2]
    original = rng.standard_normal((4, 6, 3, 3))
    original[3, 2] *= 10
    kept = np.ones((4, 6), bool)
    kept[:, 2] = kept[:, 0] = False
    mask = np.broadcast_to(kept[:, :, None, None], original.shape).copy()
    after = np.where(mask, original * 2, 0)
    new, weight = reactivate(np.array([2]), mask, original, after)
    sizes = np.abs(after[3]).sum(axis=(1, 2))
    loses = min((c for c in range(6) if kept[3, c]), key=lambda c: sizes[c])
    want = kept.copy()
    want[3, [2, loses]] = True, False
    assert np.array_equal(new[:, :, 0, 0], want)
    assert np.array_equal(weight[3, 2], original[3, 2])
    assert not weight[3, loses].any()
    assert np.array_equal(weight[:3], after[:3])
    assert (weight[~new] == 0).all()


def test_1x1_layers_may_share_lists_among_more_filters(new_layer: NewLayer) -> None:
    wide, point = (
        new_layer(name=name, filters=8, channels=16, kernel=(size, size)) for name, size in (("a", 3), ("b", 1))
    )
    rng = np.random.default_rng(0)
    weights = {layer.name: rng.standard_normal(layer.weight_shape) for layer in (wide, point)}
    for of_point, expected in ((None, 2), (4, 4)):
        masks = VSKP(0.5, "uniform", filter_group=2, filter_group_1x1=of_point).masks([wide, point], weights)
        for layer, size in ((wide, 2), (point, expected)):
            lists = masks[layer.name][:, :, 0, 0]
            assert all((lists[first : first + size] == lists[first]).all() for first in range(0, 8, size))
            assert len(np.unique(lists, axis=0)) == 8 // size
    with pytest.raises(InputError, match="--filter-group-1x1 0: out of range; give 1 or more"):
        VSKP(filter_group_1x1=0)
