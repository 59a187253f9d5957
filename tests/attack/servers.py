"""The server that is attacked: ``kep``, which others go on to use, and ``large``, whose requests may be large."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

import trtkp
from tests.attack.rest import LARGE
from tests.serving.servers import Server, running
from trtkp.pipeline.options import BuildOptions

__all__ = ["attacked_server", "build_large"]


def build_large(folder: Path) -> Path:
    """A bundle whose inputs have 60 MiB, and whose outputs are small."""
    weight = np.ones((1, LARGE[0], 1, 1), np.float32)
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"], strides=[256, 256], name="c")],
        "large",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", *LARGE])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 1, 2, 2])],
        [helper.make_tensor("w", TensorProto.FLOAT, weight.shape, weight.tobytes(), raw=True)],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), folder / "large.onnx"
    )
    shape = ("x".join(map(str, (1, *LARGE))),)
    options = BuildOptions(threads=1, min=shape, opt=shape, max=shape)
    trtkp.build(folder / "large.onnx", folder / "large", method="none", options=options)
    return folder / "large"


@contextmanager
def attacked_server(folder: Path, kep: Path, large: Path, checkout: Path | None = None) -> Iterator[Server]:
    """Serve both with the default limits, by this checkout or another one."""
    arguments = (kep, large, "--threads", "1", "--log-level", "warning")
    other = {} if checkout is None else {"python": f"{checkout}/.venv/bin/python", "PYTHONPATH": str(checkout)}
    with running(folder, *arguments, **other) as server:
        yield server
