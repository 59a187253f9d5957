"""Constant channels: which channels of a graph's values hold one number at every position, whatever the input."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from trtkp.graph.channels import BROADCAST, CHANNELWISE, ChannelFlow, Kind, filter_axis
from trtkp.graph.edit import constant, input_at, ints

__all__ = ["channel_constants", "is_uniform", "mixing_weight"]

Floats = npt.NDArray[np.float64]

_EVALUATED = CHANNELWISE | BROADCAST | {
    "BatchNormalization", "DequantizeLinear", "InstanceNormalization", "QuantizeLinear"
}  # fmt: skip
#: Operators that turn a constant plane into a plane of the same constant.
_KEEP = frozenset(
    {
        "GlobalAveragePool", "GlobalMaxPool", "MaxPool", "ReduceMax", "ReduceMean", "ReduceMin", "Slice", "Squeeze",
        "Unsqueeze",
    }
)  # fmt: skip


def channel_constants(model: ir.Model, flow: ChannelFlow) -> dict[ir.Value, Floats]:
    """The constants of every value in the flow, float64 [C]; NaN where a channel varies or is not finite."""
    opset = model.graph.opset_imports[""]
    found = {value: np.full(channels.count, np.nan) for value, channels in flow.channels.items()}
    for node, role in flow.roles.items():
        if role.kind is Kind.OPAQUE:
            continue
        sources = [found[source] for source in role.sources]
        if role.kind in (Kind.MIX, Kind.GROUPED):
            result = _mixed(node, sources[0] if sources else None, flow)
        elif role.kind is Kind.CONCAT:
            result = np.concatenate(sources)
        elif role.kind is Kind.GATHER:
            indices = constant(node.inputs[1])
            assert indices is not None
            result = sources[0][indices]
        elif node.op_type in _EVALUATED:
            result = _evaluated(node, flow, found, opset)
        else:
            result = _spread(node, sources[0])
        result[~np.isfinite(result)] = np.nan
        found[node.outputs[0]] = result
    return found


def is_uniform(node: ir.Node) -> bool:
    """Whether a mixing node turns constant planes into constant planes: no position reads padding.

    It must also take a bias, into which the constants can be folded.
    """
    if node.op_type == "Conv":
        free = node.attributes.get_string("auto_pad", "NOTSET") in ("NOTSET", "VALID", "")
        return free and not any(ints(node, "pads", ()))
    return node.op_type == "Gemm"


def mixing_weight(node: ir.Node, block: int = 1) -> tuple[npt.NDArray[Any], Callable[[npt.NDArray[Any]], Any]]:
    """The weight of a mixing node as [F, C, taps], and the function that turns such an array back into its layout.

    Args:
        node: the node.
        block: columns of a fully connected layer that are one channel; they count as its taps.
    """
    weight = constant(node.inputs[1])
    assert weight is not None
    turned = np.moveaxis(weight, filter_axis(node), 0)
    shape = turned.shape

    def give_back(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return np.moveaxis(array.reshape(shape), 0, filter_axis(node))

    return turned.reshape(shape[0], shape[1] // block, -1), give_back


def _mixed(node: ir.Node, source: Floats | None, flow: ChannelFlow) -> Floats:
    sources = flow.roles[node].sources
    weight, _ = mixing_weight(node, flow.channels[sources[0]].block if sources else 1)
    filters, channels, _ = weight.shape
    groups = node.attributes.get_int("group", 1)
    values = np.full(channels * groups, np.nan) if source is None else source
    values = values.reshape(groups, 1, channels).repeat(filters // groups, axis=1).reshape(filters, channels)
    # Padding puts zeros around a plane, so behind a padded convolution only the constant 0 stays constant.
    foldable = ~np.isnan(values) if is_uniform(node) else values == 0
    # A filter is constant if all channels for which it has weights are constant.
    constant_filters = ~((weight != 0).any(axis=2) & ~foldable).any(axis=1)
    result = np.full(filters, np.nan)
    bias = constant(input_at(node, 2))
    picked = np.flatnonzero(constant_filters)
    sums = weight[picked].astype(np.float64).sum(axis=2)
    # A plane of x_c under a kernel gives x_c times the sum of its taps. Where that is 0, x_c may be unknown.
    result[picked] = (sums * np.where(sums != 0, np.nan_to_num(values[picked]), 0)).sum(axis=1)
    if bias is not None:
        result[picked] += np.broadcast_to(bias.astype(np.float64).ravel(), filters)[picked]
    return result


def _spread(node: ir.Node, source: Floats) -> Floats:
    """Constants after an operator that reads several positions of one channel.

    ``edge`` is the value that the operator puts beside the plane: only a channel of that constant stays constant.
    """
    if node.op_type in _KEEP or node.op_type in ("Flatten", "Reshape"):
        return source.copy()
    edge: float | None = 0.0
    if node.op_type == "AveragePool":
        padded = any(ints(node, "pads", ())) or node.attributes.get_string("auto_pad", "NOTSET").startswith("SAME")
        padded = padded or node.attributes.get_int("ceil_mode", 0) == 1
        edge = 0.0 if padded and node.attributes.get_int("count_include_pad", 0) == 1 else None
    elif node.op_type == "Pad" and node.attributes.get_string("mode", "constant") == "constant":
        fill = constant(input_at(node, 2))
        edge = 0.0 if fill is None else float(fill.item())
    elif node.op_type == "Pad":
        edge = None
    elif node.op_type == "Resize":
        weighted = node.attributes.get_string("mode", "nearest") in ("nearest", "linear")
        inside = node.attributes.get_string("coordinate_transformation_mode", "half_pixel") != "tf_crop_and_resize"
        if not (weighted and inside):
            return np.full(len(source), np.nan)
        edge = None
    return source.copy() if edge is None else np.where(source == edge, source, np.nan)


def _evaluated(node: ir.Node, flow: ChannelFlow, found: Mapping[ir.Value, Floats], opset: int) -> Floats:
    """Constants after an elementwise operator, computed by ONNX's reference implementation at one position."""
    from onnx.reference import ReferenceEvaluator

    role, channels = flow.roles[node], flow.channels[node.outputs[0]]
    sources = [found[source] for source in role.sources]
    unknown = np.isnan(sources).any(axis=0)
    result = np.full(channels.count, np.nan)
    if node.op_type == "Mul" and len(sources) > 1:
        result[(np.array(sources) == 0).any(axis=0)] = 0  # whatever the other factor
    if unknown.all():
        return result
    axes = dict(role.parameters)
    feeds = {}
    for index, value in enumerate(node.inputs):
        if value is None:
            continue
        stored = constant(value)
        if stored is None:
            columns = np.repeat(np.nan_to_num(found[value]), channels.block)
            feeds[str(value.name)] = columns.reshape(1, -1, *(1,) * (channels.rank - 2))
            continue
        if node.op_type in BROADCAST and prod(stored.shape) != (stored.shape[axes[index]] if index in axes else 1):
            return result  # the operand differs from position to position
        feeds[str(value.name)] = stored.astype(np.float64) if stored.dtype.kind == "f" else stored
    evaluator = ReferenceEvaluator(ir.serde.serialize_node(node), opsets={"": opset})
    with np.errstate(all="ignore"):
        (output,) = evaluator.run(None, feeds)
    output = np.asarray(output, np.float64).reshape(channels.count, channels.block)
    # After flattening, a channel has several columns, and is constant only if all of them agree.
    same = ~unknown & (output == output[:, :1]).all(axis=1)
    result[same] = output[same, 0]
    return result
