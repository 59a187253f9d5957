"""Write Q/DQ pairs into a graph, with symmetric scales: 8-bit integers, or FP8 (E4M3).

    scale = amax / 127,     q = clip(round(x / scale), -127, 127)      (round half to even; the operators clip at -128)
    unsigned: amax / 255, 0..255;     FP8: amax / 448, rounded to E4M3

Activations have one scale per tensor, weights one per filter. Zero is exactly zero, so pruned weights stay zeros.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import onnx_ir.passes.common as common_passes

from trtkp.bundle.calibration import scale_of
from trtkp.calib.placement import Pair, Placement, Site
from trtkp.errors import InputError
from trtkp.graph.edit import add_initializer, constant, finish, input_at
from trtkp.graph.save import is_large

__all__ = ["OPSET", "Kind", "insert", "quantise_weight", "weight_scales"]

Kind: TypeAlias = Literal["int8", "fp8"]

#: From here on Q/DQ know FP8 and half-precision scales; earlier graphs are lifted to it.
OPSET = 21
#: Largest magnitude of a type.
_LIMIT = {"int8": 127.0, "uint8": 255.0, "fp8": 448.0}
#: Bytes of the initialisers that stay in a large graph while it is lifted.
_SMALL = 1 << 10
_FLOAT8 = np.dtype(ml_dtypes.float8_e4m3fn)
_DTYPE = {"int8": np.dtype(np.int8), "uint8": np.dtype(np.uint8), "fp8": _FLOAT8}


def weight_scales(weight: npt.NDArray[Any], axis: int, kind: Kind = "int8") -> npt.NDArray[np.float32]:
    """One scale per filter [F]: ``max |w| / 127`` in float32; 1 for a filter of zeros, which stays zeros."""
    others = tuple(a for a in range(weight.ndim) if a != axis)
    scales = np.abs(weight.astype(np.float32)).max(axis=others, initial=0.0) / np.float32(_LIMIT[kind])
    return np.where(scales > 0, scales, np.float32(1)).astype(np.float32)


def quantise_weight(
    weight: npt.NDArray[Any], scales: npt.NDArray[Any], axis: int, kind: Kind = "int8"
) -> npt.NDArray[Any]:
    """The weight in 8 bits, of the same shape.

    Args:
        weight: any floating-point type.
        scales: [F], as the graph stores them.
        axis: of the filters.
        kind: int8, or fp8.
    """
    shape = [1] * weight.ndim
    shape[axis] = -1
    levels = weight.astype(np.float32) / scales.astype(np.float32).reshape(shape)
    limit = _LIMIT[kind]
    if kind == "fp8":
        return np.clip(levels, -limit, limit).astype(_FLOAT8)
    return np.clip(np.rint(levels), -limit, limit).astype(np.int8)


def insert(model: ir.Model, placement: Placement, amax: Mapping[str, float], kind: Kind = "int8") -> ir.Model:
    """A copy of a graph with the pairs of a placement; weights become 8-bit initialisers behind a DequantizeLinear.

    Args:
        model: float32 or float16, with the nodes and values that the placement names.
        placement: from the same graph in float32.
        amax: largest magnitude by tensor name, for `Placement.tensors`.
        kind: int8 or fp8.

    Raises:
        InputError: a tensor without a range.
    """
    half = any(value.dtype == ir.DataType.FLOAT16 for value in model.graph.initializers.values())
    graph = _lifted(model) if kind == "fp8" or half else model.clone()
    common_passes.ShapeInferencePass()(graph)  # a scale has the type of its value
    nodes = {str(node.name): node for node in graph.graph}
    values = {str(v.name): v for node in graph.graph for v in (*node.inputs, *node.outputs) if v is not None}
    for pair in placement.pairs:
        if pair.range_of not in amax:
            raise InputError("the calibration has no range for this tensor", layer=pair.range_of)
        _quantise_value(graph.graph, nodes, values, pair, amax[pair.range_of], kind)
    shared: dict[ir.Value, ir.Value] = {}
    for site in placement.sites:
        _quantise_site(graph.graph, nodes[site.node], site, kind, shared)
    graph.graph.sort()
    finish(graph)
    return graph


def _lifted(model: ir.Model) -> ir.Model:
    """A copy at opset `OPSET` at least."""
    if model.graph.opset_imports.get("", 0) >= OPSET:
        return model.clone()
    from onnx import version_converter

    light = model.clone()
    weights = _detach_weights(light.graph) if is_large(model) else {}
    lifted = ir.from_proto(version_converter.convert_version(ir.to_proto(light), OPSET))
    _attach_weights(lifted.graph, weights)
    notes = {node.name: node.metadata_props for node in model.graph}
    for node in lifted.graph:  # the converter drops them
        node.metadata_props.update(notes.get(node.name, {}))
    return lifted


def _detach_weights(graph: ir.Graph) -> dict[str, ir.TensorProtocol]:
    """Make graph inputs of large initialisers: ONNX's converter passes the graph on as one message of at most 2 GiB.

    What it reads of constants (axes, sizes) are small tensors, which stay.
    """
    found: dict[str, ir.TensorProtocol] = {}
    for name, value in list(graph.initializers.items()):
        tensor = value.const_value
        if tensor is not None and tensor.nbytes > _SMALL:
            value.dtype, value.shape = tensor.dtype, ir.Shape(tensor.shape.numpy())
            graph.inputs.append(graph.initializers.pop(name))
            found[name] = tensor
    return found


def _attach_weights(graph: ir.Graph, weights: Mapping[str, ir.TensorProtocol]) -> None:
    for value in [value for value in graph.inputs if value.name in weights]:
        graph.inputs.remove(value)
        value.const_value = weights[str(value.name)]
        graph.register_initializer(value)


def _quantise_value(
    graph: ir.Graph, nodes: Mapping[str, ir.Node], values: Mapping[str, ir.Value], pair: Pair, amax: float, kind: Kind
) -> None:
    # by the node that reads it: casts of a half-precision graph may stand between
    value = values[pair.value] if pair.readers is None else nodes[pair.readers[0][0]].inputs[pair.readers[0][1]]
    assert value is not None
    stored = "uint8" if pair.unsigned and kind == "int8" else kind
    scale = _as_stored(np.asarray(scale_of(amax, _LIMIT[stored]), np.float32), value)
    dequantised = _pair(graph, value, pair.value, scale, np.zeros((), _DTYPE[stored]))
    quantiser = dequantised.producer().inputs[0].producer()  # type: ignore[union-attr]  # made just now
    if pair.readers is None:
        for use in list(value.uses()):
            if use.node is not quantiser:
                use.node.replace_input_with(use.idx, dequantised)
    else:
        for name, position in pair.readers:
            nodes[name].replace_input_with(position, dequantised)


def _pair(graph: ir.Graph, value: ir.Value, name: str, scale: npt.NDArray[Any], zero: npt.NDArray[Any]) -> ir.Value:
    parameters = [_store(graph, f"{name}.scale", scale), _store(graph, f"{name}.zero_point", zero)]
    quantise = ir.node("QuantizeLinear", [value, *parameters], name=f"{name}/quantise")
    quantise.outputs[0].name = f"{name}_quantised"
    dequantise = ir.node("DequantizeLinear", [quantise.outputs[0], *parameters], name=f"{name}/dequantise")
    dequantise.outputs[0].name = f"{name}_dequantised"
    if value.dtype is not None:
        dequantise.outputs[0].dtype, dequantise.outputs[0].shape = value.dtype, value.shape
    producer = value.producer()
    if producer is None:
        graph.insert_before(graph[0], [quantise, dequantise])
    else:
        graph.insert_after(producer, [quantise, dequantise])
    return dequantise.outputs[0]


def _quantise_site(graph: ir.Graph, node: ir.Node, site: Site, kind: Kind, shared: dict[ir.Value, ir.Value]) -> None:
    value = input_at(node, 1)
    weight = constant(value)
    assert value is not None
    assert weight is not None
    if value not in shared:
        scales = _as_stored(weight_scales(weight, site.axis, kind), value)
        levels = quantise_weight(weight, scales, site.axis, kind)
        inputs = [
            _store(graph, f"{value.name}.{kind}", levels),
            _store(graph, f"{value.name}.scale", scales),
            _store(graph, f"{value.name}.zero_point", np.zeros(len(scales), levels.dtype)),
        ]
        dequantise = ir.node("DequantizeLinear", inputs, {"axis": site.axis}, name=f"{site.node}/weight")
        dequantise.outputs[0].name = f"{value.name}_dequantised"
        dequantise.outputs[0].dtype = ir.DataType.from_numpy(weight.dtype)
        dequantise.outputs[0].shape = value.shape
        graph.insert_before(graph[0], [dequantise])
        shared[value] = dequantise.outputs[0]
    node.replace_input_with(1, shared[value])


def _as_stored(scale: npt.NDArray[np.float32], value: ir.Value) -> npt.NDArray[Any]:
    """The scale in the type of its value; in half precision rounded up, so that nothing is clipped by it."""
    if value.dtype != ir.DataType.FLOAT16:
        return scale
    half = np.maximum(scale.astype(np.float16), np.finfo(np.float16).smallest_subnormal)
    return np.where(half < scale, np.nextafter(half, np.float16(np.inf)), half).astype(np.float16)


def _store(graph: ir.Graph, name: str, array: npt.NDArray[Any]) -> ir.Value:
    return add_initializer(graph, name, array)
