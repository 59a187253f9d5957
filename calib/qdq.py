"""Insert Q/DQ pairs into a graph, with symmetric scales, for 8-bit integers or FP8 (E4M3).

    int8:   scale = amax / 127,  q = clip(round(x / scale), -127, 127)
    uint8:  scale = amax / 255,  q = clip(round(x / scale), 0, 255)
    FP8:    scale = amax / 448,  q = x / scale rounded to E4M3

``round`` rounds half to even. ONNX's operator itself clips int8 at -128. Activations have one scale per tensor, weights
one per filter. Zero is represented exactly, so pruned weights stay zero.
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

#: The first opset whose Q/DQ operators support both FP8 and half-precision scales. Older graphs are converted to it.
OPSET = 21
#: Largest magnitude of each 8-bit type.
_LIMIT = {"int8": 127.0, "uint8": 255.0, "fp8": 448.0}
#: Bytes of the initialisers that stay in a large graph while it is lifted.
_SMALL = 1 << 10
_FLOAT8 = np.dtype(ml_dtypes.float8_e4m3fn)
_DTYPE = {"int8": np.dtype(np.int8), "uint8": np.dtype(np.uint8), "fp8": _FLOAT8}


def weight_scales(weight: npt.NDArray[Any], axis: int, kind: Kind = "int8") -> npt.NDArray[np.float32]:
    """Return one scale per filter, ``max |w| / 127`` for int8 and ``max |w| / 448`` for FP8.

    Args:
        weight: the weight, of any shape.
        axis: its axis of filters.
        kind: int8 or fp8.

    Returns:
        float32 [F]; 1 for a filter of zeros, which stays zero with any scale.

    Example:
        >>> weight_scales(np.array([[1.27, -0.5], [0.0, 0.0]], np.float32), axis=0)
        array([0.01, 1.  ], dtype=float32)
    """
    others = tuple(a for a in range(weight.ndim) if a != axis)
    scales = np.abs(weight.astype(np.float32)).max(axis=others, initial=0.0) / np.float32(_LIMIT[kind])
    return np.where(scales > 0, scales, np.float32(1)).astype(np.float32)


def quantise_weight(
    weight: npt.NDArray[Any], scales: npt.NDArray[Any], axis: int, kind: Kind = "int8"
) -> npt.NDArray[Any]:
    """Quantise a weight.

    Args:
        weight: the weight, of any floating-point type.
        scales: one scale per filter [F], as the graph stores them.
        axis: the weight's axis of filters.
        kind: int8 or fp8.

    Returns:
        int8 or float8_e4m3fn, of the weight's shape.
    """
    shape = [1] * weight.ndim
    shape[axis] = -1
    levels = weight.astype(np.float32) / scales.astype(np.float32).reshape(shape)
    limit = _LIMIT[kind]
    if kind == "fp8":
        return np.clip(levels, -limit, limit).astype(_FLOAT8)
    return np.clip(np.rint(levels), -limit, limit).astype(np.int8)


def insert(model: ir.Model, placement: Placement, amax: Mapping[str, float], kind: Kind = "int8") -> ir.Model:
    """Return a copy of a graph with the Q/DQ pairs of a placement.

    Weights become 8-bit initialisers followed by a DequantizeLinear.

    Args:
        model: a float32 or float16 graph with the nodes and values that the placement names.
        placement: made for the same graph in float32.
        amax: magnitude of the range by tensor name, for every tensor of `Placement.tensors`.
        kind: int8 or fp8.

    Raises:
        InputError: a tensor has no range.
    """
    half = any(value.dtype == ir.DataType.FLOAT16 for value in model.graph.initializers.values())
    graph = _lifted(model) if kind == "fp8" or half else model.clone()
    common_passes.ShapeInferencePass()(graph)  # a scale must have the type of its value, so the types must be known
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
    """Return a copy of the graph whose opset is at least `OPSET`."""
    if model.graph.opset_imports.get("", 0) >= OPSET:
        return model.clone()
    from onnx import version_converter

    light = model.clone()
    weights = _detach_weights(light.graph) if is_large(model) else {}
    lifted = ir.from_proto(version_converter.convert_version(ir.to_proto(light), OPSET))
    _attach_weights(lifted.graph, weights)
    notes = {node.name: node.metadata_props for node in model.graph}
    for node in lifted.graph:  # the version converter drops metadata, which holds the weights' parameter names
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
    # Look the value up at its reader: in a half-precision graph, a Cast may have been inserted in front of it.
    value = values[pair.value] if pair.readers is None else nodes[pair.readers[0][0]].inputs[pair.readers[0][1]]
    assert value is not None
    stored = "uint8" if pair.unsigned and kind == "int8" else kind
    scale = _as_stored(np.asarray(scale_of(amax, _LIMIT[stored]), np.float32), value)
    dequantised = _pair(graph, value, pair.value, scale, np.zeros((), _DTYPE[stored]))
    quantiser = dequantised.producer().inputs[0].producer()  # type: ignore[union-attr]  # both were made above
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
    if value not in shared:  # a weight used by several nodes is stored and dequantised once
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
    """Cast a scale to the type of its value. In half precision it is rounded up, so that rounding clips no value."""
    if value.dtype != ir.DataType.FLOAT16:
        return scale
    half = np.maximum(scale.astype(np.float16), np.finfo(np.float16).smallest_subnormal)
    return np.where(half < scale, np.nextafter(half, np.float16(np.inf)), half).astype(np.float16)


def _store(graph: ir.Graph, name: str, array: npt.NDArray[Any]) -> ir.Value:
    return add_initializer(graph, name, array)
