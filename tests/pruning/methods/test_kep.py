"""KEP: the projection of Lemma 1, ties, sharing, allocation, its own index bytes; what it leaves of known nets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import nn

from examples.nets import resnet, vgg
from tests.pruning.known_nets import KnownNet
from trtkp.errors import InputError
from trtkp.index.conv_layer import ConvLayer
from trtkp.index.index_set import from_mask
from trtkp.pruning.granularity import Blocks
from trtkp.pruning.method import Method
from trtkp.pruning.methods.kep import KEP, SHARES, block_top_n_mask, paper_index_bytes, top_n_mask

NewLayer = Callable[..., ConvLayer]
# few values, so that ties are common
WEIGHTS = hnp.arrays(np.float32, (4, 2, 3, 3), elements=st.sampled_from([-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0]))


def distance(planes: np.ndarray[Any, Any], kept: tuple[int, ...]) -> float:
    """Squared distance of planes [..., taps] to themselves with only some positions kept."""
    return float(np.square(np.delete(planes, kept, axis=-1).astype(np.float64)).sum())


def nearest(planes: np.ndarray[Any, Any], n: int) -> float:
    return min(distance(planes, kept) for kept in combinations(range(planes.shape[-1]), n))


@settings(max_examples=25)
@given(WEIGHTS, st.integers(1, 9))
def test_lemma_1_keeps_the_nearest_of_all_patterns(weight: np.ndarray[Any, Any], n: int) -> None:
    mask = top_n_mask(weight, n)
    planes, kept = weight.reshape(8, 9), mask.reshape(8, 9)
    assert (kept.sum(axis=1) == n).all()
    for plane, positions in zip(planes, kept, strict=True):
        assert distance(plane, tuple(np.flatnonzero(positions))) == nearest(plane, n)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("share", ["per-channel", "per-filter", "per-layer"])
@settings(max_examples=10)
@given(weight=WEIGHTS, n=st.integers(1, 9))
def test_shared_positions_are_the_nearest_too(weight: np.ndarray[Any, Any], n: int, share: str, groups: int) -> None:
    mask = top_n_mask(weight, n, SHARES[share], groups).reshape(groups, 4 // groups, 2, 9)
    planes = weight.reshape(groups, 4 // groups, 2, 9)
    blocks: list[Any] = {
        # filters of an ONNX group see the same channels
        "per-channel": [np.s_[g, :, c] for g in range(groups) for c in range(2)],
        "per-filter": [np.s_[g, f] for g in range(groups) for f in range(4 // groups)],
        "per-layer": [np.s_[:]],
    }[share]
    for block in blocks:
        kept = mask[block].reshape(-1, 9)
        assert (kept == kept[0]).all()
        assert kept[0].sum() == n
        chosen = distance(planes[block].reshape(-1, 9), tuple(np.flatnonzero(kept[0])))
        assert chosen == nearest(planes[block].reshape(-1, 9), n)


def test_of_equal_elements_the_lower_tap_is_pruned_first() -> None:
    weight = np.array([1, -1, 1, 2, -1, 1, 1, 0, -1], np.float32).reshape(1, 1, 3, 3)
    for n, kept in ((1, [3]), (2, [3, 8]), (3, [3, 6, 8]), (4, [3, 5, 6, 8]), (8, [0, 1, 2, 3, 4, 5, 6, 8])):
        assert np.flatnonzero(top_n_mask(weight, n)).tolist() == kept
    for shared in SHARES.values():
        assert np.flatnonzero(top_n_mask(np.ones((1, 1, 3, 3), np.float16), 4, shared)).tolist() == [5, 6, 7, 8]


def test_small_float16_weights_are_ranked() -> None:
    weight = np.arange(9, 0, -1, dtype=np.float16).reshape(1, 1, 3, 3) * np.float16(6e-8)
    assert np.flatnonzero(top_n_mask(weight, 2)).tolist() == [0, 1]  # their squares are 0 in float16


def test_masks_use_n_share_and_groups_of_each_layer(new_layer: NewLayer) -> None:
    rng = np.random.default_rng(0)
    layers = [new_layer(name="a"), new_layer(name="b", filters=4, channels=2, groups=2, kernel=(5, 5))]
    weights = {layer.name: rng.normal(size=layer.weight_shape) for layer in layers}
    for share, shared in SHARES.items():
        masks = KEP(n=3, share=share).masks(layers, weights)
        assert list(masks) == ["a", "b"]
        for layer in layers:
            want = top_n_mask(weights[layer.name], 3, shared, layer.groups)
            assert np.array_equal(masks[layer.name], want)
            assert masks[layer.name].dtype == bool


def test_allocation_by_n(new_layer: NewLayer) -> None:
    layers = [new_layer(name="a"), new_layer(name="b", kernel=(1, 2))]
    assert KEP(n=2).allocate(layers, {}) == {"a": 2, "b": 2}
    assert KEP().allocate(layers[:1], {}) == {"a": 4}
    with pytest.raises(InputError, match="n = 3, but a 1x2 kernel has 2 elements; give --n 2 or less") as error:
        KEP(n=3).allocate(layers, {})
    assert error.value.layer == "b"


@pytest.mark.parametrize(
    ("ratio", "n_3x3", "n_5x5"), [(0.0, 9, 25), (0.1, 8, 22), (0.6, 4, 10), (2 / 3, 3, 8), (0.95, 1, 1), (0.999, 1, 1)]
)
def test_uniform_allocation(new_layer: NewLayer, ratio: float, n_3x3: int, n_5x5: int) -> None:
    layers = [new_layer(name="a"), new_layer(name="b", kernel=(5, 5))]
    assert KEP(ratio=ratio, allocation="uniform").allocate(layers, {}) == {"a": n_3x3, "b": n_5x5}


# Two planes of 1 to 4 and 11 to 14, one of 21 to 24: thresholds fall between known weights.
HAND_MADE = {
    "low": np.array([[[[1, -2], [3, 4]]], [[[-11, 12], [13, 14]]]], np.float32),
    "high": np.array([[[[21, 22], [-23, 24]]]], np.float32),
}


@pytest.mark.parametrize(
    ("ratio", "low", "high"),
    [
        (0.0, 4, 4),  # everything
        (1 / 12, 4, 4),  # threshold 2: 7 of low's 8, 3.5 per plane, to the even neighbour
        (2 / 12, 3, 4),  # 6 of 8
        (5 / 12, 2, 4),  # threshold 12: 3 of 8, 1.5 per plane
        (6 / 12, 1, 4),  # 2 of 8
        (8 / 12, 1, 4),  # none of low, but one element stays
        (9 / 12, 1, 3),
        (11 / 12, 1, 1),
        (0.99, 1, 1),
    ],
)
def test_global_allocation(new_layer: NewLayer, ratio: float, low: int, high: int) -> None:
    layers = [
        new_layer(name="low", filters=2, channels=1, kernel=(2, 2)),
        new_layer(name="high", filters=1, channels=1, kernel=(2, 2)),
    ]
    method = KEP(ratio=ratio)
    assert method.allocate(layers, HAND_MADE) == {"low": low, "high": high}
    masks = method.masks(layers, HAND_MADE)
    assert masks["low"].sum() == 2 * low
    assert masks["high"].sum() == high


def test_the_global_threshold_is_exact_where_the_share_is_an_integer(new_layer: NewLayer) -> None:
    layer = new_layer(filters=1, channels=1, kernel=(10, 10))
    weight = np.random.default_rng(0).permutation(np.arange(1, 101)).reshape(layer.weight_shape)
    for hundredths in range(100):
        n = KEP(ratio=hundredths / 100).allocate([layer], {layer.name: weight})
        assert n == {layer.name: 100 - hundredths}, hundredths


def test_scope(new_layer: NewLayer) -> None:
    assert isinstance(KEP(), Method)
    method = KEP()
    assert method.inapplicable(new_layer()) is None
    assert method.out_of_scope(new_layer()) is None
    assert "1x1 kernel" in str(method.inapplicable(new_layer(kernel=(1, 1))))
    assert "5x13 kernel" in str(method.inapplicable(new_layer(kernel=(5, 13))))
    assert method.inapplicable(new_layer(kernel=(8, 8))) is None
    assert method.out_of_scope(new_layer(stem=True)) == "stem"
    assert method.out_of_scope(new_layer(groups=4, channels=1)) == "depthwise"
    assert method.out_of_scope(new_layer(groups=2)) is None
    # a net with 1x3 kernels builds without options; an n that cannot be is still refused
    small = new_layer(kernel=(1, 3))
    assert method.out_of_scope(small) == "1x3 kernel: it has no more than 4 elements"
    assert method.out_of_scope(new_layer(kernel=(2, 2))) is not None
    assert KEP(n=4).out_of_scope(small) is None
    assert KEP(ratio=0.5).out_of_scope(small) is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"share": "all"}, "--share all: not known; use one of none, per-channel, per-filter, per-layer"),
        ({"allocation": "local"}, "--allocation local"),
        ({"n": 4, "ratio": 0.5}, "exclude each other"),
        ({"n": 0}, "--n 0"),
        ({"n": -1}, "--n -1"),
        ({"ratio": 1.0}, "--ratio 1: out of range"),
        ({"ratio": -0.1}, "--ratio -0.1"),
        ({"ratio": float("nan")}, "--ratio nan"),
        ({"share": "per-filter", "filter_group": 2}, "--share per-filter says already which planes share"),
        ({"filter_group": 0}, "--filter-group 0: out of range; give 1 or more"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        KEP(**options)


def test_settings_say_what_takes_effect() -> None:
    block = {"filter_group": 1, "channel_block": 1, "cluster": False, "nm": None}
    training = {"refresh": False, "delta": 1e-4, "every": 10, "norm": "l2"}
    uniform = {"n": 4, "ratio": None, "allocation": "uniform", "share": "none", **block, **training}
    assert KEP().settings() == uniform
    assert KEP(n=2, share="per-layer").settings() == {**uniform, "n": 2, "share": "per-layer"}
    assert KEP(ratio=0.5).settings() == {**uniform, "n": None, "ratio": 0.5, "allocation": "global"}


def test_index_bytes_of_the_paper() -> None:
    rng = np.random.default_rng(0)
    index = from_mask(top_n_mask(rng.normal(size=(512, 512, 3, 3)), 4))
    # pattern ids, against 524 288 bytes of nibbles
    assert paper_index_bytes(index, "none") == 262_144


@pytest.mark.parametrize(
    ("shape", "n", "share", "groups", "expected"),
    [
        ((8, 6, 3, 3), 1, "none", 1, 24),  # a nibble each, against 48 pattern ids
        ((8, 6, 3, 3), 2, "none", 1, 48),  # equal
        ((8, 6, 3, 3), 4, "none", 1, 48),
        ((8, 6, 3, 3), 4, "per-channel", 1, 6),
        ((8, 6, 3, 3), 4, "per-channel", 2, 12),
        ((8, 6, 3, 3), 4, "per-filter", 1, 8),
        ((8, 6, 3, 3), 4, "per-layer", 1, 1),
        ((3, 3, 3, 3), 1, "none", 1, 5),  # nine nibbles
        ((8, 6, 4, 4), 4, "none", 1, 96),  # C(16, 4) = 1820: two bytes, or four nibbles
        ((8, 6, 5, 5), 3, "none", 1, 96),  # C(25, 3) = 2300: two bytes, against three
        ((8, 6, 5, 5), 10, "none", 1, 192),  # C(25, 10) > 2^16: four bytes
    ],
)
def test_index_bytes_by_share(shape: Any, n: int, share: str, groups: int, expected: int) -> None:
    weight = np.random.default_rng(1).normal(size=shape)
    index = from_mask(top_n_mask(weight, n, SHARES[share], groups), groups)
    assert paper_index_bytes(index, share) == expected


@settings(max_examples=10)
@given(weight=WEIGHTS, n=st.integers(1, 9), group=st.integers(1, 4), block=st.integers(1, 2))
def test_planes_of_a_block_share_the_nearest_positions(weight: Any, n: int, group: int, block: int) -> None:
    mask = block_top_n_mask(weight, n, Blocks(4, 2, 1, group, block)).reshape(4, 2, 9)
    planes = weight.reshape(4, 2, 9)
    for first in range(0, 4, group):
        for channel in range(0, 2, block):
            part = np.s_[first : first + group, channel : channel + block]
            kept = mask[part].reshape(-1, 9)
            assert (kept == kept[0]).all()
            chosen = distance(planes[part].reshape(-1, 9), tuple(np.flatnonzero(kept[0])))
            assert chosen == pytest.approx(nearest(planes[part].reshape(-1, 9), n))


def test_group_lists_in_the_mask_and_so_in_the_penalty(new_layer: NewLayer) -> None:
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Conv2d(6, 8, 3))
    layer = new_layer(name="0.weight", filters=8, channels=6)
    for cluster in (False, True):
        method = KEP(n=3, filter_group=4, cluster=cluster, refresh=True, every=1, delta=0.5)
        penalty = method.regulariser(net, [layer])
        mask = penalty.masks()["0.weight"]
        assert from_mask(mask).filter_groups <= 2
        penalty.after_step(0.1)
        loss = penalty.loss()
        weight = net[0].weight.detach().numpy()
        assert float(loss) == pytest.approx(0.25 * np.square(weight[~mask]).sum(), rel=1e-5)
    with torch.no_grad():
        net[0].weight.copy_(net[0].weight.flip(3))
    penalty.after_epoch(1)  # ranks again
    assert np.array_equal(penalty.masks()["0.weight"], mask[..., ::-1])


def test_refresh_groups_clustered_filters_again_after_every_epoch(new_layer: NewLayer) -> None:
    rng = np.random.default_rng(0)
    net = nn.Sequential(nn.Conv2d(6, 8, 3))
    layer = new_layer(name="0.weight", filters=8, channels=6)
    kinds = np.where(rng.random((2, 6, 3, 3)) < 0.4, 1.0, 0.1)
    weight = torch.from_numpy(kinds[[0, 1] * 4] * rng.uniform(0.9, 1.1, layer.weight_shape)).float()
    order = [0, 1, 2, 3, 5, 4, 7, 6]  # two filters change places with their neighbours of the other kind
    for refresh in (False, True):
        method = KEP(n=3, filter_group=4, cluster=True, refresh=refresh, every=1)
        with torch.no_grad():
            net[0].weight.copy_(weight)
        penalty = method.regulariser(net, [layer])
        before = penalty.masks()["0.weight"]
        with torch.no_grad():
            net[0].weight.copy_(weight[order])
        penalty.after_step(0.1)
        penalty.after_epoch(1)
        after = penalty.masks()["0.weight"]
        assert np.array_equal(after, before[order] if refresh else before)
        again = method.regulariser(nn.Sequential(nn.Conv2d(6, 8, 3)), [layer])
        assert not np.array_equal(again.masks()["0.weight"], after)
        again.restore(penalty.state())
        assert np.array_equal(again.masks()["0.weight"], after)
        assert again.report()["mu"] == penalty.report()["mu"] > 0


# --- the known nets ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Net:
    """A net, what KEP prunes in it, its constants, and the shares of params and MACs removed at n = 4, 3, 2, 1."""

    factory: Callable[[], nn.Module]
    shape: tuple[int, int, int]
    include: tuple[str, ...]
    pruned: Callable[[str, nn.Conv2d], bool]
    count: int
    params: int
    macs: int
    prunable: tuple[float, float]  # percent of params and of MACs, with the digits that are known
    digits: tuple[int, int]


NETS = {
    "vgg16-cifar": Net(
        vgg.vgg16_cifar, (3, 32, 32), ("*",), lambda name, conv: True, 13,
        14_987_722, 313_196_544 + 267_264, (98.15, 99.9), (2, 1),
    ),
    "resnet56-cifar": Net(
        resnet.resnet56_cifar, (3, 32, 32), (), lambda name, conv: name != "conv1", 54,
        853_018, 125_485_696, (99.4, 99.6), (1, 1),
    ),
    "resnet50": Net(
        resnet.resnet50, (3, 224, 224), (), lambda name, conv: conv.kernel_size == (3, 3), 16,
        25_557_032, 4_089_184_256, (44.3, 45.2), (1, 1),
    ),
}  # fmt: skip
RESNET50_PERCENT = {4: (24.6, 25.1), 2: (34.4, 35.2), 1: (39.4, 40.2)}


def prunable_counts(net: Net) -> tuple[int, int, int]:
    """Layers, weights and MACs that the method may prune, from the modules alone."""
    counts = [0, 0, 0]
    with torch.device("meta"):
        model = net.factory().eval()

        def hook(name: str) -> Callable[..., None]:
            def count(layer: nn.Conv2d, inputs: Any, out: torch.Tensor) -> None:
                if net.pruned(name, layer):
                    assert layer.kernel_size == (3, 3)
                    counts[0] += 1
                    counts[1] += layer.weight.numel()
                    counts[2] += layer.weight.numel() * out.shape[2] * out.shape[3]

            return count

        for name, module in model.named_modules():
            if isinstance(module, nn.Conv2d):
                module.register_forward_hook(hook(name))
        with torch.no_grad():
            model(torch.empty(1, *net.shape))
    return counts[0], counts[1], counts[2]


@pytest.mark.slow
@pytest.mark.parametrize("name", NETS)
def test_removed_shares_of_known_nets_are_exact(name: str, tmp_path: Path) -> None:
    net = NETS[name]
    torch.manual_seed(0)
    known = KnownNet(net.factory(), net.shape, tmp_path)
    assert known.table.left_out == {}
    assert (known.table.params, known.table.macs) == (net.params, net.macs)
    count, prunable_params, prunable_macs = prunable_counts(net)
    assert count == net.count
    assert round(100 * prunable_params / net.params, net.digits[0]) == net.prunable[0]
    assert round(100 * prunable_macs / net.macs, net.digits[1]) == net.prunable[1]
    for n in (4, 3, 2, 1):
        pruning, result = known.pruned(KEP(n=n), net.include)
        assert len(pruning.masks) == count
        assert (result.params.dense, result.macs.dense) == (net.params, net.macs)
        assert result.params.removed == Fraction(9 - n, 9) * Fraction(prunable_params, net.params)
        assert result.macs.removed == Fraction(9 - n, 9) * Fraction(prunable_macs, net.macs)
        assert {cost.density for cost in result.layers if cost.kind} == {n / 9}
        assert sum(cost.macs.dense for cost in result.layers) <= net.macs
        if name == "resnet50" and n in RESNET50_PERCENT:
            percent = tuple(round(100 * float(cost.removed), 1) for cost in (result.params, result.macs))
            assert percent == RESNET50_PERCENT[n]
