"""The backend for ONNX files: specs, a cleaned graph, and the file itself in ONNX Runtime as the reference."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NoReturn

import numpy as np
import onnx
import onnx_ir as ir
import onnx_ir.passes.common as passes
from onnx import ModelProto

from trtkp.errors import InputError, raise_if_out_of_memory
from trtkp.graph.inline import inline_functions
from trtkp.graph.ops import DOMAIN
from trtkp.graph.save import session_source
from trtkp.model.cleanup import clean_graph, lift_weights
from trtkp.model.dims import axis_name
from trtkp.model.external import MappedWeight
from trtkp.model.files import digest_of
from trtkp.model.onnx_file import opset_of, read_onnx, upgrade
from trtkp.model.source import LazyWeights, SourceModel
from trtkp.shapes import Dim, TensorSpec

if TYPE_CHECKING:
    import onnxruntime as ort

__all__ = ["OnnxBackend", "load_onnx"]

_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE, ir.DataType.BFLOAT16)


def load_onnx(handle: IO[bytes], path: Path) -> SourceModel:
    """Load an ONNX file as a source model.

    Raises:
        InputError: `read_onnx` refuses the file, the rank of an input is unknown, or the opset cannot be upgraded.
    """
    file = read_onnx(handle, path)
    digest = digest_of(handle, b"".join(name.encode() + b"\0" + value for name, value in file.data_files))
    try:
        backend = OnnxBackend(file.proto, path, file.mapped)
    except InputError:
        raise
    except Exception as error:
        raise_if_out_of_memory(error)
        # The file passed onnx.checker, but that does not check everything.
        raise InputError(f"cannot be read ({_first_line(error)})", file=path, remedy="export the model again") from None
    return SourceModel(path, "onnx", digest, backend, backend.warnings)


class OnnxBackend:
    """A model held as an ONNX protobuf, with large weights in data files that are mapped.

    Args:
        proto: the model, as `read_onnx` returns it.
        path: its path, for error messages.
        mapped: the initialisers whose data is not in ``proto``, by name.
    """

    reference_name = "source ONNX"

    def __init__(self, proto: ModelProto, path: Path, mapped: Mapping[str, MappedWeight] | None = None) -> None:
        _name_nodes_apart(proto)
        self._proto = proto
        self._mapped = dict(mapped or {})
        self.path = path
        self.warnings: list[str] = []
        self._session: ort.InferenceSession | None = None
        self._model = self._cleaned()
        self.inputs = tuple(self._spec(value, named=True) for value in self._model.graph.inputs)
        self.outputs = tuple(self._spec(value, named=False) for value in self._model.graph.outputs)
        if not self.inputs:
            raise InputError("the graph has no inputs", file=path)

    def graph(self) -> ir.Model:
        """See `SourceModel.graph`."""
        return self._model

    def parameters(self) -> LazyWeights:
        """See `SourceModel.parameters`."""
        return LazyWeights(
            {
                name: partial(_as_array, value)
                for name, value in self._model.graph.initializers.items()
                if value.const_value is not None and value.const_value.dtype in _FLOATS
            }
        )

    def run(self, feeds: Mapping[str, np.ndarray], weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """See `SourceModel.run`."""
        if weights:
            session = self._new_session(weights)
        else:
            session = self._session = self._session or self._new_session({})
        dtypes = {spec.name: np.dtype(spec.dtype) for spec in self.inputs}
        try:
            results = session.run(None, {name: value.astype(dtypes[name]) for name, value in feeds.items()})
        except Exception as error:
            raise_if_out_of_memory(error)
            raise InputError(f"onnxruntime cannot run the model ({_first_line(error)})", file=self.path) from None
        return {spec.name: np.asarray(result) for spec, result in zip(self.outputs, results, strict=True)}

    def module(self) -> NoReturn:
        """See `SourceModel.module`."""
        raise InputError(
            "an ONNX file has no PyTorch module", file=self.path, remedy="load the PyTorch model to train it"
        )

    def release(self) -> None:
        """See `SourceModel.release`."""
        for weight in self._mapped.values():
            weight.release()

    def _cleaned(self) -> ir.Model:
        version = opset_of(self._proto)
        proto = upgrade(self._proto, self.path)
        if proto is not self._proto:
            self.warnings.append(f"upgraded from opset {version} to {opset_of(proto)}")
        model = self._with_mapped(proto, {})
        # Files of IR version 3 list their initialisers among the inputs.
        passes.RemoveInitializersFromInputsPass()(model)
        inline_functions(model)
        for node in model.graph.all_nodes():
            if node.domain == DOMAIN:
                raise InputError(
                    f"{node.op_type} of domain {DOMAIN} comes without its body", file=self.path, layer=node.name,
                    remedy="build from the bundle's model.onnx, or from the model that it was built from",
                )  # fmt: skip
        lift_weights(model.graph)
        keep = {
            name
            for name, value in model.graph.initializers.items()
            if value.const_value is not None and value.const_value.dtype in _FLOATS
        }
        clean_graph(model, keep)
        passes.RemoveUnusedNodesPass()(model)
        return model

    def _spec(self, value: ir.Value, *, named: bool) -> TensorSpec:
        name = value.name or ""
        if value.dtype is None or (named and value.shape is None):
            raise InputError(
                "the file does not say its type or rank",
                file=self.path,
                layer=name,
                remedy="run onnx.shape_inference, or export the model with a known shape",
            )
        dims: list[int | Dim] = []
        sizes: list[Any] = list(value.shape) if value.shape is not None else []
        for axis, size in enumerate(sizes):
            if isinstance(size, int) and size > 0:
                dims.append(size)
                continue
            known = size.value if isinstance(size, ir.SymbolicDim) else None
            taken = [dim.name for dim in dims if isinstance(dim, Dim)]
            dims.append(Dim(str(known) if known else axis_name(axis, len(sizes), taken, name)))
        return TensorSpec(name, value.dtype.numpy().name, tuple(dims))

    def _with_mapped(self, proto: ModelProto, weights: Mapping[str, np.ndarray]) -> ir.Model:
        """A protobuf as IR, with the mapped initialisers in it, or those of ``weights`` in their place."""
        model = ir.serde.deserialize_model(proto)
        for name, weight in self._mapped.items():
            value = model.graph.initializers[name]
            array = np.asarray(weights[name]).astype(weight.array.dtype) if name in weights else weight.array
            value.const_value = ir.tensor(array, name=name)
        return model

    def _with_weights(self, weights: Mapping[str, np.ndarray]) -> ModelProto:
        """The protobuf with other weights, except those that are mapped."""
        left = set(weights) - set(self._mapped)
        if not left:
            return self._proto
        changed = ModelProto()
        changed.CopyFrom(self._proto)
        for tensor in changed.graph.initializer:
            if tensor.name in left:
                _replace(tensor, weights[tensor.name])
                left.remove(tensor.name)
        for node in changed.graph.node:
            if node.op_type == "Constant" and node.output[0] in left:
                _replace(next(a.t for a in node.attribute if a.name == "value"), weights[node.output[0]])
                left.remove(node.output[0])
        if left:
            raise InputError("the file computes this weight, so it cannot be replaced", file=self.path, layer=min(left))
        return changed

    def _new_session(self, weights: Mapping[str, np.ndarray]) -> ort.InferenceSession:
        import onnxruntime as ort

        proto = self._with_weights(weights)
        model = self._with_mapped(proto, weights) if self._mapped else proto

        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.log_severity_level = 4
        try:
            with session_source(model) as source:
                return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise_if_out_of_memory(error)
            raise InputError(f"onnxruntime cannot load the model ({_first_line(error)})", file=self.path) from None


def _name_nodes_apart(proto: ModelProto) -> None:
    """Number the nodes that share a name: ONNX allows it, but ONNX Runtime refuses such a file."""
    seen: set[str] = set()
    last: dict[str, int] = {}  # by name, the number tried last: counting from 1 again makes thousands of nodes slow
    for node in proto.graph.node:
        name = node.name
        while name and name in seen:
            last[node.name] = last.get(node.name, 0) + 1
            name = f"{node.name}_{last[node.name]}"
        seen.add(name)
        node.name = name


def _as_array(value: ir.Value) -> np.ndarray:
    assert value.const_value is not None
    return value.const_value.numpy()


def _replace(tensor: onnx.TensorProto, weight: np.ndarray) -> None:
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    tensor.CopyFrom(onnx.numpy_helper.from_array(np.asarray(weight).astype(dtype), tensor.name))


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:200]
