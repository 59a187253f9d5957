"""SOKS's search: its terms by hand, folding, groups that share a shape, and filters that vanish as in SWP."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from examples.nets import export
from tests.models import write_stripes
from trtkp.bundle.pruned import Pruned
from trtkp.errors import InputError
from trtkp.index.conv_layer import ConvLayer
from trtkp.model import load_model
from trtkp.pipeline.build import build
from trtkp.pipeline.options import BuildOptions
from trtkp.pruning.granularity import Blocks
from trtkp.pruning.methods.soks import SOKS
from trtkp.pruning.methods.soks_search import CoefficientSearch
from trtkp.pruning.run import PruneOptions, prune
from trtkp.pruning.run.stages import Progress
from trtkp.pruning.train.initialise import initialise
from trtkp.pruning.train.recipe import Recipe, Training
from trtkp.verification.bundle import verify

NewLayer = Callable[..., ConvLayer]


def net_with(filters: int = 8, channels: int = 4) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(channels, filters, 3, bias=False), nn.ReLU(), nn.Conv2d(filters, filters, 3, bias=False)
    )


def layers_of(net: nn.Sequential, new_layer: NewLayer) -> list[ConvLayer]:
    return [
        new_layer(name=f"{i}.weight", filters=net[i].out_channels, channels=net[i].in_channels, output_size=(8 - i, 8))
        for i in (0, 2)
    ]


def test_loss_by_hand(new_layer: NewLayer) -> None:
    net = net_with()
    method = SOKS(groups=2, sparsity=0.1, margin=0.01, diversity=0.001, cost="macs")
    search = method.regulariser(net, layers_of(net, new_layer))
    rng = np.random.default_rng(0)
    want = 0.0
    macs = [4 * 8 * 9 * 64, 8 * 8 * 9 * 48]
    for i, cost in zip((0, 2), macs, strict=True):
        a = rng.normal(size=(2, 9))
        with torch.no_grad():
            search.coefficients[f"{i}.weight"].copy_(torch.from_numpy(a.reshape(2, 3, 3)))
        a = np.abs(a)
        cosine = a[0] @ a[1] / np.linalg.norm(a[0]) / np.linalg.norm(a[1])
        want += 0.1 * cost / np.mean(macs) * a.sum() - 0.01 * a.var(axis=1).sum() + 0.001 * cosine
    assert float(search.loss()) == pytest.approx(want, rel=1e-5)
    search.loss().backward()
    assert all(matrix.grad is not None for matrix in search.coefficients.values())


def test_coefficients_scale_the_filters_of_their_group_and_fold(new_layer: NewLayer) -> None:
    net = net_with()
    before, x = [net[i].weight.detach().clone() for i in (0, 2)], torch.randn(2, 4, 8, 8)
    reference = net(x)
    search = SOKS(groups=2).regulariser(net, layers_of(net, new_layer))
    torch.testing.assert_close(net(x), reference)
    with torch.no_grad():
        search.coefficients["0.weight"][1] = torch.arange(9.0).reshape(3, 3)
    scaled = net(x)
    mask = search.masks()["0.weight"]
    assert mask[:4].all()
    assert (mask[4:].reshape(4, 4, 9) == (np.arange(9) > 0.05 * 8)).all()
    search.finish()
    assert [name for name, _ in net.named_parameters()] == ["0.weight", "2.weight"]
    torch.testing.assert_close(net(x), scaled)
    torch.testing.assert_close(net[0].weight[:4], before[0][:4])
    torch.testing.assert_close(net[0].weight[4:], before[0][4:] * torch.arange(9.0).reshape(3, 3))
    torch.testing.assert_close(net[2].weight, before[1])


def test_a_ratio_after_a_search_goes_by_the_folded_stripes(new_layer: NewLayer) -> None:
    net = net_with()
    with torch.no_grad():
        net[0].weight[:] = 1 + torch.arange(9.0).reshape(3, 3)
    search = SOKS(groups=2, ratio=4 / 9, allocation="uniform").regulariser(net, layers_of(net, new_layer))
    with torch.no_grad():  # the first position, as small as it is, becomes the largest of the second group
        search.coefficients["0.weight"][1, 0, 0] = 20
    mask = search.masks()["0.weight"][:, 0].reshape(8, 9)
    # 8 of both groups' 18 positions: 1 to 4 of either go, but for that one, and the lower of the two fives
    assert (mask[:4] == [False] * 5 + [True] * 4).all()
    assert (mask[4:] == [True] + [False] * 3 + [True] * 5).all()


def test_search_by_training_drops_positions_that_do_not_matter(new_layer: NewLayer) -> None:
    """The target reads the centre column only: coefficients elsewhere go."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 8, 3, bias=False))
    teacher = nn.Conv2d(2, 8, 3, bias=False)
    with torch.no_grad():
        teacher.weight[..., 0] = teacher.weight[..., 2] = 0
    search = SOKS(groups=2, sparsity=0.02, margin=1e-3, threshold=0.2).regulariser(
        net, [new_layer(name="0.weight", filters=8, channels=2)]
    )
    optimizer = torch.optim.SGD(net.parameters(), lr=0.2, momentum=0.9)
    for _ in range(300):
        x = torch.randn(16, 2, 6, 6)
        loss = (net(x) - teacher(x)).square().mean() + search.loss()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    kept = search.masks()["0.weight"]
    assert not kept[..., 0].any()
    assert not kept[..., 2].any()
    assert kept[..., 1].mean() > 0.8


def test_the_threshold_is_relative_and_swps_absolute(new_layer: NewLayer) -> None:
    net = net_with()
    layers = layers_of(net, new_layer)
    coefficients = torch.tensor([[0.1] * 4 + [1.0] * 5, [0.008] * 8 + [0.009]]).reshape(2, 3, 3)
    kept = {}
    for remove in (False, True):
        search = SOKS(groups=2, threshold=0.01, remove_filters=remove).regulariser(net, layers)
        with torch.no_grad():
            search.coefficients["0.weight"].copy_(coefficients)
        kept[remove] = search.masks()["0.weight"][::4, 0].reshape(2, 9)
        assert search.report()["below_threshold"] == (0.25 if remove else 0)
        search.finish()
        net = net_with()
    assert kept[False].all()
    assert (kept[True] == [[True] * 9, [False] * 9]).all()


def test_swps_search_holds_at_zero_what_fell_to_the_threshold(new_layer: NewLayer) -> None:
    net = net_with()
    search = SOKS(filter_group=1, threshold=0.01, remove_filters=True).regulariser(net, layers_of(net, new_layer)[:1])
    matrix = search.coefficients["0.weight"]
    with torch.no_grad():
        matrix[0, 0, 0], matrix[0, 1, 1], matrix[0, 2, 2] = 0.01, -0.005, -0.5
    matrix.grad = torch.ones_like(matrix)
    search.after_backward()
    want = torch.ones(3, 3)
    want[0, 0] = want[1, 1] = 0
    assert torch.equal(matrix.grad[0], want)
    want[2, 2] = -0.5
    assert torch.equal(matrix.detach()[0], want)
    other = SOKS(filter_group=1, threshold=0.99).regulariser(net_with(), layers_of(net_with(), new_layer)[:1])
    with torch.no_grad():
        other.coefficients["0.weight"] *= 0.5
    other.after_backward()
    assert other.coefficients["0.weight"].eq(0.5).all()


def clustered(new_layer: NewLayer, **settings: Any) -> tuple[nn.Sequential, CoefficientSearch]:
    """8 filters, those of odd number with the middle row only; grouped when the weights were different."""
    net = nn.Sequential(net_with()[0])
    layer = layers_of(net_with(), new_layer)[0]
    search = SOKS(**{"groups": 2, "cluster": True} | settings).regulariser(net, [layer])
    with torch.no_grad():
        weight = net[0].parametrizations.weight.original
        weight.copy_(torch.randn(weight.shape).sign() + 0.1 * torch.rand(weight.shape))
        weight[1::2, :, 0] = weight[1::2, :, 2] = 0
    return net, search


def groups_in(net: nn.Sequential) -> list[int]:
    return net[0].parametrizations.weight[0].group.tolist()


def test_filters_are_grouped_anew_after_an_epoch_and_the_net_computes_the_same(new_layer: NewLayer) -> None:
    net, search = clustered(new_layer)
    before = np.array(groups_in(net))
    assert len(set(before[::2])) == 2  # not yet as the weights want it
    coefficients = torch.rand(2, 3, 3) - 0.5
    coefficients[:, 0, 0] = 0
    with torch.no_grad():
        search.coefficients["0.weight"].copy_(coefficients)
    x = torch.randn(2, 4, 8, 8)
    want, matrix = net(x), search.coefficients["0.weight"]
    search.after_epoch(1)
    after = np.array(groups_in(net))
    assert len(set(after[::2])) == len(set(after[1::2])) == 1
    assert search.coefficients["0.weight"] is matrix is net[0].parametrizations.weight[0].coefficients
    for group in range(2):
        torch.testing.assert_close(matrix[group].detach(), coefficients[before[after == group]].abs().mean(dim=0))
    torch.testing.assert_close(net(x), want)
    assert net[0].weight[:, :, 0, 0].eq(0).all()
    # masks are of the new groups
    mask = search.masks()["0.weight"]
    assert (mask[::2] == mask[0]).all()
    assert (mask[1::2] == mask[1]).all()
    assert not mask[:, :, 0, 0].any()
    search.finish()
    torch.testing.assert_close(net(x), want)


def test_groups_that_stay_keep_their_numbers_and_signs(new_layer: NewLayer) -> None:
    net, search = clustered(new_layer)
    search.after_epoch(1)
    groups = groups_in(net)
    with torch.no_grad():  # the other group has the larger filters now, and would be the first
        net[0].parametrizations.weight.original[::2] *= 0.01 if groups[0] == 0 else 100
        search.coefficients["0.weight"].uniform_(-1, 1)
    state = {name: value.clone() for name, value in net.state_dict().items()}
    search.after_epoch(2)
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())


@pytest.mark.parametrize("settings", [{"cluster": False}, {"groups": None, "filter_group": 1}])
def test_consecutive_filters_stay_together(new_layer: NewLayer, settings: dict[str, Any]) -> None:
    net, search = clustered(new_layer, **settings)
    with torch.no_grad():
        search.coefficients["0.weight"].uniform_(-1, 1)
    state = {name: value.clone() for name, value in net.state_dict().items()}
    search.after_epoch(1)
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())


def test_groups_never_cross_onnx_groups_and_short_ones_stay_short(new_layer: NewLayer) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(8, 10, 3, groups=2, bias=False))
    layer = new_layer(name="0.weight", filters=10, channels=4, groups=2)
    method = SOKS(filter_group=3, cluster=True)
    search = method.regulariser(net, [layer])
    x, seen = torch.randn(2, 8, 5, 5), set()
    for epoch in range(1, 21):
        with torch.no_grad():
            net[0].parametrizations.weight.original.normal_()
            search.coefficients["0.weight"].uniform_(-1, 1)
        want, wanted = net(x), method.blocks(layer, net[0].weight.detach().numpy()).group_of_filter
        search.after_epoch(epoch)
        groups = groups_in(net)
        seen.add(tuple(groups))
        assert len(set(zip(groups, wanted, strict=True))) == 4  # by other numbers
        assert np.bincount(groups).tolist() == [3, 2, 3, 2]
        assert max(groups[:5]) < 2 <= min(groups[5:])
        torch.testing.assert_close(net(x), want)
    assert len(seen) > 2


def test_a_search_finds_which_filters_belong_together(new_layer: NewLayer) -> None:
    """Filters of the target read the middle row or the middle column, in turns: consecutive groups need the cross."""
    torch.manual_seed(0)
    teacher = nn.Conv2d(2, 8, 3, bias=False)
    shape = torch.zeros(8, 1, 3, 3, dtype=torch.bool)
    shape[::2, :, 1], shape[1::2, :, :, 1] = True, True
    with torch.no_grad():
        teacher.weight *= shape
    kept = {}
    for cluster in (False, True):
        net = nn.Sequential(nn.Conv2d(2, 8, 3, bias=False))
        search = SOKS(groups=2, sparsity=0.02, margin=1e-3, threshold=0.2, cluster=cluster).regulariser(
            net, [new_layer(name="0.weight", filters=8, channels=2)]
        )
        optimizer = torch.optim.SGD(net.parameters(), lr=0.2, momentum=0.9)
        for step in range(1, 301):
            x = torch.randn(16, 2, 6, 6)
            loss = (net(x) - teacher(x)).square().mean() + search.loss()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if step % 20 == 0:
                search.after_epoch(step // 20)
        kept[cluster] = torch.from_numpy(search.masks()["0.weight"][:, :1])
    assert torch.equal(kept[True], shape)
    assert kept[False].float().mean() > 0.5


@pytest.mark.parametrize("stop", [1, 3])
def test_a_restored_search_goes_on_as_it_would_have(new_layer: NewLayer, stop: int) -> None:
    def epochs(net: nn.Sequential, search: CoefficientSearch, first: int, last: int) -> list[list[int]]:
        groups = []
        for epoch in range(first, last + 1):
            with torch.no_grad():  # a training that shifts what the filters read
                noise = torch.randn(net[0].weight.shape, generator=torch.Generator().manual_seed(epoch))
                net[0].parametrizations.weight.original.mul_(0.3).add_(noise)
                search.coefficients["0.weight"].mul_(0.9 + 0.05 * noise[:2, 0])
            search.after_epoch(epoch)
            groups.append(groups_in(net))
        return groups

    net, whole = clustered(new_layer)
    epochs(net, whole, 1, stop)
    other, again = clustered(new_layer)
    other.load_state_dict(net.state_dict())
    again.restore(whole.state())
    rest = epochs(net, whole, stop + 1, 5)
    assert epochs(other, again, stop + 1, 5) == rest
    assert len({tuple(groups) for groups in rest}) > 1
    assert all(torch.equal(one, two) for one, two in zip(net.parameters(), other.parameters(), strict=True))
    assert np.array_equal(whole.masks()["0.weight"], again.masks()["0.weight"])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Pruned]:
    """Prunes a net of two convolutions, the second of 8 filters in scope, with 96 steps of search and no fine-tune."""
    folder = tmp_path_factory.mktemp("soks")
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3),
    )  # fmt: skip
    torch.export.save(export(net.eval(), (1, 8, 8)), folder / "net.pt2")
    write_stripes(folder / "data.npz")

    def run(output: Path, progress: Progress | None = None, **settings: Any) -> Pruned:
        search = Recipe(epochs=8, batch=10, lr=0.1, schedule="constant")
        options = PruneOptions(training=Training(regularise=search, seed=5))
        return prune(
            folder / "net.pt2", output, method="soks", options=options, data=folder / "data.npz", progress=progress,
            **settings,
        )  # fmt: skip

    return run


_SWP = {"filter_group": 1, "remove_filters": True, "margin": 0.0, "diversity": 0.0, "sparsity": 0.1}


@pytest.mark.slow
def test_filters_vanish_in_a_search(trained: Callable[..., Pruned], tmp_path: Path) -> None:
    pruned = trained(tmp_path / "p", threshold=0.01, **_SWP)
    mask = pruned.index_sets["3.weight"].mask()
    kept = mask[:, 0].reshape(8, 9).sum(axis=1)
    assert 0 < np.count_nonzero(kept == 0) < 8
    assert np.array_equal(load_model(pruned.model).parameters()["3.weight"] != 0, mask)
    totals = pruned.manifest.totals
    assert totals.dense_params - totals.retained_params == np.count_nonzero(~mask)
    assert pruned.manifest.report == {"below_threshold": pytest.approx(1 - kept.mean() / 9)}
    bundle = build(tmp_path / "p", tmp_path / "bundle", options=BuildOptions(backend="onnxruntime"))
    assert [layer.kind for layer in bundle.manifest.layers] == ["dense", "stripe"]
    assert verify(bundle).ok


@pytest.mark.slow
def test_an_interrupted_clustered_search_goes_on(
    trained: Callable[..., Pruned], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class StopError(Exception):
        pass

    def stop(phase: str, done: int, total: int) -> None:
        if phase == "Regularise 5/8" and done == 2:
            raise StopError

    settings = {"groups": 2, "cluster": True, "sparsity": 0.1, "threshold": 0.3}
    whole = trained(tmp_path / "whole", **settings)
    regrouped, regroup = [], CoefficientSearch._regroup

    def spy(self: CoefficientSearch, layer: ConvLayer, blocks: Blocks) -> None:
        regrouped.append(layer.name)
        regroup(self, layer, blocks)

    monkeypatch.setattr(CoefficientSearch, "_regroup", spy)
    with pytest.raises(StopError):
        trained(tmp_path / "p", progress=stop, **settings)
    assert regrouped  # what goes on is not what the source's weights have
    phases: list[str] = []
    again = trained(tmp_path / "p", progress=lambda phase, *_: phases.append(phase), **settings)
    assert phases[0] == "Regularise 5/8"
    one, other = (load_model(pruned.model).parameters() for pruned in (whole, again))
    assert all(np.array_equal(one[name], other[name]) for name in one)
    mask = whole.index_sets["3.weight"].mask()[:, 0].reshape(8, 9)
    assert len(np.unique(mask, axis=0)) == 2
    assert len(np.unique(mask[:4], axis=0)) == 2  # not consecutive filters


@pytest.mark.parametrize("retrain", [False, True])
def test_after_a_search_the_net_begins_anew_in_the_shapes_found(
    trained: Callable[..., Pruned], tmp_path: Path, retrain: bool
) -> None:
    pruned = trained(tmp_path / "p", ratio=0.5, retrain=retrain)
    mask = pruned.index_sets["3.weight"].mask()
    assert 0.5 <= mask.mean() < 0.6
    module = load_model(pruned.model).module()
    found = {name: value.clone() for name, value in module.state_dict().items()}
    assert pruned.manifest.settings["retrain"] is retrain
    initialise(module, seed=5)  # the training's seed
    begun = module.state_dict()
    begun["3.weight"] = begun["3.weight"] * torch.from_numpy(mask)
    floats = {name for name, value in begun.items() if value.is_floating_point()}
    assert {name for name in floats if torch.equal(found[name], begun[name])} == (floats if retrain else set())
    assert found["3.weight"][torch.from_numpy(mask)].ne(0).all()


def test_a_search_that_removes_every_filter_is_refused(trained: Callable[..., Pruned], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="soks would remove all filters of it") as error:
        trained(tmp_path / "p", threshold=0.99, **_SWP)
    assert error.value.layer == "3.weight"
    assert not (tmp_path / "p").exists()


def test_initialise_begins_anew() -> None:
    torch.manual_seed(3)
    nets = [nn.Sequential(nn.Conv2d(64, 64, 3), nn.BatchNorm2d(64), nn.Flatten(), nn.Linear(64, 8)) for _ in range(2)]
    nets[0](torch.randn(4, 64, 3, 3))
    for net in nets:
        initialise(net, seed=1)
    for one, other in zip(nets[0].state_dict().values(), nets[1].state_dict().values(), strict=True):
        assert torch.equal(one, other)
    assert nets[0][0].weight.std().item() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.02)
    assert nets[0][1].weight.eq(1).all()
    assert nets[0][1].running_var.eq(1).all()
    assert nets[0][0].bias.eq(0).all()
