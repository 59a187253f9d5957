"""2:4 inside lists: what is kept, the exact round trip, every rule of the refinement, and the way to the bundle."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from examples.nets import export
from trtkp.errors import InputError
from trtkp.index.accounting import account
from trtkp.index.conv_layer import ConvLayer
from trtkp.index.index_set import IndexSet, Kind, from_mask
from trtkp.index.storage import load_index_sets, save_index_sets
from trtkp.model import load_model
from trtkp.pipeline.build import build
from trtkp.pipeline.options import BuildOptions
from trtkp.pruning.methods.kep import KEP
from trtkp.pruning.methods.pptkp import PPTKP
from trtkp.pruning.methods.registry import make_method
from trtkp.pruning.methods.vskp import VSKP
from trtkp.pruning.nm import expected_kept, in_expected_order, list_ratio, refined, two_four_mask
from trtkp.pruning.one_shot import list_weights, prune_one_shot
from trtkp.pruning.run import PruneOptions, prune
from trtkp.pruning.train.recipe import Recipe, Training
from trtkp.verification.bundle import verify

Array = np.ndarray[Any, Any]


def product_lists(seed: int) -> IndexSet:
    """Lists of channels times taps for a few groups, some empty, each in an order of its own."""
    rng = np.random.default_rng(seed)
    groups, per_group = int(rng.integers(1, 3)), int(rng.integers(1, 6))
    shape = (groups * per_group, int(rng.integers(1, 11)), int(rng.integers(1, 4)), int(rng.integers(1, 4)))
    mask = np.zeros(shape, bool)
    for filters in np.array_split(np.arange(shape[0]), groups * 2):
        channels, taps = rng.random(shape[1]) < 0.7, rng.random(shape[2:]) < 0.7
        mask[filters] = channels[:, None, None] & taps
    index = from_mask(mask, groups)
    channel = index.channel.copy()
    for first, end in zip(index.entry_ptr[:-1], index.entry_ptr[1:], strict=True):
        channel[first:end] = rng.permutation(channel[first:end])
    return replace(index, channel=channel)


@given(st.integers(0, 2000))
def test_two_of_every_four(seed: int) -> None:
    index = product_lists(seed)
    weight = np.random.default_rng(seed).normal(size=index.shape)
    mask = two_four_mask(weight, index)
    lists = index.list_mask()
    assert not (mask & ~lists).any()
    for filters, taps, channels in index.products():
        for first in range(0, len(channels), 4):
            quad = channels[first : first + 4]
            for f in filters:
                for r, s in (divmod(int(t), index.shape[3]) for t in taps):
                    magnitude, kept = np.abs(weight[f, quad, r, s]), mask[f, quad, r, s]
                    assert kept.sum() == min(2, len(quad))
                    assert magnitude[kept].min() >= magnitude[~kept].max(initial=0)


@given(st.integers(0, 2000), st.booleans())
def test_round_trip_is_exact(seed: int, fewer: bool) -> None:
    index = product_lists(seed)
    rng = np.random.default_rng(seed + 1)
    mask = two_four_mask(rng.normal(size=index.shape), index)
    if fewer:  # at most two: none or one will do
        mask &= rng.random(mask.shape) < 0.5
    refined = index.refined(mask)
    refined.validate("layer")
    assert np.array_equal(refined.mask(), mask)
    assert np.array_equal(refined.list_mask(), index.list_mask())
    assert (refined.retained, refined.listed) == (mask.sum(), index.retained)
    assert refined.density == mask.mean()
    assert refined.kind == index.kind
    assert refined.nbytes == index.nbytes + -(-index.retained // 8)


def test_bits_by_hand() -> None:
    """Group by group, then filter, tap, entry; the lowest bit first."""
    index = from_mask(np.ones((2, 4, 1, 2), bool))
    mask = np.zeros((2, 4, 1, 2), bool)
    mask[0, 0, 0, 0] = mask[0, 2, 0, 1] = mask[1, 3, 0, 0] = mask[1, 1, 0, 1] = True
    assert index.refined(mask).nm_mask is not None
    assert index.refined(mask).nm_mask.tolist() == [0b0100_0001, 0b0010_1000]  # type: ignore[union-attr]


@pytest.mark.parametrize("taps", [(1, 1), (3, 3)])
def test_equal_magnitudes_keep_the_earlier_entry(taps: tuple[int, int]) -> None:
    index = from_mask(np.ones((1, 6, *taps), bool))
    kept = two_four_mask(np.ones((1, 6, *taps)), index)
    assert kept[0, :, 0, 0].tolist() == [True, True, False, False, True, True]


def test_what_can_be_expected_to_stay_is_what_stays() -> None:
    """Over random orders of the channels, which are random quads, every weight stays as often as is expected."""
    rng, channels, orders = np.random.default_rng(0), 64, 2000
    weight = rng.normal(size=(1, channels, 1, 2))
    index, stayed = from_mask(np.ones(weight.shape, bool)), np.zeros(weight.shape)
    for _ in range(orders):
        order = rng.permutation(channels)
        stayed[:, order] += two_four_mask(weight[:, order], index)
    share = expected_kept(weight) / weight
    assert np.abs(share - stayed / orders).max() < 0.05
    assert np.abs(share - stayed / orders).mean() < 0.012
    assert share.mean() == pytest.approx(0.5, abs=1e-3)


def test_the_formula_by_hand() -> None:
    """Four channels: q is 1/8, 3/8, 5/8, 7/8 in the order of the magnitudes; of equal ones the later is above."""
    weight = np.array([[-4, 1, 2, 3], [5, 5, 5, 5]], np.float16).reshape(2, 4, 1, 1)
    p = [q * q * (3 - 2 * q) for q in (0.125, 0.375, 0.625, 0.875)]
    got = expected_kept(weight)
    np.testing.assert_allclose(got[0, :, 0, 0], [-4 * p[3], p[0], 2 * p[1], 3 * p[2]])
    np.testing.assert_allclose(got[1, :, 0, 0], np.multiply(5, p))


def test_norms_stay_a_set_in_the_order_of_what_is_expected() -> None:
    weight = np.random.default_rng(0).normal(size=(6, 32, 3, 3)).astype(np.float32)
    weight[2, 5:9] = 0
    norms, scaled = (np.abs(w).sum(axis=(2, 3), dtype=np.float64) for w in (weight, in_expected_order(weight)))
    expected = np.abs(expected_kept(weight)).sum(axis=(2, 3))
    np.testing.assert_allclose(np.sort(scaled, axis=1), np.sort(norms, axis=1), rtol=1e-6)
    assert np.array_equal(np.argsort(scaled, axis=1, kind="stable"), np.argsort(expected, axis=1, kind="stable"))
    assert not np.array_equal(np.argsort(norms, axis=1), np.argsort(expected, axis=1))
    single = weight[:, :, :1, :1]  # one weight a kernel: the order is the same
    assert np.array_equal(in_expected_order(single), single)


@pytest.mark.parametrize("ratio", [0.75, 0.875])
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("vskp", {}),
        ("vskp", {"filter_group": 16}),
        ("l1", {"allocation": "global"}),
        ("l1", {"filter_group": 8}),
        ("pptkp", {}),
        ("pptkp", {"allocation": "global"}),
    ],
)
def test_lists_chosen_with_two_four_in_view_retain_more(
    name: str, settings: dict[str, Any], ratio: float, new_layer: Any
) -> None:
    """The mean magnitude that stays, over nets of random weights, beside lists chosen by whole kernels."""
    layers = [new_layer(filters=64, channels=32, name=name) for name in "abc"]
    method = make_method(name, **{"ratio": ratio, "allocation": "uniform", "nm": "2:4", **settings})
    gains = []
    for seed in range(10):
        rng = np.random.default_rng(seed)
        weights = {
            layer.name: rng.normal(size=layer.weight_shape) * rng.uniform(0.5, 1.5, (64, 1, 1, 1)) for layer in layers
        }
        kept = {}
        for way, masks in (
            ("plain", refined(method.masks(layers, weights), weights, layers)),
            ("expected", prune_one_shot(method, layers, weights).masks),
        ):
            values = np.concatenate([np.abs(weights[layer][mask]) for layer, mask in masks.items()])
            kept[way] = len(values), values.sum()
        assert kept["expected"][0] == pytest.approx(kept["plain"][0], rel=1e-3)
        gains.append(kept["expected"][1] / kept["plain"][1] - 1)
    assert np.mean(gains) > 3e-4


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("vskp", {"ratio": 0.5}),
        ("pptkp", {"ratio": 0.5}),
        ("kep", {"n": 4, "share": "per-filter"}),
        ("soks", {"ratio": 7 / 9, "groups": 2}),
    ],
)
def test_lists_that_keep_all_channels_are_those_of_the_weights(
    name: str, settings: dict[str, Any], new_layer: Any
) -> None:
    layer, rng = new_layer(filters=16, channels=32, name="w"), np.random.default_rng(0)
    weights = {"w": rng.normal(size=layer.weight_shape)}
    method = make_method(name, allocation="uniform", nm="2:4", **settings)
    pruning = prune_one_shot(method, [layer], weights)
    lists = method.masks([layer], weights)
    assert np.array_equal(pruning.lists["w"], lists["w"])
    assert np.array_equal(pruning.masks["w"], refined(lists, weights, [layer])["w"])


def test_a_pruning_point_is_one_of_the_norms_as_they_are(new_layer: Any) -> None:
    layer, rng = new_layer(filters=64, channels=64, name="w"), np.random.default_rng(0)
    scale = np.where(rng.random((64, 64, 1, 1)) < 0.6, 0.2, 1.0)  # two heaps of norms, and a margin between them
    weights = {"w": rng.uniform(0.5, 1.5, layer.weight_shape) * scale}
    method = PPTKP(point=1, nm="2:4")
    (lists,) = prune_one_shot(method, [layer], weights).lists.values()
    assert np.array_equal(lists[:, :, 0, 0], scale[:, :, 0, 0] == 1)
    assert list_weights(method, weights) is weights


def test_trained_lists_are_chosen_so_too(new_layer: Any) -> None:
    """By the weights at the end of the training, with the method's own settings and with those of an allocation."""
    net, layer = nn.Sequential(nn.Conv2d(32, 32, 3)), new_layer(filters=32, channels=32, name="0.weight")
    method = PPTKP(ratio=0.75, allocation="uniform", nm="2:4")
    regulariser = method.regulariser(net, [layer])
    with torch.no_grad():
        net[0].weight.copy_(torch.randn(net[0].weight.shape, generator=torch.Generator().manual_seed(0)))
    weights = {"0.weight": net[0].weight.detach().numpy()}
    lists = prune_one_shot(method, [layer], weights).lists["0.weight"]
    assert np.array_equal(regulariser.masks()["0.weight"], lists)
    assert not np.array_equal(method.masks([layer], weights)["0.weight"], lists)


def good() -> IndexSet:
    index = from_mask(np.ones((3, 5, 1, 2), bool))
    return index.refined(two_four_mask(np.arange(30.0).reshape(3, 5, 1, 2), index))


def bits(value: int, length: int = 4) -> Array:
    return np.full(length, value, np.uint8)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"nm_mask": np.zeros(4, np.int64)}, "nm_mask is int64"),
        ({"nm_mask": np.zeros((2, 2), np.uint8)}, r"nm_mask is uint8\[2-d\]"),
        ({"nm_mask": bits(0, 3)}, "nm_mask has 3 bytes for 30 weights"),
        ({"nm_mask": np.array([0, 0, 0, 0x40], np.uint8)}, "a bit beyond its last weight"),
        ({"nm_mask": bits(7)}, "keeps more than 2 of a quad"),
        ({"channel": np.array([0, 1, 2, 3, 3], np.uint16)}, "not unique"),
        ({"channel": np.array([0, 1, 2, 3, 5], np.uint16)}, "channel 5, the weight has 5"),
        ({"taps": np.array([3, 3, 3, 3, 1], np.uint64)}, "not the same channels at every tap"),
        ({"taps": np.array([3, 3, 3, 3, 0], np.uint64)}, "an entry without taps"),
    ],
)
def test_broken_rules_are_refused(changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        replace(good(), **changes).validate("layer")


def test_order_is_free_only_with_a_refinement() -> None:
    turned = replace(good(), channel=np.array([4, 2, 0, 1, 3], np.uint16))
    turned.validate("layer")
    with pytest.raises(InputError, match="ascending"):
        replace(turned, nm_mask=None).validate("layer")


def test_what_cannot_be_refined() -> None:
    pattern = from_mask(np.array([[1, 0], [1, 1]], bool).reshape(1, 2, 1, 2))
    with pytest.raises(InputError, match="not the same channels at every tap"):
        pattern.refined(np.zeros(pattern.shape, bool))
    with pytest.raises(InputError, match="not the same channels at every tap"):
        two_four_mask(np.ones(pattern.shape), pattern)
    lists = from_mask(np.ones((1, 4, 1, 1), bool))
    with pytest.raises(InputError, match="more than 2 of a quad"):
        lists.refined(np.ones((1, 4, 1, 1), bool))
    with pytest.raises(InputError, match="that no list holds"):
        from_mask(np.zeros((1, 4, 1, 1), bool)).refined(np.eye(4, dtype=bool)[:1].reshape(1, 4, 1, 1))


def test_stored_and_read_back(tmp_path: Path) -> None:
    sets = {f"layer.{seed}.weight": product_lists(seed) for seed in range(12)}
    sets = {name: i.refined(two_four_mask(np.ones(i.shape), i)) for name, i in sets.items()}
    sets["plain.weight"] = from_mask(np.ones((2, 3, 1, 1), bool))
    save_index_sets(tmp_path / "sets", sets)
    got = load_index_sets(tmp_path / "sets")
    for name, index in sets.items():
        assert np.array_equal(got[name].mask(), index.mask())
        assert np.array_equal(got[name].channel, index.channel)
        assert (got[name].nm_mask is None) == (index.nm_mask is None)


def test_vskp_with_two_four(new_layer: Any) -> None:
    """--ratio is what lists and 2:4 remove together."""
    layer = new_layer(filters=64, channels=64, name="conv.weight")
    weights = {layer.name: np.random.default_rng(0).normal(size=layer.weight_shape)}
    for ratio, want in ((0.0, 0.5), (0.5, 0.5), (0.75, 0.25), (0.875, 0.125)):
        method = VSKP(ratio=ratio, allocation="uniform", filter_group=16, nm="2:4")
        pruning = prune_one_shot(method, [layer], weights)
        (index,) = pruning.index_sets({layer.name: 1}).values()
        index.validate(layer.name)
        assert index.kind is Kind.KERNEL
        assert index.density == want
        assert index.filter_groups == (1 if ratio <= 0.5 else 4)
        assert np.array_equal(index.mask(), pruning.masks[layer.name])
        assert method.settings()["nm"] == "2:4"
        costs = account([layer], layer.params, layer.macs, {layer.name: index})
        assert costs.macs.retained == want * layer.macs
    assert [list_ratio(r) for r in (0.3, 0.5, 0.75)] == [0, 0, 0.5]
    with pytest.raises(InputError, match="--nm 1:2: not known"):
        VSKP(nm="1:2")


def test_two_four_by_an_allocation(new_layer: Any, tmp_path: Path) -> None:
    """The settings of an allocation file hold for the refinement too; a layer's own ratio is what both remove."""
    path = tmp_path / "a.json"
    path.write_text('{"method": "vskp", "settings": {"nm": "2:4"}, "layers": {"w": {"ratio": 0.75}}}')
    layer = new_layer(filters=16, channels=32, name="w")
    weight = np.random.default_rng(0).normal(size=layer.weight_shape)
    method = make_method("vskp", allocation=str(path))
    pruning = prune_one_shot(method, [layer], {"w": weight})
    assert pruning.lists["w"].mean() == 0.5
    assert pruning.masks["w"].mean() == 0.25
    alone = prune_one_shot(VSKP(0.75, "uniform", nm="2:4"), [layer], {"w": weight})
    assert np.array_equal(pruning.lists["w"], alone.lists["w"])


@pytest.mark.parametrize(
    ("name", "settings", "kept"),
    [
        ("vskp", {"ratio": 0.75, "filter_group": 16}, 0.25),
        ("l1", {"ratio": 0.5}, 0.5),
        ("pptkp", {"ratio": 0.75, "filter_group": 8, "equalise": True}, 0.25),
        ("soks", {"ratio": 7 / 9, "groups": 2}, 2 / 9),
        ("kep", {"n": 4, "share": "per-layer"}, 2 / 9),
        ("kep", {"ratio": 7 / 9, "share": "per-filter"}, 2 / 9),
    ],
)
def test_every_method_with_lists_that_are_products(
    name: str, settings: dict[str, Any], kept: float, new_layer: Any
) -> None:
    layer, rng = new_layer(filters=32, channels=64, name="w"), np.random.default_rng(0)
    method = make_method(name, allocation="uniform", nm="2:4", **settings)
    pruning = prune_one_shot(method, [layer], {"w": rng.normal(size=layer.weight_shape)})
    (index,) = pruning.index_sets({"w": 1}).values()
    index.validate("w")
    assert index.nm_mask is not None
    assert index.density == pytest.approx(kept)
    assert index.list_mask().mean() == pytest.approx(2 * kept)


def test_lists_that_are_no_products_are_refused_at_once() -> None:
    for share in ("none", "per-channel"):
        with pytest.raises(InputError, match="give --share per-filter or per-layer"):
            make_method("kep", nm="2:4", share=share)
    for name in ("dppnet", "channels"):
        with pytest.raises(InputError, match=f"--nm is a setting of kep, vskp, pptkp, soks and l1, not of {name}"):
            make_method(name, nm="2:4")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``net.pt2`` and ``data.npz``, three classes of stripes."""
    folder = tmp_path_factory.mktemp("nm")
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 3),
    ).eval()  # fmt: skip
    torch.export.save(export(net, (1, 8, 8)), folder / "net.pt2")
    rng, labels = np.random.default_rng(0), np.arange(150) % 3
    images = rng.normal(0, 0.3, (150, 1, 8, 8)).astype(np.float32)
    images[labels == 0, :, ::2] += 1
    images[labels == 1, :, :, ::2] += 1
    np.savez(folder / "data.npz", x=images, y=labels)
    return folder


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("vskp", {"ratio": 0.75, "filter_group": 8, "allocation": "uniform"}),
        ("kep", {"n": 4, "share": "per-layer", "delta": 0.05, "every": 1}),
        ("soks", {"ratio": 7 / 9, "groups": 2, "allocation": "uniform"}),
        ("pptkp", {"ratio": 0.75, "filter_group": 4, "equalise": True, "allocation": "uniform"}),
    ],
)
def test_trained_with_exact_zeros_and_taken_up_again(
    name: str, settings: dict[str, Any], trained: Path, tmp_path: Path
) -> None:
    towards = Recipe(epochs=2, batch=30, lr=0.05) if name != "vskp" else Recipe()
    options = PruneOptions(training=Training(regularise=towards, finetune=Recipe(epochs=2, batch=30, lr=0.05)))
    arguments: dict[str, Any] = {"method": name, "options": options, "data": trained / "data.npz", "nm": "2:4"}
    whole = prune(trained / "net.pt2", tmp_path / "whole", **arguments, **settings)
    weights = load_model(whole.model).parameters()
    for weight, index in whole.index_sets.items():
        assert index.nm_mask is not None
        assert not weights[weight][~index.mask()].any()
        assert np.count_nonzero(weights[weight]) == index.mask().sum()
        assert index.mask().sum() * 2 == index.list_mask().sum()

    def stop(phase: str, done: int, total: int) -> None:
        del total
        if phase == "Finetune 2/2" and done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prune(trained / "net.pt2", tmp_path / "p", **arguments, **settings, progress=stop)
    again = prune(trained / "net.pt2", tmp_path / "p", **arguments, **settings)
    for weight, value in load_model(again.model).parameters().items():
        assert np.array_equal(value, weights[weight]), weight
    for weight, index in again.index_sets.items():
        assert np.array_equal(index.mask(), whole.index_sets[weight].mask())
        assert np.array_equal(index.list_mask(), whole.index_sets[weight].list_mask())
    bundle = build(tmp_path / "p", tmp_path / "b", options=BuildOptions(backend="onnxruntime"))
    assert all(index.nm_mask is not None for index in bundle.index_sets.values())
    ops = {node.op_type for node in onnx.load(bundle.path / "model.onnx").graph.node}
    assert any("24" in op for op in ops)
    assert verify(bundle.path).ok


def test_the_growing_penalty_pushes_what_either_of_the_two_drops() -> None:
    net = nn.Sequential(nn.Conv2d(8, 8, 3))
    layer = ConvLayer("0.weight", "0", 8, 8, (3, 3), (1, 1), (0, 0, 0, 0), (1, 1), 1, (8, 8), (6, 6), bias=True,
                      stem=False, repeats=1)  # fmt: skip
    penalty = KEP(n=4, share="per-layer", nm="2:4", delta=1.0, every=1).regulariser(net, [layer])
    weight = net[0].weight.detach().numpy()
    lists = penalty.masks()["0.weight"]
    kept = refined({"0.weight": lists}, {"0.weight": weight}, [layer])["0.weight"]
    assert (lists.sum(), kept.sum()) == (8 * 8 * 4, 8 * 8 * 2)
    penalty.after_step(0.1)
    assert float(penalty.loss()) == pytest.approx(0.5 * np.square(weight[~kept]).sum(), rel=1e-5)
    with torch.no_grad():
        net[0].weight.copy_(torch.randn_like(net[0].weight))
    state = penalty.state()
    penalty.refresh(penalty.masks())
    penalty.restore(state)
    assert np.array_equal(penalty.state()["kept.0.weight"].numpy().astype(bool), kept)
