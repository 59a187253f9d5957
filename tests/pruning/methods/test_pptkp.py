"""PPT-KP: the penalty by hand, margins at the breakpoints, pruning points, thresholds, and the paper's pair."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from examples.nets import export, resnet
from trtkp.errors import InputError
from trtkp.index.accounting import Cost, account
from trtkp.index.conv_layer import ConvLayer
from trtkp.index.index_set import from_mask
from trtkp.model import SourceModel, load_model
from trtkp.model.layers import named_graph, read_layers
from trtkp.pipeline.records import paper_counts
from trtkp.pruning.method import Method
from trtkp.pruning.methods.allocation import Allocated, Allocation, LayerSettings
from trtkp.pruning.methods.pptkp import PPTKP, kernel_norms, pruning_points
from trtkp.pruning.methods.pptkp_penalty import NormDependentL1
from trtkp.pruning.methods.registry import make_method
from trtkp.pruning.methods.vskp import VSKP
from trtkp.pruning.one_shot import prune_one_shot
from trtkp.shapes import make_profile

NewLayer = Callable[..., ConvLayer]


def net_of(*shapes: tuple[int, int, int], seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(*(nn.Conv2d(c, f, k, padding=k // 2, bias=False) for f, c, k in shapes))


def layers_of(net: nn.Sequential, new_layer: NewLayer) -> list[ConvLayer]:
    return [
        new_layer(name=f"{i}.weight", filters=m.out_channels, channels=m.in_channels, kernel=m.kernel_size)
        for i, m in enumerate(net)
    ]


def test_gradient_is_sign_times_the_intensity_of_the_norm(new_layer: NewLayer) -> None:
    net = net_of((4, 3, 3), (4, 4, 1))
    method = PPTKP(strength=0.5, quantiles=(0.5,), intensities=(3.0, 1.0))
    regulariser = method.regulariser(net, layers_of(net, new_layer))
    for i, factor in ((0, 1.0), (1, 0.6)):
        weight = net[i].weight
        tau = float(regulariser.breakpoints[f"{i}.weight"][0])
        weight.grad = torch.ones_like(weight)
        regulariser.after_backward()
        for o in range(weight.shape[0]):
            for c in range(weight.shape[1]):
                norm = float(weight[o, c].detach().abs().sum())
                gamma = 3.0 if norm < tau else 1.0
                torch.testing.assert_close(weight.grad[o, c], 1 + factor * 0.5 * gamma * weight[o, c].detach().sign())
        weight.grad = None


def test_a_norm_at_a_breakpoint_is_above_it(new_layer: NewLayer) -> None:
    net = net_of((1, 3, 3))
    with torch.no_grad():
        for c, value in enumerate((1.0, 2.0, 3.0)):
            net[0].weight[0, c] = value / 9
    method = PPTKP(strength=1.0, quantiles=(0.5,), intensities=(4.0, 0.0))
    regulariser = method.regulariser(net, layers_of(net, new_layer))
    regulariser.breakpoints["0.weight"] = torch.tensor([float(net[0].weight[0, 1].detach().abs().sum())])
    net[0].weight.grad = torch.zeros_like(net[0].weight)
    regulariser.after_backward()
    assert net[0].weight.grad[0, :, 0, 0].tolist() == [4.0, 0.0, 0.0]


def test_proximal_step_shrinks_norms_and_reaches_exact_zero(new_layer: NewLayer) -> None:
    net = net_of((4, 6, 3))
    method = PPTKP(strength=2.0, quantiles=(0.5,), intensities=(1.0, 0.25), proximal=True)
    regulariser = method.regulariser(net, layers_of(net, new_layer))
    before = net[0].weight.detach().clone()
    regulariser.after_backward()  # nothing: there are no gradients, and the variant needs none
    regulariser.after_step(0.1)
    norms = before.flatten(2).norm(dim=2)
    gamma = torch.where(before.abs().sum((2, 3)) < regulariser.breakpoints["0.weight"].item(), 1.0, 0.25)
    want = before * (1 - 0.1 * 2.0 * gamma / norms).clamp_min(0)[:, :, None, None]
    torch.testing.assert_close(net[0].weight.detach(), want)
    for _ in range(200):
        regulariser.after_step(0.1)
    assert (net[0].weight == 0).any()


def test_the_proximal_step_shrinks_blocks_of_any_size_alike(new_layer: NewLayer) -> None:
    """A block of equal kernels shrinks as each of them alone would."""
    shrunk = []
    for group in (1, 4):
        net = net_of((4, 6, 3))
        with torch.no_grad():
            net[0].weight[:] = net[0].weight[:1].clone()
        method = PPTKP(strength=2.0, quantiles=(0.5,), intensities=(1.0, 0.25), proximal=True, filter_group=group)
        regulariser = method.regulariser(net, layers_of(net, new_layer))
        regulariser.after_step(0.1)
        shrunk.append(net[0].weight.detach().clone())
    torch.testing.assert_close(shrunk[0], shrunk[1])
    assert (shrunk[0].norm() < net_of((4, 6, 3))[0].weight[:1].expand(4, -1, -1, -1).norm()).all()


def test_kernels_that_are_zero_go_however_many_there_are(new_layer: NewLayer) -> None:
    """Training may zero more than the ratio: what is left stays, and nothing else goes or comes back."""
    weight = np.random.default_rng(0).normal(size=(8, 8, 3, 3))
    weight[:, :5] = 0
    layer = new_layer(name="w", filters=8, channels=8, kernel=(3, 3))
    for allocation in ("global", "uniform"):
        mask = PPTKP(ratio=0.5, allocation=allocation).masks([layer], {"w": weight})["w"]
        assert np.array_equal(mask, weight != 0)


def test_equal_numbers_go_by_the_ratio_where_zeros_are_uneven(new_layer: NewLayer) -> None:
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(8, 16, 3, 3))
    weight[:6, :14] = 0
    layer = new_layer(name="w", filters=8, channels=16, kernel=(3, 3))
    kept = PPTKP(ratio=0.5, equalise=True).masks([layer], {"w": weight})["w"].any(axis=(2, 3))
    assert (kept.sum(axis=1) == 8).all()
    weight[6:, :10] = 0  # what is zero in every filter goes, also beyond the ratio
    kept = PPTKP(ratio=0.5, equalise=True).masks([layer], {"w": weight})["w"].any(axis=(2, 3))
    assert (kept.sum(axis=1) == 6).all()
    assert kept[6:, 10:].all()


def test_a_large_block_of_zeros_goes_beyond_the_ratio_and_none_at_no_ratio(new_layer: NewLayer) -> None:
    weight = np.random.default_rng(0).normal(size=(4, 9, 3, 3))
    weight[:, :4] = 0  # a whole block of channels, and the short last one
    weight[:, 8:] = 0
    layer = new_layer(name="w", filters=4, channels=9, kernel=(3, 3))
    for ratio, share in ((0.25, 4 / 9), (0.0, 1.0)):
        kept = PPTKP(ratio=ratio, filter_group=4, channel_block=4).masks([layer], {"w": weight})["w"]
        assert kept.mean() == pytest.approx(share)


@pytest.mark.parametrize("settings", [{}, {"equalise": True}, {"filter_group": 4}, {"channel_block": 2}])
def test_retained_channels_are_multiples(new_layer: NewLayer, settings: dict[str, Any]) -> None:
    weight = np.random.default_rng(0).normal(size=(16, 30, 3, 3)) * np.random.default_rng(1).uniform(
        0.5, 2, (16, 1, 1, 1)
    )
    layer = new_layer(name="w", filters=16, channels=30, kernel=(3, 3))
    plain, whole = (
        PPTKP(ratio=0.55, round_to=multiple, **settings).masks([layer], {"w": weight})["w"].any(axis=(2, 3))
        for multiple in (1, 4)
    )
    counts, whole_counts = plain.sum(axis=1), whole.sum(axis=1)
    assert set(whole_counts) <= {4, 8, 12, 16, 20, 24, 28, 30}
    assert set(counts) - set(whole_counts)  # what was rounded is not a multiple by itself
    assert (np.abs(counts - whole_counts) <= 3).all()
    nested = (plain & whole).sum(axis=1)
    assert (nested == np.minimum(counts, whole_counts)).all()


@pytest.mark.parametrize(("block", "multiple"), [(3, 4), (6, 4), (3, 8), (2, 4), (8, 4)])
def test_channels_are_multiples_with_blocks_of_any_size(new_layer: NewLayer, block: int, multiple: int) -> None:
    weight = np.random.default_rng(0).normal(size=(16, 24, 3, 3))
    layer = new_layer(name="w", filters=16, channels=24, kernel=(3, 3))
    for method in (PPTKP(ratio=0.5, channel_block=block, round_to=multiple),
                   VSKP(ratio=0.5, channel_block=block, round_to=multiple)):  # fmt: skip
        counts = method.masks([layer], {"w": weight})["w"].any(axis=(2, 3)).sum(axis=1)
        assert not (counts % multiple).any()


def test_full_lists_are_not_rounded(new_layer: NewLayer) -> None:
    layer = new_layer(name="w", filters=4, channels=13, kernel=(3, 3))
    weight = np.random.default_rng(0).normal(size=(4, 13, 3, 3))
    assert PPTKP(ratio=0.0, round_to=4).masks([layer], {"w": weight})["w"].all()


def drift(norms: np.ndarray[Any, Any], taus: tuple[float, ...], gammas: tuple[float, ...], steps: int) -> Any:
    """Pure decay of the norms: ``da = -rate gamma(a)``."""
    norms = norms.copy()
    for _ in range(steps):
        norms -= 1e-3 * np.asarray(gammas)[np.searchsorted(taus, norms, side="right")]
        norms = np.abs(norms)
    return norms


def test_margins_appear_at_the_breakpoints_and_uniform_l1_has_none() -> None:
    norms = np.random.default_rng(0).uniform(0.05, 4, 60_000)
    taus = (1.0, 2.0, 3.0)
    assert pruning_points(norms) == []
    points = pruning_points(drift(norms, taus, (1.0, 0.5, 0.25, 0.0), 400))
    assert len(points) == 3
    for point, tau in zip(points, taus, strict=True):
        assert tau - 0.45 < point.threshold < tau + 0.02
    assert points[2].depth == 1  # nothing flows into the last
    assert points[1].depth == pytest.approx(0.5, abs=0.12)
    assert all(one.ratio < other.ratio for one, other in pairwise(points))
    assert pruning_points(drift(norms, (), (1.0,), 400)) == []
    assert pruning_points(drift(np.random.default_rng(1).lognormal(0, 0.5, 60_000), (), (1.0,), 400)) == []


def test_the_regulariser_makes_the_margins_in_weights(new_layer: NewLayer) -> None:
    """A few hundred decay steps of SGD on real kernels, no data."""
    net = net_of((128, 128, 3))
    rng = np.random.default_rng(0)
    with torch.no_grad():  # directions at random, norms even
        kernels = rng.dirichlet(np.full(9, 8.0), (128, 128)) * rng.uniform(0.05, 4, (128, 128, 1))
        kernels *= rng.choice([-1, 1], kernels.shape)
        net[0].weight.copy_(torch.from_numpy(kernels.reshape(128, 128, 3, 3)))
    layers = layers_of(net, new_layer)
    for intensities, count in (((1.0, 0.5, 0.25, 0.0), 3), ((1.0, 1.0, 1.0, 1.0), 0)):
        start = net[0].weight.detach().clone()
        regulariser = PPTKP(strength=1e-2, intensities=intensities).regulariser(net, layers)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.02)
        for _ in range(200):
            net[0].weight.grad = torch.zeros_like(net[0].weight)
            regulariser.after_backward()
            optimizer.step()
        weights = {"0.weight": net[0].weight.detach().numpy()}
        points = PPTKP().points(layers, weights)["3x3"]
        assert len(points) == count
        for point, tau in zip(points, regulariser.breakpoints["0.weight"].tolist() if count else [], strict=True):
            assert tau - 0.4 < point.threshold < tau + 0.05
        if count:  # the margins are where the counts hardly depend on the threshold
            for number, point in enumerate(points, 1):
                mask = PPTKP(point=number).masks(layers, weights)["0.weight"]
                removed = 1 - mask[:, :, 0, 0].mean()
                assert removed == pytest.approx(point.ratio, abs=0.01)
        with torch.no_grad():
            net[0].weight.copy_(start)


def test_threshold_over_the_net_and_a_kernel_for_every_filter(new_layer: NewLayer) -> None:
    rng = np.random.default_rng(0)
    layers = [new_layer(name=n, filters=6, channels=10) for n in "ab"]
    weights = {"a": rng.normal(size=(6, 10, 3, 3)), "b": 5 * rng.normal(size=(6, 10, 3, 3))}
    weights["a"][2] *= 1e-3
    masks = PPTKP(ratio=0.5).masks(layers, weights)
    norms = np.concatenate([kernel_norms(weights[n]).ravel() for n in "ab"])
    threshold = np.sort(norms)[59]
    for name in "ab":
        want = kernel_norms(weights[name]) > threshold
        for o in range(6):
            if not want[o].any():
                want[o, kernel_norms(weights[name])[o].argmax()] = True
        assert np.array_equal(masks[name][:, :, 0, 0], want)
    assert masks["a"][2, :, 0, 0].sum() == 1
    even = PPTKP(ratio=0.5, equalise=True).masks(layers, weights)
    assert len(set(even["a"][:, :, 0, 0].sum(axis=1))) == 1


@pytest.mark.parametrize(("ratio", "gone"), [(1 / 8, 1), (2 / 8, 1), (4 / 8, 1), (5 / 8, 5), (7 / 8, 7), (0.0, 0)])
@pytest.mark.parametrize("order", [range(8), range(7, -1, -1), (3, 0, 5, 1, 7, 2, 4, 6)])
def test_equal_norms_stay_or_go_together(new_layer: NewLayer, ratio: float, gone: int, order: Sequence[int]) -> None:
    """Four equal norms over two layers, in whatever order: a share that would split them takes none of them."""
    norms = np.array([1, 2, 2, 2, 2, 3, 4, 5])[list(order)]
    layers = [new_layer(name=name, filters=1, channels=4) for name in "ab"]
    weights = {
        name: np.broadcast_to(part[None, :, None, None], (1, 4, 3, 3)) * np.ones((1, 4, 3, 3))
        for name, part in zip("ab", (norms[:4], norms[4:]), strict=True)
    }
    masks = PPTKP(ratio=ratio).masks(layers, weights)
    kept = np.concatenate([masks[name][0, :, 0, 0] for name in "ab"])
    expected = norms > np.concatenate([[0], np.sort(norms)])[gone]
    for part in (slice(0, 4), slice(4, 8)):  # a filter keeps its largest
        if not expected[part].any():
            expected[part.start + norms[part].argmax()] = True
    assert np.array_equal(kept, expected)


def test_norms_that_are_all_equal_all_stay(new_layer: NewLayer) -> None:
    layer = new_layer(name="w", filters=4, channels=6)
    assert PPTKP(ratio=0.5).masks([layer], {"w": np.ones(layer.weight_shape)})["w"].all()


def test_uniform_takes_the_share_from_every_layer(new_layer: NewLayer) -> None:
    rng = np.random.default_rng(0)
    layers = [new_layer(name=n, filters=6, channels=10) for n in "ab"]
    weights = {"a": rng.normal(size=(6, 10, 3, 3)), "b": 5 * rng.normal(size=(6, 10, 3, 3))}
    masks = PPTKP(ratio=0.3, allocation="uniform").masks(layers, weights)
    assert [(~mask[:, :, 0, 0]).sum() for mask in masks.values()] == [18, 18]


@pytest.mark.parametrize("cluster", [False, True])
def test_groups_share_their_lists_and_are_pushed_alike(new_layer: NewLayer, cluster: bool) -> None:
    net = net_of((8, 12, 3))
    layers = layers_of(net, new_layer)
    method = PPTKP(ratio=0.5, filter_group=4, channel_block=2, cluster=cluster, strength=1.0)
    regulariser = method.regulariser(net, layers)
    net[0].weight.grad = torch.zeros_like(net[0].weight)
    regulariser.after_backward()
    mask = regulariser.masks()["0.weight"][:, :, 0, 0]
    index = from_mask(np.broadcast_to(mask[:, :, None, None], (8, 12, 3, 3)).copy())
    assert index.filter_groups <= 2
    assert (mask.reshape(8, 6, 2) == mask.reshape(8, 6, 2)[:, :, :1]).all()
    pull = net[0].weight.grad.abs()[:, :, 0, 0].numpy()
    for members in (np.flatnonzero(regulariser._blocks["0.weight"].group_of_filter == g) for g in range(2)):
        assert (pull[members] == pull[members[0]]).all()
    again = method.regulariser(net_of((8, 12, 3), seed=3), layers)
    again.restore(regulariser.state())
    assert np.array_equal(
        again._blocks["0.weight"].group_of_filter, regulariser._blocks["0.weight"].group_of_filter
    )  # fmt: skip
    assert torch.equal(again.breakpoints["0.weight"], regulariser.breakpoints["0.weight"])


@pytest.mark.parametrize("cluster", [False, True])
def test_filters_are_clustered_anew_after_an_epoch(new_layer: NewLayer, cluster: bool) -> None:
    net = net_of((8, 12, 3))
    regulariser = PPTKP(ratio=0.5, filter_group=4, cluster=cluster).regulariser(net, layers_of(net, new_layer))
    before = regulariser._blocks["0.weight"].group_of_filter.copy()
    mixed = np.array([f for group in range(2) for f in np.flatnonzero(before == group)[:2]])
    with torch.no_grad():  # two filters of either group lose the same half, the others the other half
        net[0].weight[:, 6:] = 0
        net[0].weight[mixed] = net[0].weight[mixed].flip(1)
    regulariser.after_epoch(1)
    after = regulariser._blocks["0.weight"].group_of_filter
    if cluster:
        assert len(set(after[mixed])) == 1
        kept = regulariser.masks()["0.weight"].any(axis=(2, 3))
        assert np.array_equal(kept, net[0].weight.detach().abs().sum(dim=(2, 3)).numpy() > 0)
    else:
        assert np.array_equal(after, before)


@pytest.mark.parametrize("settings", [{}, {"filter_group": 4, "channel_block": 3}])
def test_with_as_many_in_every_list_no_list_is_pushed_whole(new_layer: NewLayer, settings: dict[str, int]) -> None:
    """A filter whose norms are all small is pushed where it is smallest, as the others are."""
    net = net_of((8, 12, 3))
    layers = layers_of(net, new_layer)
    with torch.no_grad():
        net[0].weight[:4] *= 0.01
    norms = net[0].weight.detach().abs().sum(dim=(2, 3))
    for equalise, allocation in ((False, "uniform"), (True, "global"), (True, "uniform")):
        method = PPTKP(0.75, None, allocation, equalise, strength=1.0, quantiles=(0.25, 0.5, 0.75), **settings)
        regulariser = method.regulariser(net, layers)
        net[0].weight.grad = torch.zeros_like(net[0].weight)
        regulariser.after_backward()
        pull = net[0].weight.grad.abs().amax(dim=(2, 3))
        kept = torch.from_numpy(regulariser.masks()["0.weight"].any(axis=(2, 3)))
        if equalise and allocation == "uniform":
            assert not pull[kept].any()
            assert kept.sum(dim=1).tolist() == [3] * 8
            zones = pull.sort(dim=1, descending=True).values
            assert torch.equal(zones, torch.tensor([1.0, 0.5, 0.25, 0.0]).repeat_interleave(3).expand(8, 12))
            if not settings:  # the smaller the norm, the stronger
                assert torch.equal(pull.gather(1, norms.argsort(dim=1)), zones)
        else:
            assert pull[:4].min() > 0


@pytest.mark.parametrize("epochs", [1, 2, 3])
def test_single_kernels_are_pushed_before_blocks(new_layer: NewLayer, epochs: int) -> None:
    """Two of three epochs alone; then groups of the norms that there are, with breakpoints of their own."""
    net = net_of((8, 12, 3))
    layers = layers_of(net, new_layer)
    method = PPTKP(ratio=0.5, filter_group=4, cluster=True, single_epochs=2, strength=1.0)
    regulariser = method.regulariser(net, layers)
    single = regulariser.breakpoints["0.weight"]
    for epoch in range(1, epochs + 1):
        net[0].weight.grad = torch.zeros_like(net[0].weight)
        regulariser.after_backward()
        pull = net[0].weight.grad.abs().amax(dim=(2, 3))
        norms = net[0].weight.detach().abs().sum(dim=(2, 3))
        if epoch <= 2:
            zone = torch.bucketize(norms, regulariser.breakpoints["0.weight"].to(norms), right=True)
            torch.testing.assert_close(pull, torch.tensor(method.intensities)[zone] * (norms > 0))
        with torch.no_grad():
            net[0].weight[::2, :6] = 0  # what even filters do not read
        regulariser.after_epoch(epoch)
        again = method.regulariser(net_of((8, 12, 3), seed=3), layers)
        again.restore(regulariser.state())
        assert again._single == regulariser._single == (epoch < 2)
        assert again._blocks["0.weight"].shape == ((8, 12) if epoch < 2 else (2, 12))
    assert (regulariser.breakpoints["0.weight"] is single) == (epochs == 1)
    mask = regulariser.masks()["0.weight"][:, :, 0, 0]
    assert len(np.unique(mask, axis=0)) <= 2  # lists of groups, also where the training ended before there were any
    assert len(np.unique(mask[::2], axis=0)) == 1


@pytest.mark.parametrize("group", [1, 4])
@pytest.mark.parametrize("stop", [1, 2, 3])
def test_restored_it_goes_on_as_it_would_have(new_layer: NewLayer, group: int, stop: int) -> None:
    method = PPTKP(ratio=0.5, filter_group=group, cluster=True, single_epochs=2, strength=0.5, proximal=True)

    def epochs(regulariser: NormDependentL1, first: int, last: int) -> None:
        for epoch in range(first, last + 1):
            for _ in range(20):
                regulariser.after_step(0.05)
            regulariser.after_epoch(epoch)

    net = net_of((8, 12, 3))
    whole = method.regulariser(net, layers_of(net, new_layer))
    epochs(whole, 1, stop)
    other = net_of((8, 12, 3), seed=1)
    other.load_state_dict(net.state_dict())
    again = method.regulariser(other, layers_of(other, new_layer))
    again.restore(whole.state())
    epochs(whole, stop + 1, 5)
    epochs(again, stop + 1, 5)
    assert torch.equal(net[0].weight, other[0].weight)
    assert torch.equal(whole.breakpoints["0.weight"], again.breakpoints["0.weight"])
    assert np.array_equal(whole.masks()["0.weight"], again.masks()["0.weight"])


def test_no_layer_has_no_points() -> None:
    assert PPTKP().points([], {}) == {}


def test_interface_and_index_bytes(new_layer: NewLayer) -> None:
    assert isinstance(PPTKP(), Method)
    assert PPTKP().regularises
    assert PPTKP().settings()["ratio"] == 0.5
    assert PPTKP(point=2).settings()["ratio"] is None
    kept = np.random.default_rng(0).random((6, 10)) < 0.4
    index = from_mask(np.broadcast_to(kept[:, :, None, None], (6, 10, 3, 3)).copy())
    assert PPTKP().paper_index_bytes(index) == kept.sum() + 4 * 7
    assert PPTKP().out_of_scope(new_layer(stem=True)) == "stem"
    assert PPTKP(pointwise=False).out_of_scope(new_layer(kernel=(1, 1))) == "1x1 kernel"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ratio": 1.0}, "--ratio 1: out of range"),
        ({"ratio": 0.5, "point": 1}, "--ratio and --point exclude each other"),
        ({"point": 0}, "--point 0"),
        ({"quantiles": (0.5, 0.25), "intensities": (1, 1, 1)}, "not rising"),
        ({"quantiles": (0.25, float("nan"), 0.75)}, "--quantiles 0.25,nan,0.75: out of range"),
        ({"single_epochs": -1}, "--single-epochs -1: out of range"),
        ({"intensities": (1.0, 0.0)}, "2 intensities for 3 breakpoints"),
        ({"strength": float("nan")}, "--strength nan: out of range"),
        ({"filter_group": 0}, "--filter-group 0: out of range; give 1 or more"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        PPTKP(**options)


def test_no_such_point(new_layer: NewLayer) -> None:
    weights = {"conv.weight": np.random.default_rng(0).normal(size=(4, 3, 3, 3))}
    with pytest.raises(InputError, match="--point 1: the norms of 3x3 kernels have 0 pruning points"):
        PPTKP(point=1).masks([new_layer()], weights)


@pytest.fixture(scope="module")
def resnet56(tmp_path_factory: pytest.TempPathFactory) -> SourceModel:
    """ResNet-56 for CIFAR-10 with random weights, from its file."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("pair") / "net.pt2"
    torch.export.save(export(resnet.resnet56_cifar().eval(), (3, 32, 32)), path)
    return load_model(path)


@pytest.mark.slow
def test_the_papers_pair_of_reductions_is_reachable(resnet56: SourceModel) -> None:
    """77.2 % of ResNet-56's parameters and 68.9 % of its MACs, by ratios of each stage, however it is counted."""
    profile = make_profile(resnet56.inputs, {}, {}, {})
    table, weights = read_layers(named_graph(resnet56), resnet56, profile)
    groups = {layer.name: layer.groups for layer in table.layers}
    for ratios, counting in (
        ((0.52, 0.765, 0.796), "common"),
        ((0.55, 0.73, 0.803), "common"),
        ((0.52, 0.77, 0.8), "with BatchNorm"),
        ((0.56, 0.72, 0.8), "without"),
    ):
        settings = {f"layer{stage}": LayerSettings(ratio=ratio) for stage, ratio in enumerate(ratios, 1)}
        own = {layer.name: settings[layer.name.split(".")[0]] for layer in table.layers if not layer.stem}
        assert len(own) == 54
        method = Allocated(Allocation(method="pptkp", layers=own), make_method)
        sets = prune_one_shot(method, table.layers, weights).index_sets(groups)
        for name, index in sets.items():  # the ratio of its stage, but for what a last kernel is kept of
            assert index.density == pytest.approx(1 - own[name].ratio, abs=0.005)
        result = account(table.layers, table.params, table.macs, sets)
        found = paper_counts(PPTKP(), resnet56, profile, result)
        assert found is not None
        assert found.other is not None
        countings = {"common": (result.params, result.macs)} | {
            name: (Cost(counts.dense_params, counts.retained_params), Cost(counts.dense_flops, counts.retained_flops))
            for name, counts in (("with BatchNorm", found), ("without", found.other))
        }
        assert [params.dense for params, _ in countings.values()] == [853_018, 857_082, 848_944]
        params, flops = countings[counting]
        assert (round(100 * float(params.removed), 1), round(100 * float(flops.removed), 1)) == (77.2, 68.9)
