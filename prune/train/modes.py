"""Switch any module between training and evaluation mode, modules of exported programs included.

The module of an exported program refuses ``train()``, because its batch normalisations and dropouts are function calls
with a flag as an argument. `set_training` switches those flags in the graph. If batch normalisation was decomposed into
arithmetic before the export, there is no flag, and its statistics stay fixed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

__all__ = ["set_training"]


def set_training(model: torch.nn.Module, training: bool, *, freeze_batch_norm: bool = False) -> None:
    """Put every part of ``model`` into training or evaluation mode, in place.

    Args:
        model: any module.
        training: True for training, False for evaluation.
        freeze_batch_norm: in training too, batch normalisation uses its running statistics and does not update them.
    """
    import torch
    from torch.nn.modules.batchnorm import _BatchNorm

    graphs = [module for module in model.modules() if isinstance(module, torch.fx.GraphModule)]
    if not graphs:
        model.train(training)
    for module in model.modules():
        if graphs:
            module.training = training
        if freeze_batch_norm and isinstance(module, _BatchNorm):
            module.eval()
    for graph in graphs:
        _switch_flags(graph, training, freeze_batch_norm)


def _switch_flags(module: torch.fx.GraphModule, training: bool, freeze_batch_norm: bool) -> None:
    import torch

    changed = False
    for node in module.graph.nodes:
        if not isinstance(node.target, torch._ops.OpOverload):
            continue
        name = node.target._schema.name
        flag = next((i for i, a in enumerate(node.target._schema.arguments) if a.name in ("training", "train")), None)
        if flag is None or not ("batch_norm" in name or "dropout" in name):
            continue
        wanted = training and not (freeze_batch_norm and "batch_norm" in name)
        changed |= _set_argument(node, flag, wanted)
    if changed:
        module.recompile()


def _set_argument(node: Any, position: int, value: bool) -> bool:
    """Set an argument of a call; gives whether that changed its value."""
    name = node.target._schema.arguments[position].name
    if position < len(node.args):
        changed = node.args[position] is not value
        node.update_arg(position, value)
    else:
        changed = node.kwargs.get(name) is not value
        node.update_kwarg(name, value)
    return changed
