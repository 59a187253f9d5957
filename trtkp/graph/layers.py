"""The layer table: all convolutions of a graph with their sizes, and the parameters and MACs of the whole net.

Sizes are found by running the graph once in ONNX Runtime at the given shapes. So they are right even after shape
arithmetic that static inference cannot follow, such as a Resize whose sizes come from Shape.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from trtkp.errors import InputError, raise_if_out_of_memory
from trtkp.graph.edit import constant, input_at, ints, weight_name
from trtkp.graph.ops import DOMAIN, DYNAMIC
from trtkp.graph.save import session_source
from trtkp.index.accounting import Matrix
from trtkp.index.conv_layer import ConvLayer
from trtkp.shapes import Shape

__all__ = [
    "LayerTable",
    "conv_layers",
    "dynamic_nodes",
    "is_conv2d",
    "product_weight",
    "run_shapes",
    "unusable_reason",
]

_WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
#: Operator to the positions of its inputs that are learnable parameters.
_PARAMETERS = {
    "Gather": (0,),
    "Conv": (1, 2),
    "ConvTranspose": (1, 2),
    "Gemm": (1, 2),
    "MatMul": (0, 1),
    "BatchNormalization": (1, 2),
    "InstanceNormalization": (1, 2),
    "LayerNormalization": (1, 2),
    "GroupNormalization": (1, 2),
    "PRelu": (1,),
}


@dataclass(frozen=True)
class LayerTable:
    """The convolutions of a graph and the totals of the net.

    Totals follow the common counting: MACs of convolutions and fully connected layers for one sample, and learnable
    parameters, which the statistics of batch normalisation are not. The bodies of If and Loop do not count, because how
    often they run depends on the data.

    Attributes:
        layers: the convolutions that can be pruned, in graph order.
        params: learnable parameters of the net.
        macs: multiply-accumulates of the net for one sample.
        left_out: name of every other convolution to the reason why it is not among the layers.
        batch_input: the input whose first dimension is the batch. None if there is none: a run is then one sample.
        matrices: weights of fully connected layers, each once.
    """

    layers: tuple[ConvLayer, ...]
    params: int
    macs: int
    left_out: dict[str, str]
    batch_input: str | None
    matrices: tuple[Matrix, ...]

    def matrices_kept(self, kept: Mapping[str, int]) -> dict[Matrix, int]:
        """The matrices that ``kept`` names, each with the number of weights that it keeps."""
        return {matrix: kept[matrix.name] for matrix in self.matrices if matrix.name in kept}


def conv_layers(model: ir.Model, shapes: Mapping[str, Shape]) -> LayerTable:
    """The layer table of a graph at the given input shapes.

    The batch is the first dimension of one of the inputs: of the first input whose first dimension divides that of the
    output of every node with weights. (Outputs have a multiple of the batch where the frames of a clip pass through a
    convolution as separate samples.) A net without such an input has no batch.

    Args:
        model: the graph.
        shapes: input name to shape.

    Raises:
        InputError: a weight has no values, or the graph does not run at these shapes.
    """
    graph = model.graph
    weighted = [node for node in graph if node.domain == "" and node.op_type in _WEIGHTED]
    for node in weighted:
        for weight in map(constant, node.inputs[:2]):
            if weight is not None and weight.size == 0:
                raise InputError(
                    f"its weight {list(weight.shape)} has no values", layer=_name(node),
                    remedy="leave the layer out of the model",
                )  # fmt: skip
    dynamic = dynamic_nodes(model)
    sized = (*weighted, *dynamic)
    values = {v.name: v for node in sized for v in (*node.inputs, *node.outputs) if v is not None and v.name}
    wanted = [name for name, v in values.items() if constant(v) is None]
    sizes = run_shapes(model, shapes, wanted)
    outputs = [_size(node.outputs[0], sizes) for node in weighted]
    samples = [size[0] if len(size) > 1 else 1 for size in outputs]
    batched = (name for name, shape in shapes.items() if shape and all(count % shape[0] == 0 for count in samples))
    batch_input = next(batched, None)
    batch = shapes[batch_input][0] if batch_input is not None else 1
    after_weighted = _behind(graph, sized)
    layers, left_out, macs = [], {}, 0
    matrices: dict[str, Matrix] = {}
    for node in dynamic:
        weight, taps = constant(node.inputs[1]), constant(node.inputs[2])
        assert weight is not None
        assert taps is not None
        # the convolution, and the sum of the patterns that makes its kernel
        macs += prod(weight.shape[1:]) * prod(_size(node.outputs[0], sizes)[2:]) + weight.size
        positions = prod(ints(node, "weight_shape", ())[2:])
        left_out[_name(node)] = f"a kernel for every sample, {taps.size} of {positions} positions ({node.op_type})"
    for node in weighted:
        cost = _macs(node, sizes) // batch
        macs += cost
        if node.op_type not in ("Conv", "ConvTranspose"):
            found = _factor(node)
            if found is not None and found[1].ndim == 2:
                name, weight = found
                before = matrices[name].macs if name in matrices else 0
                matrices[name] = Matrix(name, weight.size, before + cost)
            continue
        name = _name(node)
        reason = unusable_reason(node)
        if reason is not None:
            left_out[name] = reason
            continue
        layers.append(_layer(node, name, sizes, batch, stem=node.inputs[0] not in after_weighted))
    groups: dict[str, set[int]] = {}
    for layer in layers:
        groups.setdefault(layer.name, set()).add(layer.groups)
    mixed = {name for name in groups if len(groups[name]) > 1}  # an index set holds for one number of groups
    left_out |= dict.fromkeys(sorted(mixed), "its weight serves convolutions of different groups")
    for node in graph.all_nodes():
        if node.graph is not graph and node.domain == "" and node.op_type in ("Conv", "ConvTranspose"):
            left_out.setdefault(_name(node), "inside the body of If or Loop")
    kept = tuple(layer for layer in layers if layer.name not in mixed)
    return LayerTable(kept, _params(graph), macs, left_out, batch_input, tuple(matrices.values()))


def dynamic_nodes(model: ir.Model) -> list[ir.Node]:
    """The convolutions whose kernel is computed for every sample (`ops.DYNAMIC`), in graph order."""
    return [node for node in model.graph if node.domain == DOMAIN and node.op_type.startswith(DYNAMIC)]


def is_conv2d(node: ir.Node) -> bool:
    """Whether a node is a 2-D convolution that can be packed."""
    return unusable_reason(node) is None


def product_weight(value: ir.Value | None) -> tuple[str, npt.NDArray[Any]] | None:
    """Name and array of a stored factor of a product; None if the value is computed.

    A factor that the graph transposes first has the name of the initialiser.
    """
    node = value.producer() if value is not None else None
    if node is not None and node.domain == "" and node.op_type == "Transpose":
        found = product_weight(node.inputs[0])
        if found is None:
            return None
        return found[0], found[1].transpose(ints(node, "perm", range(found[1].ndim)[::-1]))
    stored = constant(value)
    return (str(value.name), stored) if value is not None and stored is not None else None


def unusable_reason(node: ir.Node) -> str | None:
    """Why a node cannot become a packed convolution; None if it can."""
    if node.op_type == "ConvTranspose":
        return "transposed convolution"
    if node.op_type != "Conv" or node.domain != "":
        return "not a convolution"
    weight = constant(input_at(node, 1))
    if weight is None:
        return "its weight is computed, not stored"
    if weight.ndim != 4:
        return f"{weight.ndim - 2}-d convolution"
    bias = input_at(node, 2)
    if bias is not None and constant(bias) is None:
        return "its bias is computed, not stored"
    same = node.attributes.get_string("auto_pad", "NOTSET").startswith("SAME")
    if same and set(ints(node, "strides", (1, 1))) != {1} and not _static_size(node.inputs[0]):
        return "its padding depends on the size of the input"
    return None


def _static_size(value: ir.Value | None) -> bool:
    return value is not None and value.shape is not None and all(isinstance(dim, int) for dim in value.shape[2:])


def run_shapes(model: ir.Model, shapes: Mapping[str, Shape], wanted: Sequence[str]) -> dict[str, Shape]:
    """Shapes of values in a run of the graph on zeros.

    Args:
        model: the graph. It is not changed.
        shapes: input name to shape.
        wanted: names of the values.

    Raises:
        InputError: an input has no shape, or ONNX Runtime cannot run the graph at these shapes.
    """
    import onnxruntime

    for value in model.graph.inputs:
        if value.name not in shapes:
            raise InputError("no shape for this input", layer=str(value.name), remedy="give --input-shape")
    probe = model.clone()
    by_name = {v.name: v for node in probe.graph for v in node.outputs} | {v.name: v for v in probe.graph.inputs}
    found = [name for name in wanted if name in by_name]
    nodes = [ir.node("Shape", [by_name[name]], name=f"trtkp_probe_{i}") for i, name in enumerate(found)]
    for i, node in enumerate(nodes):
        node.outputs[0].name, node.outputs[0].type = f"trtkp_shape_{i}", ir.TensorType(ir.DataType.INT64)
    # Only the shapes leave the run: the values themselves may be hundreds of megabytes.
    probe.graph.extend(nodes)
    probe.graph.outputs.clear()
    probe.graph.outputs.extend(node.outputs[0] for node in nodes)
    if not found:
        return {}
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    # One run needs no optimisation, and the values keep the names and shapes that the graph gives them.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    feeds = {}
    for value in probe.graph.inputs:
        assert value.dtype is not None
        feeds[value.name] = np.zeros(shapes[str(value.name)], value.dtype.numpy())
    try:
        with session_source(probe) as source:
            session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        results = session.run(None, feeds)
    except Exception as error:  # onnxruntime's errors share no base class of their own
        raise_if_out_of_memory(error)
        text = ", ".join(f"{name} {'x'.join(map(str, shape))}" for name, shape in shapes.items())
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(
            f"the graph does not run at {text} ({reason})",
            remedy="give shapes the model takes, of a model that ONNX Runtime runs",
        ) from error
    measured = {name: tuple(map(int, result)) for name, result in zip(found, results, strict=True)}
    return measured | {str(v.name): shapes[str(v.name)] for v in model.graph.inputs if v.name in wanted}


def _layer(node: ir.Node, name: str, sizes: Mapping[str, Shape], batch: int, stem: bool) -> ConvLayer:
    weight = constant(node.inputs[1])
    assert weight is not None
    filters, channels, rows, columns = weight.shape
    source, target = _size(node.inputs[0], sizes), _size(node.outputs[0], sizes)
    strides, dilations = ints(node, "strides", (1, 1)), ints(node, "dilations", (1, 1))
    return ConvLayer(
        name=name,
        node=node.name or name,
        filters=filters,
        channels=channels,
        kernel=(rows, columns),
        strides=(strides[0], strides[1]),
        pads=conv_pads(node, (source[2], source[3]), (rows, columns)),
        dilations=(dilations[0], dilations[1]),
        groups=node.attributes.get_int("group", 1),
        input_size=(source[2], source[3]),
        output_size=(target[2], target[3]),
        bias=input_at(node, 2) is not None,
        stem=stem,
        repeats=target[0] // batch,
    )


def conv_pads(node: ir.Node, size: tuple[int, int], kernel: tuple[int, int]) -> tuple[int, int, int, int]:
    """Top, left, bottom and right padding of a convolution. ``auto_pad`` is resolved for the given height and width."""
    mode = node.attributes.get_string("auto_pad", "NOTSET")
    if mode in ("NOTSET", "VALID", ""):
        top, left, bottom, right = ints(node, "pads", (0, 0, 0, 0)) if mode != "VALID" else (0, 0, 0, 0)
        return top, left, bottom, right
    strides, dilations = ints(node, "strides", (1, 1)), ints(node, "dilations", (1, 1))
    before, after = [], []
    for extent, taps, stride, dilation in zip(size, kernel, strides, dilations, strict=True):
        total = max(0, (-(-extent // stride) - 1) * stride + dilation * (taps - 1) + 1 - extent)
        small, large = total // 2, total - total // 2
        before.append(small if mode == "SAME_UPPER" else large)
        after.append(large if mode == "SAME_UPPER" else small)
    return before[0], before[1], after[0], after[1]


def _behind(graph: ir.Graph, weighted: Sequence[ir.Node]) -> set[ir.Value]:
    """Values that depend on the output of a weighted node."""
    marked: set[ir.Value] = set()
    heads = set(weighted)
    for node in graph:  # graphs are sorted
        if node in heads or any(value in marked for value in node.inputs if value is not None):
            marked.update(node.outputs)
    return marked


def _macs(node: ir.Node, sizes: Mapping[str, Shape]) -> int:
    """Multiply-accumulates of a convolution, or of a product with a stored weight. Products of activations count 0."""
    target = _size(node.outputs[0], sizes)
    if node.op_type in ("Conv", "ConvTranspose"):
        stored = constant(node.inputs[1])
        shape = stored.shape if stored is not None else _size(node.inputs[1], sizes)
        # A convolution uses every weight once per output position, a transposed one once per input position.
        places = _size(node.inputs[0], sizes) if node.op_type == "ConvTranspose" else target
        return places[0] * prod(places[2:]) * prod(shape)
    found = _factor(node)
    if found is None:
        return 0
    # Gemm and MatMul: every output element is a sum over the weight's inner dimension.
    weight = found[1]
    transposed = node.op_type == "Gemm" and node.attributes.get_int("transB", 0) == 1
    last = transposed or weight.ndim == 1 or product_weight(input_at(node, 1)) is None
    return prod(target) * weight.shape[-1 if last else -2]


def _factor(node: ir.Node) -> tuple[str, npt.NDArray[Any]] | None:
    """The stored factor of Gemm or MatMul."""
    return product_weight(input_at(node, 1)) or product_weight(input_at(node, 0))


def _name(node: ir.Node) -> str:
    return weight_name(node) or node.name or node.op_type


def _size(value: ir.Value | None, sizes: Mapping[str, Shape]) -> Shape:
    return sizes[str(value.name)] if value is not None else ()


def _params(graph: ir.Graph) -> int:
    counted: dict[str, int] = {}
    for node in graph:
        for index in _parameter_inputs(node):
            found = product_weight(input_at(node, index))
            if found is not None and found[1].dtype.kind not in "iub":  # a Gather of integers is shape arithmetic
                counted[found[0]] = found[1].size
        if node.op_type == "Add" and any(v is not None and _is_product(v) for v in node.inputs):
            for value in node.inputs:  # the bias of a fully connected layer that is exported as MatMul and Add
                stored = constant(value)
                if stored is not None and value is not None:
                    counted[str(value.name)] = stored.size
    return sum(counted.values())


def _parameter_inputs(node: ir.Node) -> tuple[int, ...]:
    if node.domain == "":
        return _PARAMETERS.get(node.op_type, ())
    return (1, 4) if node.domain == DOMAIN and node.op_type.startswith(DYNAMIC) else ()


def _is_product(value: ir.Value) -> bool:
    producer = value.producer()
    return producer is not None and producer.op_type == "MatMul"
