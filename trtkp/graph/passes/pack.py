"""The pass that rewrites pruned convolutions into operators of domain ``trtkp``.

Bias, residual Add and activation are fused into the operator. The module also applies masks, and reads packed nodes.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from trtkp.errors import InputError
from trtkp.graph.edit import (
    WEIGHT,
    add_initializer,
    constant,
    finish,
    input_at,
    ints,
    only_consumer,
    replace_nodes,
    same_shape,
    weight_name,
)
from trtkp.graph.layers import conv_pads, unusable_reason
from trtkp.graph.ops import DOMAIN, DYNAMIC, INDEX_INPUT, VERSION, OpName, function
from trtkp.graph.packing import PackedConv, pack, pack_for_tiles
from trtkp.graph.two_four import compress, expand
from trtkp.index.index_set import IndexSet

__all__ = ["Epilogue", "apply_masks", "pack_convolutions", "packed_nodes", "read_packed"]

_REMEDY = "take index sets made for this model"


@dataclass
class Epilogue:
    """What follows a convolution and can be computed with it: ``act(conv + residual)``.

    Attributes:
        output: the value that the fused operator computes.
        nodes: the nodes that it replaces, in addition to the convolution.
        residual: the other operand of the Add, if there is one.
        activation: one of `ops.ACTIVATIONS`; empty for none.
        alpha: slope of LeakyRelu below 0.
    """

    output: ir.Value
    nodes: list[ir.Node] = field(default_factory=list)
    residual: ir.Value | None = None
    activation: str = ""
    alpha: float | None = None


def apply_masks(model: ir.Model, masks: Mapping[str, npt.NDArray[np.bool_]]) -> None:
    """Set pruned weights to zero, in place.

    Args:
        model: a graph whose initialisers have parameter names.
        masks: parameter name to a bool array of the weight's shape, True where a weight is kept.

    Raises:
        InputError: the graph has no such initialiser, or one of another shape.
    """
    for name, mask in masks.items():
        value = model.graph.initializers.get(name)
        weight = constant(value)
        if value is None or weight is None:
            raise InputError("the graph has no such weight", layer=name, remedy=_REMEDY)
        if weight.shape != mask.shape:
            raise InputError(f"weight is {weight.shape}, its mask {mask.shape}", layer=name, remedy=_REMEDY)
        value.const_value = ir.tensor(np.where(mask, weight, weight.dtype.type(0)), name=name)


def pack_convolutions(
    model: ir.Model,
    index_sets: Mapping[str, IndexSet],
    input_sizes: Mapping[str, tuple[int, int]],
    *,
    only: Collection[str] | None = None,
    row_multiple: int = 1,
    list_multiple: int = 1,
    tiles: bool = False,
) -> list[ir.Node]:
    """Replace every convolution whose weight has an index set; returns the new nodes in graph order.

    A convolution is found by the parameter name of its weight. Its epilogue is fused unless something else reads a
    value in between. Every new node has ``plugin_namespace`` and ``plugin_version``, and the model gets the function
    of each operator that it uses.

    Args:
        model: a graph of standard operators with batch normalisation folded. It is changed in place.
        index_sets: parameter name to index set.
        input_sizes: node name to the height and width of its input, to resolve ``auto_pad``.
        only: names of the nodes to replace; None for all.
        row_multiple: see `packing.pack`.
        list_multiple: see `packing.pack`.
        tiles: pack with `packing.pack_for_tiles` instead.

    Raises:
        InputError: an index set does not match the shape or the number of groups of its weight.
    """
    created: set[ir.Node] = set()
    names = set()
    for conv in list(model.graph):
        name = weight_name(conv) if conv.op_type == "Conv" and unusable_reason(conv) is None else None
        if name is None or name not in index_sets or (only is not None and conv.name not in only):
            continue
        weight = constant(conv.inputs[1])
        assert weight is not None
        _check_fits(name, weight, index_sets[name], conv.attributes.get_int("group", 1))
        if tiles:
            packed = pack_for_tiles(weight, index_sets[name])
        else:
            packed = pack(weight, index_sets[name], row_multiple=row_multiple, list_multiple=list_multiple)
        epilogue = find_epilogue(conv)
        op = OpName(packed.base, epilogue.residual is not None, epilogue.activation, packed.two_four)
        node = _packed_node(model.graph, conv, name, packed, op, epilogue, input_sizes.get(conv.name or name, (0, 0)))
        replace_nodes([conv, *epilogue.nodes], [node], epilogue.output, node.outputs[0])
        created.add(node)
        names.add(op)
    opset = model.graph.opset_imports[""]
    for op in sorted(names, key=str):
        body = function(op, opset)
        model.functions[body.identifier()] = body
    if names:
        model.graph.opset_imports[DOMAIN] = VERSION
    finish(model)
    # A convolution that took a residual Add has moved behind the convolution that computes the residual.
    return [node for node in model.graph if node in created]


def packed_nodes(model: ir.Model) -> list[ir.Node]:
    """The nodes of domain ``trtkp`` with packed weights (not `DYNAMIC`), in graph order."""
    return [node for node in model.graph if node.domain == DOMAIN and not node.op_type.startswith(DYNAMIC)]


def read_packed(node: ir.Node) -> tuple[OpName, PackedConv]:
    """The operator and the arrays of a packed node. 2:4 weights are expanded to all columns of their lists."""
    op = OpName.parse(node.op_type)
    weight, index, row_group, filters = (constant(value) for value in node.inputs[1:5])
    assert weight is not None
    assert index is not None
    assert row_group is not None
    assert filters is not None
    f, c, r, s = ints(node, "weight_shape", ())
    packed = PackedConv(op.base, (f, c, r, s), node.attributes.get_int("group", 1), weight, index, row_group, filters)
    if op.two_four:
        metadata = constant(node.inputs[-1])
        assert metadata is not None
        packed = replace(packed, weight=expand(weight, metadata, packed.columns()[0].shape[1]), two_four=True)
    return op, packed


def find_epilogue(conv: ir.Node) -> Epilogue:
    """The residual Add and the activation after a convolution that can be fused into it."""
    epilogue = Epilogue(conv.outputs[0])
    follower = only_consumer(epilogue.output)
    if follower is not None and follower.op_type == "Add" and follower.domain == "":
        residual = follower.inputs[1] if follower.inputs[0] is epilogue.output else follower.inputs[0]
        if residual is not None and residual is not epilogue.output and same_shape(residual, epilogue.output):
            epilogue.residual = residual
            epilogue.nodes.append(follower)
            epilogue.output = follower.outputs[0]
    _add_activation(epilogue)
    return epilogue


def _add_activation(epilogue: Epilogue) -> None:
    value = epilogue.output
    nodes = [use.node for use in value.uses()]
    if value.is_graph_output() or not nodes or any(node.domain for node in nodes):
        return
    follower, kinds = nodes[0], sorted(node.op_type for node in nodes)
    activation, alpha, used = "", None, [follower]
    if kinds == ["Relu"]:
        activation = "Relu"
    elif kinds == ["HardSwish"]:
        activation = "HardSwish"
    elif kinds == ["LeakyRelu"]:
        activation, alpha = "LeakyRelu", follower.attributes.get_float("alpha", 0.01)
    elif kinds == ["Clip"]:
        low, high = (constant(input_at(follower, i)) for i in (1, 2))
        if low is not None and high is not None and (low.item(), high.item()) == (0, 6):
            activation = "Relu6"
    elif kinds in (["Mul", "Sigmoid"], ["HardSigmoid", "Mul"]):
        # Exporters write SiLU as x * Sigmoid(x), and some write Hardswish as x * HardSigmoid(x). Both read the
        # convolution's output twice. Only a HardSigmoid with slope 1/6 and shift 1/2 makes it Hardswish.
        gate = next(node for node in nodes if node.op_type != "Mul")
        product = next(node for node in nodes if node.op_type == "Mul")
        gated = only_consumer(gate.outputs[0]) is product and set(product.inputs) == {value, gate.outputs[0]}
        slope, shift = gate.attributes.get_float("alpha", 0.2), gate.attributes.get_float("beta", 0.5)
        if gated and gate.op_type == "Sigmoid":
            activation, used = "Silu", [gate, product]
        elif gated and abs(slope - 1 / 6) < 1e-6 and shift == 0.5:
            activation, used = "HardSwish", [gate, product]
    if activation:
        epilogue.nodes += used
        epilogue.output = used[-1].outputs[0]
        epilogue.activation, epilogue.alpha = activation, alpha


def _check_fits(name: str, weight: np.ndarray, index: IndexSet, groups: int) -> None:
    if weight.shape != index.shape or groups != index.groups:
        raise InputError(
            f"weight is {weight.shape} in {groups} groups, its index set is for {index.shape} in {index.groups} groups",
            layer=name,
            remedy=_REMEDY,
        )


def _packed_node(
    graph: ir.Graph, conv: ir.Node, name: str, packed: PackedConv, op: OpName, epilogue: Epilogue, size: tuple[int, int]
) -> ir.Node:
    kernel = packed.weight_shape[2:]
    bias = input_at(conv, 2)
    if bias is None:
        # The operators have no optional inputs: TensorRT's parser wants all inputs of a function.
        bias = add_initializer(graph, f"{name}.bias", np.zeros(packed.weight_shape[0], packed.weight.dtype))
    weight, metadata = compress(packed.weight) if op.two_four else (packed.weight, None)
    inputs = [
        conv.inputs[0],
        add_initializer(graph, f"{name}.packed", weight),
        add_initializer(graph, f"{name}.{INDEX_INPUT[packed.base]}", packed.index),
        add_initializer(graph, f"{name}.row_group", packed.row_group),
        add_initializer(graph, f"{name}.filters", packed.filters),
        bias,
    ]
    if epilogue.residual is not None:
        inputs.append(epilogue.residual)
    if metadata is not None:
        inputs.append(add_initializer(graph, f"{name}.metadata", metadata))
    attributes: dict[str, Any] = {
        "strides": ints(conv, "strides", (1, 1)),
        "pads": conv_pads(conv, size, kernel),
        "dilations": ints(conv, "dilations", (1, 1)),
        "group": packed.groups,
        "weight_shape": packed.weight_shape,
        "list_block": packed.list_block,
        "plugin_namespace": DOMAIN,
        "plugin_version": str(VERSION),
    }
    if epilogue.alpha is not None:
        attributes["alpha"] = epilogue.alpha
    return ir.node(
        str(op), inputs, attributes, domain=DOMAIN, name=conv.name, metadata_props={**conv.metadata_props, WEIGHT: name}
    )
