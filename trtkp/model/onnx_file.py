"""Reading ONNX files from untrusted sources: parse the file, read its data files into it, and check it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import IO

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto

from trtkp.errors import InputError, raise_if_out_of_memory
from trtkp.model.external import ExternalData, MappedWeight

__all__ = ["MIN_OPSET", "OnnxFile", "opset_of", "read_onnx", "upgrade"]

#: The oldest opset that the passes handle. Older files are upgraded to it.
MIN_OPSET = 18
_MAX_ELEMENTS = 1 << 40
#: Nodes that a model may have once its functions are inlined. Functions that call each other twice double with every
#: level: 40 levels are a small file and 2^40 nodes. Exported networks with functions have some thousand nodes.
MAX_INLINED = 100_000
#: External data of this many bytes is mapped instead of read. The rest of the file stays far below the 2 GiB that
#: protobuf can hold.
_LARGE = 1 << 16
#: The types that are mapped: those of weights that NumPy has.
_MAPPED = {TensorProto.FLOAT: "<f4", TensorProto.FLOAT16: "<f2", TensorProto.DOUBLE: "<f8", TensorProto.INT8: "|i1"}
_EXPORT_AGAIN = "export the model again"
_BITS: dict[int, int] = {
    TensorProto.FLOAT: 32, TensorProto.UINT8: 8, TensorProto.INT8: 8, TensorProto.UINT16: 16, TensorProto.INT16: 16,
    TensorProto.INT32: 32, TensorProto.INT64: 64, TensorProto.BOOL: 8, TensorProto.FLOAT16: 16, TensorProto.DOUBLE: 64,
    TensorProto.UINT32: 32, TensorProto.UINT64: 64, TensorProto.COMPLEX64: 64, TensorProto.COMPLEX128: 128,
    TensorProto.BFLOAT16: 16, TensorProto.FLOAT8E4M3FN: 8, TensorProto.FLOAT8E4M3FNUZ: 8, TensorProto.FLOAT8E5M2: 8,
    TensorProto.FLOAT8E5M2FNUZ: 8, TensorProto.UINT4: 4, TensorProto.INT4: 4, TensorProto.FLOAT4E2M1: 4,
}  # fmt: skip


@dataclass(frozen=True)
class OnnxFile:
    """An ONNX file that was read and checked.

    Attributes:
        proto: the model. All its data is inside except that of the initialisers in ``mapped``.
        mapped: the large initialisers of data files, by name.
        data_files: name and SHA-256 digest of each data file.
    """

    proto: ModelProto
    mapped: dict[str, MappedWeight]
    data_files: list[tuple[str, bytes]]


def read_onnx(handle: IO[bytes], path: Path) -> OnnxFile:
    """Read a model.

    Args:
        handle: the open file.
        path: its path. Data files must be in its folder.

    Raises:
        InputError: the file is not an ONNX model or is broken, has data outside its folder, sparse or missing
            initialisers or nodes in training mode, or is refused by ``onnx.checker``.
    """
    handle.seek(0)
    model = ModelProto()
    try:
        model.ParseFromString(handle.read())
    except Exception as error:
        raise_if_out_of_memory(error)
        # Protobuf raises DecodeError, or another exception from its C implementation.
        raise InputError(
            "is no model format that trtkp knows, cut off, or nested too deep", file=path, remedy=_EXPORT_AGAIN
        ) from None
    if not model.HasField("graph") or not (model.graph.node or model.graph.output) or not model.opset_import:
        raise InputError("is not an ONNX model: it has no graph", file=path, remedy=_EXPORT_AGAIN)
    if not model.graph.output or not model.graph.node:
        raise InputError("the graph has no nodes or no outputs", file=path, remedy=_EXPORT_AGAIN)
    if opset_of(model) == 0:
        raise InputError("the model does not say which opset it uses", file=path, remedy=_EXPORT_AGAIN)
    _check_functions(model, path)
    with ExternalData(path) as external:
        for tensor in _inner_tensors(model, path):
            size = _checked_size(tensor, path)
            if tensor.data_location == TensorProto.EXTERNAL:
                external.load(tensor, size)
        sizes = [_checked_size(tensor, path) for tensor in model.graph.initializer]
        for node in _all_nodes(model):
            _check_inference(model, node, path)
            # our own passes keep notes there, and would believe those of the file
            node.ClearField("metadata_props")
        # The large initialisers are read last: a file that is refused costs no memory for them.
        _run_checker(model, path)
        mapped = {}
        for tensor, size in zip(model.graph.initializer, sizes, strict=True):
            if tensor.data_location == TensorProto.EXTERNAL:
                if size >= _LARGE and tensor.data_type in _MAPPED:
                    mapped[tensor.name] = external.map(tensor, np.dtype(_MAPPED[tensor.data_type]))
                else:
                    external.load(tensor, size)
        return OnnxFile(model, mapped, external.digests())


def opset_of(model: ModelProto) -> int:
    """Version of the standard operators that the model imports; 0 if it imports none."""
    return max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=0)


def upgrade(model: ModelProto, path: Path) -> ModelProto:
    """The model at opset `MIN_OPSET` or later, converted by ONNX's version converter if necessary.

    Raises:
        InputError: the converter fails.
    """
    from onnx import version_converter

    version = opset_of(model)
    if version >= MIN_OPSET:
        return model
    try:
        converted: ModelProto = version_converter.convert_version(_without_data(model), MIN_OPSET)
    except Exception as error:
        raise_if_out_of_memory(error)
        # The converter's exceptions have no common base.
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise InputError(
            f"opset {version} cannot be upgraded to {MIN_OPSET} ({reason[:160]})",
            file=path,
            remedy=f"export the model again with opset {MIN_OPSET} or above",
        ) from None
    # Initialisers that are inputs too are those of a file of IR version 3, and become initialisers alone again.
    converted.graph.initializer.extend(t for t in model.graph.initializer if t.data_location == TensorProto.EXTERNAL)
    return converted


def _graphs(graph: GraphProto) -> Iterator[GraphProto]:
    yield graph
    for node in graph.node:
        yield from _inner_graphs(node)


def _inner_graphs(node: NodeProto) -> Iterator[GraphProto]:
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield from _graphs(attribute.g)
        for graph in attribute.graphs:
            yield from _graphs(graph)


def _all_nodes(model: ModelProto) -> Iterator[NodeProto]:
    yield from _with_inner(model.graph.node)
    for function in model.functions:
        yield from _with_inner(function.node)


def _check_functions(model: ModelProto, path: Path) -> None:
    """Refuse functions that call themselves, and those that become too many nodes when they are inlined."""
    if not model.functions:
        return
    bodies = {(f.domain, f.name, f.overload): [*_with_inner(f.node)] for f in model.functions}
    calls = {key: {callee for node in body if (callee := _callee(node)) in bodies} for key, body in bodies.items()}
    try:
        order = [*TopologicalSorter(calls).static_order()]
    except CycleError as error:
        names = " -> ".join(_shown(key) for key in reversed(error.args[1][:4]))
        raise InputError(f"a function calls itself ({names})", file=path, remedy=_EXPORT_AGAIN) from None
    sizes: dict[tuple[str, str, str], int] = {}
    for key in order:
        sizes[key] = sum(sizes.get(_callee(node), 1) for node in bodies[key])
        if sizes[key] > MAX_INLINED:
            raise _too_large(f"function {_shown(key)}", sizes[key], path)
    total = sum(sizes.get(_callee(node), 1) for node in _with_inner(model.graph.node))
    if total > MAX_INLINED and total > sum(1 for _ in _with_inner(model.graph.node)):
        raise _too_large("the graph", total, path)


def _with_inner(nodes: Iterable[NodeProto]) -> Iterator[NodeProto]:
    for node in nodes:
        yield node
        for graph in _inner_graphs(node):
            yield from graph.node


def _callee(node: NodeProto) -> tuple[str, str, str]:
    return node.domain, node.op_type, node.overload


def _shown(key: tuple[str, str, str]) -> str:
    return ascii("::".join(part for part in key if part))[1:-1][:80]


def _too_large(what: str, size: int, path: Path) -> InputError:
    return InputError(
        f"{what} has {float(size):.6g} nodes once its functions are inlined, at most {MAX_INLINED} are supported",
        file=path,
        remedy="export the model with fewer levels of functions",
    )


def _inner_tensors(model: ModelProto, path: Path) -> Iterator[TensorProto]:
    """Every tensor except the main graph's initialisers. Sparse tensors and duplicate names are refused."""
    sparse = "sparse tensors are not supported"
    if model.training_info:
        raise InputError("the file holds training information", file=path, remedy="export it for inference")
    graphs = list(_graphs(model.graph))
    graphs += [graph for function in model.functions for node in function.node for graph in _inner_graphs(node)]
    for graph in graphs:
        if graph.sparse_initializer:
            name = graph.sparse_initializer[0].values.name
            raise InputError(sparse, file=path, layer=name, remedy="export the weights dense, with their zeros")
        names = [tensor.name for tensor in graph.initializer]
        if len(set(names)) != len(names) or "" in names:
            raise InputError("two initialisers have one name, or one has none", file=path, remedy=_EXPORT_AGAIN)
        if graph is not graphs[0]:
            yield from graph.initializer
    for node in _all_nodes(model):
        for attribute in node.attribute:
            if attribute.HasField("sparse_tensor") or attribute.sparse_tensors:
                raise InputError(sparse, file=path, layer=node.name)
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors


def _checked_size(tensor: TensorProto, path: Path) -> int:
    """Bytes that a tensor's shape and type need. Data inside the file is checked against them."""
    shape = [int(dim) for dim in tensor.dims]
    count = math.prod(shape)
    if any(dim < 0 for dim in shape) or count > _MAX_ELEMENTS or tensor.HasField("segment"):
        raise InputError(f"the shape {shape} is not valid", file=path, layer=tensor.name, remedy=_EXPORT_AGAIN)
    external = tensor.data_location == TensorProto.EXTERNAL
    if tensor.data_type == TensorProto.STRING and not external:
        if len(tensor.string_data) != count:
            raise _missing(tensor, len(tensor.string_data), count, path)
        return 0
    bits = _BITS.get(tensor.data_type)
    if bits is None:
        raise InputError(
            f"the data type {tensor.data_type} is not known", file=path, layer=tensor.name, remedy=_EXPORT_AGAIN
        )
    size = (count * bits + 7) // 8
    if external:
        return size
    if tensor.HasField("raw_data"):
        if len(tensor.raw_data) != size:
            raise _missing(tensor, len(tensor.raw_data), size, path)
        return size
    fields = (tensor.float_data, tensor.int32_data, tensor.int64_data, tensor.double_data, tensor.uint64_data)
    parts = 2 if tensor.data_type in (TensorProto.COMPLEX64, TensorProto.COMPLEX128) else 1
    wanted = (count + 1) // 2 if bits == 4 else count * parts
    found = sum(len(field) for field in fields)
    if found != wanted:
        raise _missing(tensor, found, wanted, path)
    return size


def _missing(tensor: TensorProto, found: int, wanted: int, path: Path) -> InputError:
    return InputError(
        f"it has {found} of {wanted} values or bytes for its shape {list(tensor.dims)}",
        file=path,
        layer=tensor.name,
        remedy=_EXPORT_AGAIN,
    )


def _check_inference(model: ModelProto, node: NodeProto, path: Path) -> None:
    if node.domain not in ("", "ai.onnx"):
        return
    attributes = {attribute.name: attribute.i for attribute in node.attribute}
    training = False
    if node.op_type == "BatchNormalization":
        # Before opset 14 training mode shows in the number of outputs, before opset 7 in an attribute.
        version = opset_of(model)
        extra = any(node.output[1:]) and version < 14
        training = (
            extra or attributes.get("training_mode", 0) != 0 or (version < 7 and not attributes.get("is_test", 0))
        )
    elif node.op_type == "Dropout" and len(node.input) > 2 and node.input[2]:
        training = any(
            tensor.name == node.input[2] and (any(tensor.raw_data) or any(tensor.int32_data))
            for tensor in model.graph.initializer
        )
    if training:
        raise InputError(
            f"{node.op_type} is in training mode",
            file=path,
            layer=node.name or node.output[0],
            remedy="export the model in evaluation mode",
        )


def _run_checker(model: ModelProto, path: Path) -> None:
    """Run ``onnx.checker`` without external data: it would open the files itself, before `ExternalData` checks them."""
    try:
        onnx.checker.check_model(_without_data(model))
    except Exception as error:
        raise_if_out_of_memory(error)
        # Mostly ValidationError, but also ValueError and RuntimeError from protobuf and from C++.
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise InputError(f"is not a valid ONNX model ({reason[:200]})", file=path, remedy=_EXPORT_AGAIN) from None


def _without_data(model: ModelProto) -> ModelProto:
    """The model, or if it has external initialisers a copy that declares them as inputs."""
    outside = [t for t in model.graph.initializer if t.data_location == TensorProto.EXTERNAL]
    if not outside:
        return model
    skeleton = ModelProto()
    skeleton.CopyFrom(model)
    kept = [t for t in skeleton.graph.initializer if t.data_location != TensorProto.EXTERNAL]
    del skeleton.graph.initializer[:]
    skeleton.graph.initializer.extend(kept)
    known = {value.name for value in skeleton.graph.input}
    skeleton.graph.input.extend(
        onnx.helper.make_tensor_value_info(t.name, t.data_type, list(t.dims)) for t in outside if t.name not in known
    )
    return skeleton
