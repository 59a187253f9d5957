"""Retained parameters and MACs: by hand on small tables, and exactly the published constants on the known nets."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import nn

from examples.nets import export, resnet, vgg
from trtkp.errors import InputError
from trtkp.graph.layers import LayerTable, conv_layers
from trtkp.prune.accounting import Cost, account
from trtkp.prune.conv_layer import ConvLayer
from trtkp.prune.index_set import Kind, from_mask
from trtkp.prune.kep import KEP
from trtkp.prune.l1 import L1
from trtkp.prune.method import Method, prune_one_shot
from trtkp.prune.pptkp import PPTKP
from trtkp.prune.soks import SOKS
from trtkp.prune.vskp import VSKP

NewLayer = Callable[..., ConvLayer]


def test_costs_by_hand(new_layer: NewLayer) -> None:
    layers = [
        new_layer(name="a", node="a1", output_size=(8, 8)),  # 108 weights, 6912 MACs
        new_layer(name="b", node="b1", filters=2, channels=4, kernel=(1, 1), bias=True, output_size=(3, 5)),
        new_layer(name="c", node="c1", filters=2, channels=1, groups=2, bias=True, output_size=(2, 2)),
    ]
    stripes = np.zeros((4, 3, 3, 3), bool)
    stripes[:2, :, 0, :] = stripes[2:, :, 1, 1] = True  # 18 + 6 weights
    depthwise = np.zeros((2, 1, 3, 3), bool)
    depthwise[0] = True  # 9 weights
    sets = {"a": from_mask(stripes), "c": from_mask(depthwise, groups=2)}
    result = account(layers, 1000, 20_000, sets)
    a, b, c = result.layers
    assert (a.name, a.node, a.kind, a.density) == ("a", "a1", Kind.STRIPE, 24 / 108)
    assert (a.params, a.macs) == (Cost(108, 24), Cost(108 * 64, 24 * 64))
    assert (b.name, b.node, b.kind, b.density, b.index_bytes) == ("b", "b1", None, 1.0, 0)
    assert (b.params, b.macs) == (Cost(8 + 2, 8 + 2), Cost(8 * 15, 8 * 15))
    assert (c.kind, c.density) == (Kind.KERNEL, 0.5)
    assert (c.params, c.macs) == (Cost(18 + 2, 9 + 2), Cost(18 * 4, 9 * 4))
    assert result.params == Cost(1000, 1000 - 84 - 9)
    assert result.macs == Cost(20_000, 20_000 - 84 * 64 - 9 * 4)
    assert a.index_bytes == 4 * 4 + 2 * 3 * 4 + 6 * (2 + 8)
    assert c.index_bytes == 2 * 4 + 2 * 3 * 4 + 1 * (2 + 8)
    assert result.index_bytes == a.index_bytes + c.index_bytes
    assert result.params.removed == Fraction(93, 1000)
    assert Cost(0, 0).removed == 0


def test_weight_of_two_nodes_counts_once_in_params_and_twice_in_macs(new_layer: NewLayer) -> None:
    layers = [new_layer(node="small", output_size=(4, 4)), new_layer(node="large", output_size=(8, 8))]
    mask = np.zeros((4, 3, 3, 3), bool)
    mask[:, 0] = True  # 36 of 108
    index = from_mask(mask)
    result = account(layers, 108, 108 * 80, {"conv.weight": index})
    assert [cost.node for cost in result.layers] == ["small", "large"]
    assert [cost.macs.retained for cost in result.layers] == [36 * 16, 36 * 64]
    assert result.params == Cost(108, 36)
    assert result.macs == Cost(108 * 80, 36 * 80)
    assert result.index_bytes == index.nbytes


def test_nothing_pruned(new_layer: NewLayer) -> None:
    result = account([new_layer()], 500, 7000, {})
    assert (result.params, result.macs, result.index_bytes) == (Cost(500, 500), Cost(7000, 7000), 0)


@pytest.mark.parametrize(
    ("name", "mask", "groups", "message"),
    [
        ("ghost", np.ones((4, 3, 3, 3), bool), 1, "layer ghost: index set of no layer"),
        ("conv.weight", np.ones((4, 2, 3, 3), bool), 1, r"layer conv.weight: weight is \(4, 3, 3, 3\)"),
        ("conv.weight", np.ones((4, 3, 3, 3), bool), 2, "layer conv.weight: weight .* in 1 groups"),
    ],
)
def test_index_set_of_another_model(new_layer: NewLayer, name: str, mask: Any, groups: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        account([new_layer()], 108, 6912, {name: from_mask(mask, groups)})


@pytest.mark.parametrize(
    ("method", "kept"),  # the weights that each layer below keeps
    [
        (VSKP(ratio=0.5, allocation="uniform"), (8 * 6 * 9, 16 * 4 * 9, 16 * 8)),
        (VSKP(ratio=0.3, allocation="uniform"), (8 * 9 * 9, 16 * 6 * 9, 16 * 12)),  # floor(0.3 C) go
        (VSKP(ratio=0.5, allocation="uniform", pointwise=False), (8 * 6 * 9, 16 * 4 * 9, 16 * 16)),
        (VSKP(ratio=0.5, allocation="uniform", nm="2:4"), (8 * 6 * 9, 16 * 4 * 9, 16 * 8)),  # half inside full lists
        (L1(ratio=0.25, allocation="uniform"), (8 * 9 * 9, 16 * 6 * 9, 16 * 12)),
        (PPTKP(ratio=0.5, allocation="uniform"), (48 * 9, 64 * 9, 128)),
        (PPTKP(ratio=0.3, allocation="uniform"), ((96 - 28) * 9, (128 - 38) * 9, 256 - 76)),
        (PPTKP(ratio=0.3, allocation="uniform", equalise=True), (8 * 9 * 9, 16 * 6 * 9, 16 * 12)),
        (SOKS(ratio=4 / 9, groups=2), (96 * 5, 128 * 5, 256)),  # a 1x1 kernel has one position
        (SOKS(ratio=5 / 9, groups=1), (96 * 4, 128 * 4, 256)),
        (SOKS(shapes="ASK_4a"), (96 * 4, 128 * 4, 256)),
        (SOKS(shapes="ASK_7"), (96 * 7, 128 * 7, 256)),
        (KEP(n=2), (96 * 2, 128 * 2, 256)),
        (KEP(n=5, share="per-layer"), (96 * 5, 128 * 5, 256)),
    ],
)
def test_every_method_is_counted_exactly(new_layer: NewLayer, method: Method, kept: tuple[int, ...]) -> None:
    """In integers, from weights to totals: 77 parameters and 999 MACs are of other operators."""
    layers = [
        new_layer(name="a", filters=8, channels=12, output_size=(8, 6)),
        new_layer(name="b", filters=16, channels=8, output_size=(4, 3)),
        new_layer(name="c", filters=16, channels=16, kernel=(1, 1), pads=(0,) * 4, output_size=(4, 3)),
    ]
    outputs = (48, 12, 12)
    rng = np.random.default_rng(3)
    weights = {layer.name: rng.normal(size=layer.weight_shape) for layer in layers}
    dense = (864, 1152, 256)
    params, macs = 77 + sum(dense), 999 + sum(n * size for n, size in zip(dense, outputs, strict=True))
    sets = prune_one_shot(method, layers, weights).index_sets({layer.name: 1 for layer in layers})
    result = account(layers, params, macs, sets)
    assert [cost.params for cost in result.layers] == [Cost(*pair) for pair in zip(dense, kept, strict=True)]
    assert result.params == Cost(params, 77 + sum(kept))
    assert result.macs == Cost(macs, 999 + sum(n * size for n, size in zip(kept, outputs, strict=True)))


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


def layer_table(net: Net, model: nn.Module) -> tuple[LayerTable, dict[str, np.ndarray[Any, Any]]]:
    """The table of the exported net, and its weights."""
    from onnxscript.optimizer import fold_constants

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(export(model.eval(), net.shape), dynamo=True, optimize=False, verbose=False)
    assert program is not None
    graph_model = program.model
    fold_constants(graph_model)
    parameters = dict(model.named_parameters())
    for node in graph_model.graph:
        # the exporter writes a bias of zeros where a convolution has none
        if node.op_type == "Conv" and len(node.inputs) == 3 and str(node.inputs[2].name) not in parameters:
            node.resize_inputs(2)
    table = conv_layers(graph_model, {"x": (1, *net.shape)})
    assert isinstance(graph_model, ir.Model)
    return table, {name: value.detach().numpy() for name, value in parameters.items()}


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
def test_kep_on_known_nets_is_exact(name: str) -> None:
    net = NETS[name]
    torch.manual_seed(0)
    table, weights = layer_table(net, net.factory())
    assert table.left_out == {}
    assert (table.params, table.macs) == (net.params, net.macs)
    count, prunable_params, prunable_macs = prunable_counts(net)
    assert count == net.count
    assert round(100 * prunable_params / net.params, net.digits[0]) == net.prunable[0]
    assert round(100 * prunable_macs / net.macs, net.digits[1]) == net.prunable[1]
    for n in (4, 3, 2, 1):
        pruning = prune_one_shot(KEP(n=n), table.layers, weights, net.include)
        groups = {layer.name: layer.groups for layer in table.layers}
        sets = {layer: from_mask(mask, groups[layer]) for layer, mask in pruning.masks.items()}
        assert len(sets) == count
        result = account(table.layers, table.params, table.macs, sets)
        assert (result.params.dense, result.macs.dense) == (net.params, net.macs)
        assert result.params.removed == Fraction(9 - n, 9) * Fraction(prunable_params, net.params)
        assert result.macs.removed == Fraction(9 - n, 9) * Fraction(prunable_macs, net.macs)
        assert {cost.density for cost in result.layers if cost.kind} == {n / 9}
        assert sum(cost.macs.dense for cost in result.layers) <= net.macs
        if name == "resnet50" and n in RESNET50_PERCENT:
            percent = tuple(round(100 * float(cost.removed), 1) for cost in (result.params, result.macs))
            assert percent == RESNET50_PERCENT[n]
