"""Turn the calls in an exported program back into modules, for code that works on modules.

An exported program holds no layers: convolutions, fully connected layers and batch normalisations are function calls in
its graph. Their parameters still have the names of the modules that they came from. `with_modules` puts modules of
those names in the place of the calls, so that DPPNet can replace convolutions and torch-pruning can find them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import nn

from trtkp.errors import InputError

__all__ = ["with_modules"]

_STATE = frozenset({"weight", "bias", "running_mean", "running_var", "num_batches_tracked"})


def with_modules(program: torch.fx.GraphModule, needed: Collection[str] | None = None) -> torch.fx.GraphModule:
    """The same net with modules in the place of calls. Parameters are shared with ``program``.

    A call stays a call where a module would compute something else, or could not hold parameters of those names. That
    is the case where

    - its weight is not the ``weight`` of a module, or something else reads that weight too;
    - its weight or bias is computed, or is a buffer;
    - the module of that name holds more than this layer;
    - two calls use one weight with different arguments.

    Args:
        program: the graph module of an exported program.
        needed: names of weights whose calls must become modules; None for those of all convolutions.

    Raises:
        InputError: a call that must become a module has to stay; the error names the layer and the reason.
    """
    graph = program.graph
    made: dict[str, nn.Module] = {}
    for name, calls in _layers(program).items():
        owner = name.rpartition(".")[0]
        kind, reason = _MAKERS[_kind(calls[0])], _obstacle(program, name, calls)
        if reason is not None and (kind is _convolution if needed is None else name in needed):
            remedy = "make it a module with parameters of its own" if needed is None else "leave it out with --skip"
            raise InputError(f"{reason}: it cannot be replaced", layer=name, remedy=remedy)
        module = kind(program, _arguments(calls[0])) if reason is None else None
        if module is None:
            continue
        made[owner] = module
        for node in calls:
            with graph.inserting_before(node):
                call = graph.call_module(owner, (node.args[0],))
            call.meta = dict(node.meta)
            node.replace_all_uses_with(call)
            graph.erase_node(node)
    for node in list(graph.nodes):
        if node.op == "get_attr" and not node.users:
            graph.erase_node(node)
    for owner, module in made.items():
        program.set_submodule(owner, module)
    # libraries call train() and eval(), which the module of an exported program refuses; a plain GraphModule does not
    return torch.fx.GraphModule(program, graph)


def _layers(program: torch.fx.GraphModule) -> dict[str, list[torch.fx.Node]]:
    """The calls that read each weight, by the weight's name."""
    found: dict[str, list[torch.fx.Node]] = {}
    for node in program.graph.nodes:
        weight = _arguments(node).get("weight") if _kind(node) in _MAKERS else None
        if isinstance(weight, torch.fx.Node) and weight.op == "get_attr":
            found.setdefault(str(weight.target), []).append(node)
    return found


def _obstacle(program: torch.fx.GraphModule, name: str, calls: list[torch.fx.Node]) -> str | None:
    """The reason why the calls on a weight cannot become the module that its name belongs to; None if they can."""
    owner, _, leaf = name.rpartition(".")
    if not owner or leaf != "weight":
        return "its weight does not belong to a module"
    given = _arguments(calls[0])
    for part in (part for part in given if part in _STATE):
        if given[part] is not None and given[part].op != "get_attr":
            return f"its {part} is computed"
        if part in ("weight", "bias") and not isinstance(_tensor(program, given[part]), nn.Parameter | None):
            return f"its {part} is a buffer"
    if {user for node in program.graph.nodes if node.target == name for user in node.users} != set(calls):
        return "something else reads its weight too"
    if not {part for part, _ in _state(program.get_submodule(owner))} <= _STATE:
        return "its module holds more than its weights"
    if any(_settings(_arguments(node)) != _settings(given) for node in calls):
        return "calls on its weight differ in their arguments"
    return None


def _kind(node: torch.fx.Node) -> str:
    return node.target._schema.name if isinstance(node.target, torch._ops.OpOverload) else ""


def _arguments(node: torch.fx.Node) -> dict[str, Any]:
    """A call's arguments by name, defaults included."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return {}
    declared = node.target._schema.arguments
    given = {a.name: a.default_value for a in declared} | dict(zip((a.name for a in declared), node.args, strict=False))
    return given | dict(node.kwargs)


def _settings(given: dict[str, Any]) -> list[Any]:
    return [value for name, value in given.items() if name != "input"]


def _state(module: nn.Module) -> list[tuple[str, torch.Tensor]]:
    return [*module.named_parameters(), *module.named_buffers()]


def _tensor(program: torch.fx.GraphModule, node: torch.fx.Node | None) -> Any:
    if node is None:
        return None
    owner, _, leaf = str(node.target).rpartition(".")
    return getattr(program.get_submodule(owner), leaf)


def _convolution(program: torch.fx.GraphModule, given: dict[str, Any]) -> nn.Module | None:
    weight, bias = _tensor(program, given["weight"]), _tensor(program, given["bias"])
    if weight.ndim != 4 or given.get("transposed"):
        return None
    padding = given["padding"] if isinstance(given["padding"], str) else _pair(given["padding"])
    module = nn.Conv2d(
        weight.shape[1] * given["groups"], weight.shape[0], tuple(weight.shape[2:]), _pair(given["stride"]), padding,
        _pair(given["dilation"]), given["groups"], bias=bias is not None, device="meta",
    )  # fmt: skip
    module.weight, module.bias = weight, bias
    return module


def _linear(program: torch.fx.GraphModule, given: dict[str, Any]) -> nn.Module:
    weight, bias = _tensor(program, given["weight"]), _tensor(program, given["bias"])
    module = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    module.weight, module.bias = weight, bias
    return module


def _batch_norm(program: torch.fx.GraphModule, given: dict[str, Any]) -> nn.Module | None:
    names = ("weight", "bias", "running_mean", "running_var")
    values = {name: _tensor(program, given[name]) for name in names}
    if any(value is None for value in values.values()) or given["input"].meta["val"].ndim != 4:
        return None
    module = nn.BatchNorm2d(len(values["weight"]), eps=given["eps"], momentum=given["momentum"], device="meta")
    for name, value in values.items():
        setattr(module, name, value)
    module.num_batches_tracked = torch.tensor(0)
    module.eval()
    return module


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[-1])


_MAKERS: dict[str, Callable[[torch.fx.GraphModule, dict[str, Any]], nn.Module | None]] = {
    "aten::conv2d": _convolution,
    "aten::convolution": _convolution,
    "aten::linear": _linear,
    "aten::batch_norm": _batch_norm,
}
