"""Pruned modules with packed layers: same answers as masked ones, what is fused, what compiles and exports."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from trtkp.errors import InputError
from trtkp.graph.packing import pack_for_tiles
from trtkp.index.index_set import IndexSet, from_mask
from trtkp.kernels.capi import Library
from trtkp.ops import PackedConv2d, swap_convolutions
from trtkp.pruning.masked import apply_masks


class Block(nn.Module):
    """A residual block with every epilogue that can be fused, and a convolution that two readers share."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn0 = nn.BatchNorm2d(16)
        self.conv1 = nn.Conv2d(16, 24, 3, padding=1, stride=2, bias=False)
        self.bn1 = nn.BatchNorm2d(24)
        self.relu = nn.ReLU()
        self.conv2 = nn.Conv2d(24, 24, 1)
        self.bn2 = nn.BatchNorm2d(24)
        self.down = nn.Conv2d(16, 24, 1, stride=2)
        self.last = nn.Conv2d(24, 8, 1)
        self.act = nn.LeakyReLU(0.3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn0(self.stem(x)))
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        y = self.relu(y + self.down(x))
        z = self.last(y)
        return self.act(z) + z


def block(seed: int = 0) -> tuple[Block, dict[str, IndexSet], Tensor]:
    """A pruned block in eval mode with settled statistics, its index sets, and an input."""
    torch.manual_seed(seed)
    model, x = Block(), torch.randn(2, 3, 8, 8)
    model(x)
    rng = np.random.default_rng(seed)
    masks = {}
    for name in ("conv1", "conv2", "down", "last"):
        weight = getattr(model, name).weight
        mask = np.zeros(weight.shape, bool)
        half = weight.shape[0] // 2
        for rows in (slice(0, half), slice(half, None)):
            mask[rows, rng.permutation(weight.shape[1])[: weight.shape[1] // 2]] = True
        masks[f"{name}.weight"] = mask
    apply_masks(model, masks)
    return model.eval(), {name: from_mask(mask) for name, mask in masks.items()}, x


def relative(got: Tensor, want: Tensor) -> float:
    return float(((got - want).norm() / want.norm()).detach())


def test_a_swapped_module_gives_the_masked_ones_answers(library: Library) -> None:
    model, index_sets, x = block()
    want = model(x)
    swapped = swap_convolutions(model, index_sets, example=x)
    assert relative(swapped(x), want) < 1e-6
    packed = {name: m for name, m in swapped.named_modules() if isinstance(m, PackedConv2d)}
    assert set(packed) == {"conv1", "conv2", "down", "last"}
    assert [packed[name].epilogue.activation for name in packed] == ["Relu", "Relu", "", ""]
    assert not any(isinstance(m, nn.BatchNorm2d) for m in swapped.modules())
    called = [str(node.target) for node in swapped.graph.nodes if node.op == "call_module"]
    assert called == ["stem", "relu", "conv1", "down", "conv2", "last", "act"]
    assert isinstance(model.conv1, nn.Conv2d)  # a copy was swapped
    assert "24x16x3x3, KernelIndexConvRelu, 2 filter groups" in repr(packed["conv1"])


def test_without_an_example_residuals_stay_outside(library: Library) -> None:
    model, index_sets, x = block()
    swapped = swap_convolutions(model, index_sets)
    assert relative(swapped(x), model(x)) < 1e-6
    assert any("add" in str(node.target) for node in swapped.graph.nodes)


def test_a_smaller_term_is_not_taken_for_a_residual(library: Library) -> None:
    class Broadcast(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(8, 8, 1)
            self.gate = nn.AdaptiveAvgPool2d(1)

        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(self.conv(x) + self.gate(x))

    model, x = Broadcast().eval(), torch.randn(1, 8, 4, 4)
    swapped = swap_convolutions(model, {"conv.weight": from_mask(np.ones((8, 8, 1, 1), bool))}, example=x)
    assert relative(swapped(x), model(x)) < 1e-6


def test_half_precision_and_other_memory_orders(library: Library) -> None:
    model, index_sets, x = block()
    want = model(x)
    swapped = swap_convolutions(model, index_sets, example=x).to(torch.bfloat16)
    assert swapped.get_submodule("conv1").weight.dtype == torch.bfloat16
    assert swapped.get_submodule("conv1").index.dtype == torch.int32
    for order in (torch.contiguous_format, torch.channels_last):
        got = swapped(x.to(torch.bfloat16).contiguous(memory_format=order))
        assert relative(got.float(), want) < 2e-2


def test_keep_leaves_layers_dense_and_masked(library: Library) -> None:
    model, index_sets, x = block()
    with torch.no_grad():
        model.conv1.weight += 1  # what is outside the lists is dropped either way
    reference = block()[0]
    with torch.no_grad():
        reference.conv1.weight.copy_(model.conv1.weight * torch.from_numpy(index_sets["conv1.weight"].mask()))
    seen: dict[str, Any] = {}

    def keep(name: str, packed: PackedConv2d, dense: nn.Conv2d) -> bool:
        seen[name] = packed, dense
        return name != "conv1"

    swapped = swap_convolutions(model, index_sets, example=x, keep=keep)
    assert isinstance(swapped.get_submodule("conv1"), nn.Conv2d)
    assert set(seen) == {"conv1", "conv2", "down", "last"}
    assert relative(swapped(x), reference(x)) < 1e-6


@pytest.mark.slow
def test_compile_and_export(library: Library) -> None:
    """The operator stays one node: no graph break, and nothing of Python is left in the exported program."""
    model, index_sets, x = block()
    swapped = swap_convolutions(model, index_sets, example=x)
    want = swapped(x)
    compiled = torch.compile(swapped, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        assert relative(compiled(x), want) < 1e-6
    batch = torch.export.Dim("batch", min=1, max=8)
    program = torch.export.export(swapped, (x,), dynamic_shapes=({0: batch},))
    assert sum(node.target is torch.ops.trtkp.conv.default for node in program.graph.nodes) == 4
    more = torch.randn(3, 3, 8, 8)
    assert relative(program.module()(more), swapped(more)) < 1e-6


def test_what_cannot_be_swapped_is_said(library: Library) -> None:
    model, index_sets, _ = block()
    with pytest.raises(InputError, match=r"training mode: .*; model.eval\(\)"):
        swap_convolutions(model.train(), index_sets)
    model.eval()
    with pytest.raises(InputError, match=r"no convolution has the weight fc\.weight"):
        swap_convolutions(model, {"fc.weight": index_sets["conv1.weight"]})
    with pytest.raises(InputError, match=r"layer conv2: an index set of \(24, 16, 3, 3\)"):
        swap_convolutions(model, {"conv2.weight": index_sets["conv1.weight"]})
    model.conv2.padding_mode = "reflect"
    with pytest.raises(
        InputError, match=r"layer conv2: padding .* with padding_mode reflect is not supported; leave the layer dense"
    ):
        swap_convolutions(model, {"conv2.weight": index_sets["conv2.weight"]})


@pytest.mark.parametrize(("size", "multiple"), [(96, 1), (32, 32), (24, 8), (3, 1)])
def test_packing_for_tiles_wastes_little(size: int, multiple: int) -> None:
    """Groups of 32 fill tiles as they are; those of 24 take 8 rows at a time rather than a third of padding."""
    mask = np.zeros((96, 40, 1, 1), bool)
    for number, first in enumerate(range(0, 96, size)):
        mask[first : first + size, number] = True
    packed = pack_for_tiles(np.ones(mask.shape, np.float32), from_mask(mask))
    assert packed.index.shape[1] % 8 == 0
    assert len(packed.weight) == sum(-(-size // multiple) * multiple for _ in range(0, 96, size))
