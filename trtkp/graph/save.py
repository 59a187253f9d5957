"""Serialise graphs: to ONNX files, and for sessions of ONNX Runtime. No other module does either.

A protobuf message is limited to 2 GiB, in a file as in memory. A graph with more than 1 GiB of weights therefore keeps
them in a second file beside the first (ONNX's external data). The other GiB is room for everything else in the graph.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx
import onnx_ir as ir

__all__ = ["LARGEST_FILE", "LARGEST_SESSION", "is_large", "save_graph", "session_source"]

#: Bytes of weights that one file may hold.
LARGEST_FILE = 1 << 30
#: Bytes of weights that a session gets from memory. Serialising and parsing takes four times the weights; a file is
#: mapped.
LARGEST_SESSION = 1 << 28


def is_large(model: ir.Model) -> bool:
    """Whether the weights of a graph need a file of their own."""
    return _size(model) > LARGEST_FILE


def save_graph(model: ir.Model, path: Path) -> None:
    """Write a graph to ``path``, and the weights of a large one to ``<path>.data``.

    The weights are written first, so a graph is never on disk without the weights that it names. Weights that the model
    itself reads from an external file are copied: the new files do not depend on the old one.

    Args:
        model: not changed.
        path: in an existing folder.
    """
    if is_large(model):
        _save_apart(model, path)
    else:
        ir.save(_in_memory(model), path)


@contextmanager
def session_source(model: ir.Model | onnx.ModelProto) -> Iterator[bytes | str]:
    """What ``onnxruntime.InferenceSession`` takes for a model: its bytes, or a temporary file where it is large.

    The file is removed when the context ends. A session created in the context still works afterwards: it has read the
    weights, or keeps them mapped.
    """
    graph = ir.from_proto(model) if isinstance(model, onnx.ModelProto) else model
    if _size(graph) <= LARGEST_SESSION:
        proto = model if isinstance(model, onnx.ModelProto) else ir.to_proto(_in_memory(model))
        yield proto.SerializeToString()
        return
    # Windows cannot remove a file that a session has mapped; there the file stays in the temporary folder
    with tempfile.TemporaryDirectory(prefix="trtkp-session-", ignore_cleanup_errors=True) as folder:
        path = Path(folder) / "model.onnx"
        _save_apart(graph, path)
        yield str(path)


def _save_apart(model: ir.Model, path: Path) -> None:
    ir.save(model, path, external_data=f"{path.name}.data")


def _size(model: ir.Model) -> int:
    return sum(tensor.nbytes for tensor in _weights(model))


def _weights(model: ir.Model) -> Iterator[ir.TensorProtocol]:
    for graph in model.graphs():
        for value in graph.initializers.values():
            if value.const_value is not None:
                yield value.const_value


def _in_memory(model: ir.Model) -> ir.Model:
    """The model, or a copy with its external tensors loaded: as they are, they name a file that lies elsewhere."""
    if not any(isinstance(tensor, ir.ExternalTensor) for tensor in _weights(model)):
        return model
    copy = model.clone()
    for graph in copy.graphs():
        for value in graph.initializers.values():
            if isinstance(value.const_value, ir.ExternalTensor):
                # not onnx_ir's load_to_model: it closes the mapping, which the tensors of `model` still need
                value.const_value = ir.Tensor(value.const_value.numpy(), name=value.name)
    return copy
