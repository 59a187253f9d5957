"""Packed convolutions in PyTorch modules: the layer, and the function that replaces pruned convolutions by it.

`swap_convolutions` works on a traced copy of a model in evaluation mode, by three rules:

1. A BatchNorm2d that is the only reader of a Conv2d is folded into it.
2. A Conv2d whose weight has an index set becomes a `PackedConv2d`.
3. The packed layer takes over what follows it, if nothing else reads the value in between: an addition of another
   tensor of the same shape (which needs an example input), then ReLU, ReLU6, SiLU, Hardswish or LeakyReLU.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from trtkp.cuda.arrays import activation, view
from trtkp.errors import InputError
from trtkp.graph.packing import PackedConv, pack_for_tiles
from trtkp.index.index_set import IndexSet
from trtkp.kernels.capi import load_library
from trtkp.kernels.layer import Epilogue, Geometry, checked_lists, describe, output_pitch, stored_arrays
from trtkp.ops.torch_op import conv_op, to_torch

__all__ = ["PackedConv2d", "swap_convolutions"]

_ACTIVATIONS: dict[Any, str] = {
    nn.ReLU: "Relu", nn.ReLU6: "Relu6", nn.SiLU: "Silu", nn.Hardswish: "HardSwish", nn.LeakyReLU: "LeakyRelu",
    functional.relu: "Relu", torch.relu: "Relu", functional.relu6: "Relu6", functional.silu: "Silu",
    functional.hardswish: "HardSwish",
}  # fmt: skip
_ADDITIONS = (operator.add, torch.add, operator.iadd)


class PackedConv2d(nn.Module):
    """A packed convolution with bias, residual and activation: ``[N, C, H, W] -> [N, F, P, Q]``, channels-last.

    Lists and weights are buffers, so they move and change type with the module. An input that is not channels-last is
    copied into that order first.

    Attributes:
        tactic: name of the tactic to use; empty chooses the fastest.
        allow_tf32: whether float32 products may be rounded to TF32.

    Args:
        packed: the convolution.
        geometry: strides, pads and dilations.
        bias: [F], copied.
        epilogue: the activation; None for none.
    """

    def __init__(
        self, packed: PackedConv, geometry: Geometry, *, bias: Tensor | None = None, epilogue: Epilogue | None = None
    ) -> None:
        super().__init__()
        self.lists = checked_lists(packed, load_library())
        self.geometry = geometry
        self.epilogue = epilogue or Epilogue()
        self.tactic = ""
        self.allow_tf32 = False
        for name, array in stored_arrays(packed).items():
            self.register_buffer(name, None if array is None else to_torch(array, "cpu"))
        self.register_buffer("bias", None if bias is None else bias.detach().clone())

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """Compute ``act(conv(x) + bias + residual)``."""
        lists, geometry = self.lists, self.geometry
        out: Tensor = conv_op(
            _channels_last(x), self.weight, self.index, self.row_group, self.row_filter, self.bias,
            None if residual is None else _channels_last(residual), self.metadata, list(lists.weight_shape),
            lists.groups, lists.base, lists.block, list(geometry.strides), list(geometry.pads),
            list(geometry.dilations), self.epilogue.activation, self.epilogue.alpha, self.allow_tf32, self.tactic,
        )  # fmt: skip
        return out

    def tactics(self, x: Tensor) -> list[str]:
        """Names of the tactics that can compute this layer on an input like ``x``."""
        desc = describe(
            self.lists, self.geometry, self.epilogue, x=activation(_channels_last(x), "x"),
            index=view(self.index, "index"), rows=self.get_buffer("row_filter").shape[0],
            y_pitch=output_pitch(self.lists.weight_shape[0]), residual_pitch=0, has_bias=self.bias is not None,
            allow_tf32=self.allow_tf32,
        )  # fmt: skip
        return load_library().tactics(desc)

    def extra_repr(self) -> str:
        """Shape, lists and epilogue."""
        shape = "x".join(map(str, self.lists.weight_shape))
        return (
            f"{shape}, {self.lists.base}{self.epilogue.activation}, {self.get_buffer('index').shape[0]} filter groups"
        )


def swap_convolutions(
    model: nn.Module,
    index_sets: Mapping[str, IndexSet],
    *,
    example: Tensor | None = None,
    keep: Callable[[str, PackedConv2d, nn.Conv2d], bool] | None = None,
) -> fx.GraphModule:
    """A copy of a model with packed layers in place of its pruned convolutions. The model itself does not change.

    Args:
        model: a module in evaluation mode that ``torch.fx`` can trace.
        index_sets: parameter name to index set. Weights outside the lists are dropped.
        example: an input. Residuals are fused only if it is given, because shapes are not known without it.
        keep: called with the name of a module, the packed layer, and the convolution that it replaces. False leaves the
            convolution dense (and masked), for example because it was timed and is faster.

    Raises:
        InputError: the model is in training mode, an index set fits no convolution, or a padding is not zeros.
    """
    if model.training:
        raise InputError("the model is in training mode: its batch normalisation would not fold", remedy="model.eval()")
    traced = fx.symbolic_trace(copy.deepcopy(model))
    if example is not None:
        from torch.fx.passes.shape_prop import ShapeProp

        with torch.no_grad():
            ShapeProp(traced).propagate(example)
    _fold_batch_norm(traced)
    missing = dict(index_sets)
    for node in list(traced.graph.nodes):
        module = _module(traced, node)
        index = missing.pop(f"{node.target}.weight", None) if isinstance(module, nn.Conv2d) else None
        if index is None or not isinstance(module, nn.Conv2d):
            continue
        _mask(module, index, node.target)
        packed = _packed(module, index, node.target)
        if keep is None or keep(node.target, packed, module):
            traced.set_submodule(node.target, packed)
            _fuse_epilogue(traced, node, packed)
    if missing:
        raise InputError(f"no convolution has the weight {next(iter(missing))}", remedy="use the model's own names")
    traced.graph.lint()
    traced.recompile()
    traced.delete_all_unused_submodules()
    return traced


def _packed(module: nn.Conv2d, index: IndexSet, name: str) -> PackedConv2d:
    if module.padding_mode != "zeros" or isinstance(module.padding, str):
        raise InputError(
            f"padding {module.padding} with padding_mode {module.padding_mode} is not supported",
            layer=name,
            remedy="leave the layer dense",
        )
    packed = pack_for_tiles(module.weight.detach().float().cpu().numpy(), index)
    geometry = Geometry.of(module.stride, module.padding, module.dilation)
    layer = PackedConv2d(packed, geometry, bias=module.bias)
    return layer.to(device=module.weight.device).to(dtype=module.weight.dtype).eval()


def _mask(module: nn.Conv2d, index: IndexSet, name: str) -> None:
    if index.shape != tuple(module.weight.shape) or index.groups != module.groups:
        raise InputError(f"an index set of {index.shape}, a weight of {tuple(module.weight.shape)}", layer=name)
    with torch.no_grad():
        module.weight *= torch.from_numpy(index.mask()).to(module.weight)


def _fold_batch_norm(traced: fx.GraphModule) -> None:
    for node in list(traced.graph.nodes):
        norm = _module(traced, node)
        if not isinstance(norm, nn.BatchNorm2d) or norm.running_mean is None:
            continue
        source = node.args[0]
        conv = _module(traced, source)
        used_once = sum(n.op == "call_module" and n.target == source.target for n in traced.graph.nodes) == 1
        if isinstance(conv, nn.Conv2d) and len(source.users) == 1 and used_once:
            traced.set_submodule(source.target, torch.nn.utils.fusion.fuse_conv_bn_eval(conv, norm))
            node.replace_all_uses_with(source)
            traced.graph.erase_node(node)


def _fuse_epilogue(traced: fx.GraphModule, node: fx.Node, packed: PackedConv2d) -> None:
    """Rule 3, for a node whose module is called nowhere else."""
    if sum(n.op == "call_module" and n.target == node.target for n in traced.graph.nodes) > 1:
        return
    follower = _only_user(node)
    if follower is not None and follower.target in _ADDITIONS and not follower.kwargs and len(follower.args) == 2:
        other = follower.args[1] if follower.args[0] is node else follower.args[0]
        if isinstance(other, fx.Node) and other is not node and _shape(other) == _shape(node) is not None:
            # At the place of the sum both of its terms have been computed; at that of the convolution maybe not.
            with traced.graph.inserting_before(follower):
                fused = traced.graph.call_module(str(node.target), (node.args[0], other))
            fused.meta = dict(follower.meta)
            follower.replace_all_uses_with(fused)
            traced.graph.erase_node(follower)
            traced.graph.erase_node(node)
            node = fused
            follower = _only_user(node)
    if follower is None:
        return
    module = _module(traced, follower)
    name = _ACTIVATIONS.get(type(module)) if module is not None else _ACTIVATIONS.get(follower.target)
    plain = all(key == "inplace" for key in follower.kwargs) and len(follower.args) == 1
    if name and plain:
        packed.epilogue = Epilogue(name, getattr(module, "negative_slope", 0.01))
        follower.replace_all_uses_with(node)
        traced.graph.erase_node(follower)


def _only_user(node: fx.Node) -> fx.Node | None:
    users = list(node.users)
    return users[0] if len(users) == 1 else None


def _module(traced: fx.GraphModule, node: Any) -> nn.Module | None:
    is_call = isinstance(node, fx.Node) and node.op == "call_module"
    return traced.get_submodule(str(node.target)) if is_call else None


def _shape(node: fx.Node) -> tuple[int, ...] | None:
    found = node.meta.get("tensor_meta")
    return tuple(found.shape) if found is not None and hasattr(found, "shape") else None


def _channels_last(x: Tensor) -> Tensor:
    """The tensor itself if its channels are innermost, whatever its pitch; otherwise a copy in that order."""
    width, pitch = x.shape[3], x.stride(3)
    in_order = (
        x.stride(1) == 1
        and pitch >= x.shape[1]
        and x.stride(2) == width * pitch
        and x.stride(0) == x.shape[2] * width * pitch
    )
    return x if in_order else x.contiguous(memory_format=torch.channels_last)
