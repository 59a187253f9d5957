"""SOKS and its authors' ASKs: published costs from their shapes, masks, thresholds, options."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from examples.nets import export, resnet, vgg
from trtkp.errors import InputError
from trtkp.index.conv_layer import ConvLayer
from trtkp.index.index_set import Kind, from_mask
from trtkp.pruning.method import Method
from trtkp.pruning.methods.soks import SHAPES, SOKS, shape_mask
from trtkp.pruning.run import PruneOptions, prune
from trtkp.pruning.train.recipe import read_recipe

NewLayer = Callable[..., ConvLayer]


NETS = {
    "VGG-16": vgg.vgg16_cifar,
    "ResNet-20": resnet.resnet20_cifar,
    "ResNet-32": resnet.resnet32_cifar,
    "ResNet-56": resnet.resnet56_cifar,
}


#: README of ASKs: millions of parameters and of FLOPs, as printed there.
TABLE = {
    "3x3": ("15.0/314", ".27/41.1", ".46/69.8", ".85/127"),
    "ASK_7": ("11.7/245", ".21/32.1", ".36/54.5", ".66/99.2"),
    "ASK_6": ("10.1/210", ".18/27.6", ".31/46.8", ".57/85.3"),
    "ASK_5a": ("8.45/175", ".15/23.1", ".26/39.2", ".48/71.3"),
    "ASK_5b": ("8.45/175", ".15/23.1", ".26/39.2", ".48/71.3"),
    "ASK_4a": ("6.82/140", ".12/18.6", ".21/31.5", ".38/57.4"),
    "ASK_4b": ("6.82/140", ".12/18.6", ".21/31.5", ".38/57.4"),
    "ASK_3a": ("5.18/106", ".09/14.1", ".16/23.9", ".29/43.4"),
    "ASK_3b": ("5.18/106", ".09/14.1", ".16/23.9", ".29/43.4"),
    "ASK_2": ("3.55/70.8", ".06/9.58", ".11/16.2", ".19/29.5"),
}


def counted(name: str) -> tuple[int, int, list[ConvLayer]]:
    """Parameters, FLOPs as ASKs count them, and the convolutions.

    Convolutions and linear layers a FLOP per multiply-add and per bias, BatchNorm2d two per element, ReLU one per
    output, pooling the window's size per output.
    """
    with torch.device("meta"):
        net = NETS[name]().eval()
    flops, layers = 0, []

    def count(module: nn.Module, path: str, inputs: Any, out: torch.Tensor) -> None:
        nonlocal flops
        if isinstance(module, nn.Conv2d):
            layer = ConvLayer(
                f"{path}.weight", path, module.out_channels, module.in_channels, module.kernel_size, (1, 1), (1,) * 4,
                (1, 1), 1, tuple(inputs[0].shape[2:]), tuple(out.shape[2:]), False, False,
            )  # fmt: skip
            layers.append(layer)
            flops += layer.macs
        elif isinstance(module, nn.Linear):
            flops += module.in_features * module.out_features + module.out_features
        elif isinstance(module, nn.BatchNorm2d):
            flops += 2 * out.numel()
        elif isinstance(module, nn.ReLU):
            flops += out.numel()
        elif isinstance(module, nn.MaxPool2d | nn.AvgPool2d):
            flops += int(module.kernel_size) ** 2 * out.numel()
        elif isinstance(module, nn.AdaptiveAvgPool2d):
            flops += inputs[0].numel()

    for path, module in net.named_modules():
        module.register_forward_hook(lambda m, i, o, path=path: count(m, path, i, o))
    with torch.no_grad():
        net(torch.empty(1, 3, 32, 32, device="meta"))
    return sum(p.numel() for p in net.parameters()), flops, layers


@pytest.mark.parametrize("net", NETS)
def test_published_parameters_and_flops_of_every_shape_set(net: str) -> None:
    params, flops, layers = counted(net)
    column = list(NETS).index(net)
    for shapes, row in TABLE.items():
        masks = {} if shapes == "3x3" else SOKS(shapes=shapes).masks(layers, {})
        kept = {layer.name: int(masks[layer.name].sum()) if masks else layer.weight_count for layer in layers}
        left = params - sum(layer.weight_count - kept[layer.name] for layer in layers)
        cost = flops - sum((layer.weight_count - kept[layer.name]) * layer.macs_per_weight for layer in layers)
        for value, text in zip((left, cost), row[column].split("/"), strict=True):
            digits = len(text.partition(".")[2])
            # the README cuts or rounds; its FLOPs leave a few small operators open
            assert abs(value / 1e6 - float(text)) <= 1.01 * 10.0**-digits, (shapes, value, text)


def test_flops_of_every_operator_in_the_graph(tmp_path: Path) -> None:
    """What the record of a pruning says, against the modules' own count."""
    torch.export.save(export(resnet.resnet20_cifar().eval(), (3, 32, 32)), tmp_path / "net.pt2")
    told = prune(tmp_path / "net.pt2", tmp_path / "p", method="soks", shapes="ASK_4a").manifest.totals
    params, flops, layers = counted("ResNet-20")
    assert told.as_in_paper is not None
    assert (told.as_in_paper.dense_params, told.as_in_paper.dense_flops) == (params, flops)
    gone = told.dense_macs - told.retained_macs
    assert told.as_in_paper.retained_flops == flops - gone
    assert gone == sum(5 * layer.weight_count // 9 * layer.macs_per_weight for layer in layers[1:])


@pytest.mark.slow
def test_flops_of_every_operator_in_vgg_16(tmp_path: Path) -> None:
    """Its pools and the biases of its linear layers count, which ResNets have none of: the README's 314 and 140 M."""
    with torch.device("meta"):
        net = vgg.vgg16_cifar()
    net = net.to_empty(device="cpu").eval()
    with torch.no_grad():
        for value in (*net.parameters(), *net.buffers()):
            value.fill_(1)
    torch.export.save(export(net, (3, 32, 32)), tmp_path / "net.pt2")
    options = PruneOptions(include=["*"])  # the README's shapes are in the first convolution too
    pruned = prune(tmp_path / "net.pt2", tmp_path / "p", method="soks", options=options, shapes="ASK_4a")
    told = pruned.manifest.totals.as_in_paper
    params, flops, layers = counted("VGG-16")
    assert told is not None
    assert (told.dense_params, told.dense_flops) == (params, flops) == (14_987_722, 314_419_210)
    assert told.dense_flops - told.retained_flops == sum(5 * layer.macs // 9 for layer in layers)
    assert [round(count / 1e6) for count in (told.dense_flops, told.retained_flops)] == [314, 140]
    assert round(told.retained_params / 1e6, 2) == 6.82


def test_soks_59_percent_is_a_mean_of_3_565_positions() -> None:
    params, _, layers = counted("VGG-16")
    conv = sum(layer.weight_count for layer in layers)
    assert (params, conv) == (14_987_722, 14_710_464)
    kept = round(params * (1 - 0.5927))
    assert kept == 6_104_499
    assert round(9 * (kept - (params - conv)) / conv, 3) == 3.565
    single = 14_724_042
    assert round(9 * (single * (1 - 0.5927) - (single - conv)) / conv, 3) == 3.661
    assert round(9 * (1 - 0.5927), 3) == 3.666


@pytest.mark.parametrize("name", SHAPES)
def test_shapes_go_to_equal_consecutive_groups(new_layer: NewLayer, name: str) -> None:
    layer = new_layer(filters=8, channels=3)
    mask = shape_mask(SHAPES[name], layer)
    size = 8 // len(SHAPES[name])
    for o in range(8):
        positions = {str(p + 1) for p in range(9) if mask[o, 0].ravel()[p]}
        assert positions == set(SHAPES[name][o // size])
        assert (mask[o] == mask[o, 0]).all()
    assert len(set(map(len, SHAPES[name]))) == 1
    assert from_mask(mask).kind is Kind.STRIPE


@pytest.mark.parametrize(("ratio", "remove"), [(0.5, False), (0.9, False), (0.7, True)])
def test_one_shot_by_ratio(new_layer: NewLayer, ratio: float, remove: bool) -> None:
    rng = np.random.default_rng(0)
    layers = [new_layer(name="a", filters=8, channels=5), new_layer(name="b", filters=8, channels=5)]
    weights = {"a": rng.normal(size=(8, 5, 3, 3)), "b": 100 * rng.normal(size=(8, 5, 3, 3))}
    weights["a"][:2] *= 1e-3
    masks = SOKS(ratio=ratio, filter_group=2, remove_filters=remove).masks(layers, weights)
    removed = 1 - np.mean([mask.mean() for mask in masks.values()])
    # without removal every one of 8 groups keeps one of its 9 positions
    assert ratio - 8 / 72 < removed <= ratio
    assert masks["a"][:2].any() != remove or ratio == 0.5
    assert masks["b"].mean() < 0.9  # layers are compared in their own scale
    for mask in masks.values():
        assert from_mask(mask).kind is Kind.STRIPE
        assert (mask.reshape(4, 2, 5, 9) == mask.reshape(4, 2, 5, 9)[:, :1, :1]).all()


def test_one_filter_per_group_is_swp(new_layer: NewLayer) -> None:
    layer = new_layer(filters=6, channels=4)
    weight = np.random.default_rng(0).normal(size=layer.weight_shape)
    mask = SOKS(ratio=0.6, filter_group=1, remove_filters=True).masks([layer], {layer.name: weight})[layer.name]
    stripes = np.abs(weight).sum(axis=1).reshape(6, 9)
    want = np.ones(54, bool)
    want[np.argsort(stripes.ravel(), kind="stable")[:32]] = False
    assert np.array_equal(mask[:, 0].reshape(54), want)


@pytest.mark.parametrize("cluster", [False, True])
def test_filters_of_like_stripes_share_a_shape(new_layer: NewLayer, cluster: bool) -> None:
    layer = new_layer(filters=8, channels=4)
    weight = 1 + 0.1 * np.random.default_rng(0).random(layer.weight_shape)
    weight[1::2, :, 0] = weight[1::2, :, 2] = 0
    weight[::2, :, 1] = 0
    method = SOKS(groups=2, ratio=0.5, allocation="uniform", cluster=cluster)
    mask = method.masks([layer], {layer.name: weight})[layer.name]
    assert bool((mask >= (weight > 0)).all()) == cluster
    assert from_mask(mask).filter_groups == 2


def test_interface(new_layer: NewLayer) -> None:
    assert isinstance(SOKS(), Method)
    assert SOKS().regularises
    assert not SOKS(shapes="ASK_2").regularises
    assert SOKS().settings()["groups"] == 4
    assert SOKS(shapes="ASK_7").settings()["groups"] == 2
    mask = shape_mask(SHAPES["ASK_4a"], new_layer(filters=8))
    assert SOKS().paper_index_bytes(from_mask(mask)) == 5  # 4 groups of 9 bits
    assert "5x5 kernel: ASK_2 is for 3x3" in str(SOKS(shapes="ASK_2").inapplicable(new_layer(kernel=(5, 5))))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shapes": "ASK_9"}, "--shapes ASK_9: not known; use one of ASK_7"),
        ({"shapes": "ASK_2", "ratio": 0.5}, "--shapes ASK_2 says already what stays"),
        ({"groups": 0}, "--groups 0"),
        ({"groups": 2, "filter_group": 4}, "--groups and --filter-group exclude each other"),
        ({"cost": "time"}, "--cost time: not known"),
        ({"sparsity": -1.0}, "--sparsity -1: out of range"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        SOKS(**options)


def test_the_recipe_of_swp() -> None:
    training = read_recipe(Path(__file__).parents[3] / "examples" / "recipes" / "swp-cifar.yaml")
    method = SOKS(**training.settings)
    assert method.zeroes
    assert (method.filter_group, method.threshold, method.sparsity) == (1, 0.01, 1e-5)
    assert (method.margin, method.diversity, method.retrain) == (0, 0, False)
    assert [training.regularise.rate(epoch) for epoch in (0, 80, 120, 159)] == pytest.approx([0.1, 0.01, 1e-3, 1e-3])
    assert training.epochs == training.regularise.epochs == 160
