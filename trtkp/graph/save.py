"""Write graphs as ONNX: to a file, or for a session of ONNX Runtime. Nothing else in the package does either.

A protobuf message ends at 2 GiB, in a file as in memory. So a graph with more than 1 GiB of weights keeps them in a
second file beside the first (ONNX's external data), which leaves another GiB for everything that is no weight.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx
import onnx_ir as ir

__all__ = ["LARGEST_FILE", "is_large", "save_graph", "session_source"]

#: Bytes of weights that one file may hold.
LARGEST_FILE = 1 << 30


def is_large(model: ir.Model) -> bool:
    """Whether the weights of a graph need a file of their own."""
    return sum(tensor.nbytes for tensor in _weights(model)) > LARGEST_FILE


def save_graph(model: ir.Model, path: Path) -> None:
    """Write a graph to ``path``, and the weights of a large one to ``<path>.data``.

    The weights are written first: a file that names them is never there without them. Weights that the model has from
    an external file of its own are copied; the new files do not depend on it.

    Args:
        model: not changed.
        path: in an existing folder.
    """
    if is_large(model):
        ir.save(model, path, external_data=f"{path.name}.data")
    else:
        ir.save(_in_memory(model), path)


@contextmanager
def session_source(model: ir.Model | onnx.ModelProto) -> Iterator[bytes | str]:
    """What ``onnxruntime.InferenceSession`` takes for a model: its bytes, or a temporary file where it is large.

    The file is there until the context ends. A session that was made in it works on: it has read the weights, or keeps
    them mapped.
    """
    graph = ir.from_proto(model) if isinstance(model, onnx.ModelProto) else model
    if not is_large(graph):
        proto = model if isinstance(model, onnx.ModelProto) else ir.to_proto(_in_memory(model))
        yield proto.SerializeToString()
        return
    # where a mapped file cannot be removed (Windows), the system's own cleaning finds it later
    with tempfile.TemporaryDirectory(prefix="trtkp-session-", ignore_cleanup_errors=True) as folder:
        path = Path(folder) / "model.onnx"
        save_graph(graph, path)
        yield str(path)


def _weights(model: ir.Model) -> Iterator[ir.TensorProtocol]:
    for graph in model.graphs():
        for value in graph.initializers.values():
            if value.const_value is not None:
                yield value.const_value


def _in_memory(model: ir.Model) -> ir.Model:
    """The model, or a copy without external tensors: serialised, those would still name their file by its old place."""
    if not any(isinstance(tensor, ir.ExternalTensor) for tensor in _weights(model)):
        return model
    return ir.external_data.load_to_model(model.clone())
