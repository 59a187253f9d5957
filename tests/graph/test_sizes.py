"""Passes and loading in time linear in a graph's size, and a limit where a small file stands for a huge graph."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnx_ir.passes.common as common_passes
import pytest
from onnx import helper

import trtkp
from benchmarks.cpu.graph_sizes import batch_norms, convolutions, doubling, residual, same_names, wide_concat
from trtkp.errors import InputError
from trtkp.graph.channels import channel_flow
from trtkp.graph.constants import channel_constants
from trtkp.graph.edit import add_initializer
from trtkp.graph.inline import inline_functions
from trtkp.model import load_model
from trtkp.model.onnx_backend import _name_nodes_apart
from trtkp.model.onnx_file import MAX_INLINED


def growth(make: Callable[[int], Any], act: Callable[[Any], object], size: int, times: int = 5) -> float:
    """How many times as long it takes for twice the size: the median of ratios of neighbouring runs."""

    def seconds(made: Any) -> float:
        start = time.process_time()
        act(made)
        return time.process_time() - start

    seconds(make(size))  # imports and caches
    return median(1 / (seconds(make(size)) / seconds(make(2 * size))) for _ in range(times))


def add_same_name(count: int) -> None:
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 18})
    for _ in range(count):
        add_initializer(graph, "weight.bias", np.zeros(1, np.float32))


@pytest.mark.serial
def test_nodes_of_one_name() -> None:
    assert growth(same_names, _name_nodes_apart, 3000) < 3


@pytest.mark.serial
def test_initialisers_of_one_name() -> None:
    assert growth(lambda size: size, add_same_name, 1000) < 3


@pytest.mark.serial
def test_calls_of_one_function() -> None:
    """Twice the calls are one more level."""
    assert growth(lambda size: ir.from_proto(doubling(size.bit_length())), inline_functions, 1 << 9) < 3


@pytest.mark.slow
@pytest.mark.serial
@pytest.mark.parametrize("make", [convolutions, residual, batch_norms, wide_concat])
def test_builds(make: Callable[[int], onnx.ModelProto], tmp_path: Path) -> None:
    options = trtkp.BuildOptions(backend="onnxruntime", measure=False, timing_cache=False, threads=1)

    def write(size: int) -> Path:
        path = tmp_path / "net.onnx"
        path.write_bytes(make(size).SerializeToString())
        return path

    def build(path: Path) -> object:
        return trtkp.build(path, tmp_path / "out", method="kep", share="per-layer", options=options)

    assert growth(write, build, 40, times=3) < 3


def test_names_are_numbered_in_a_row() -> None:
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 18})
    names = [add_initializer(graph, "a", np.zeros(1)).name for _ in range(40)]
    assert names == ["a", *(f"a.{i}" for i in range(1, 40))]
    del graph.initializers["a.1"]
    assert add_initializer(graph, "a", np.zeros(1)).name == "a.1"


def test_node_names_are_numbered_in_a_row() -> None:
    model = same_names(3)
    model.graph.node[2].name = "same_1"
    _name_nodes_apart(model)
    assert [node.name for node in model.graph.node] == ["conv", "same", "same_1", "same_2"]


@pytest.mark.parametrize("names", [("r", "s"), ("r", "r_2"), ("r_2", "r"), ("r", "r"), ("", "")])
def test_inlined_names_are_those_of_onnx_ir(names: tuple[str, str]) -> None:
    def named() -> ir.Model:
        model = ir.from_proto(doubling(5))
        for function in model.functions.values():
            for node, name in zip(function, names, strict=True):
                node.name = name
        return model

    def found(model: ir.Model) -> list[Any]:
        return [(node.name, *(value.name for value in (*node.inputs, *node.outputs) if value)) for node in model.graph]

    expected, inlined = named(), named()
    common_passes.InlinePass()(expected)
    inline_functions(inlined)
    assert found(inlined) == found(expected)
    assert len(found(inlined)) == 33


def refused(model: onnx.ModelProto, path: Path) -> str:
    path.write_bytes(model.SerializeToString())
    start = time.process_time()
    with pytest.raises(InputError) as caught:
        load_model(path)
    assert time.process_time() - start < 2
    return str(caught.value)


def test_functions_that_double(tmp_path: Path) -> None:
    message = refused(doubling(40), tmp_path / "net.onnx")
    assert f"function local::f16 has 131072 nodes once its functions are inlined, at most {MAX_INLINED}" in message


def test_many_calls_of_a_large_function(tmp_path: Path) -> None:
    model = doubling(10)
    call = model.graph.node[-1]
    for i in range(100):
        model.graph.node.append(helper.make_node(call.op_type, ["v"], [f"more{i}"], domain="local"))
    assert "the graph has 103425 nodes once its functions" in refused(model, tmp_path / "net.onnx")


def test_a_function_that_calls_itself(tmp_path: Path) -> None:
    model = doubling(3)
    model.functions[0].node[0].op_type, model.functions[0].node[0].domain = "f2", "local"
    assert "a function calls itself (local::f" in refused(model, tmp_path / "net.onnx")


def test_a_long_chain_of_functions(tmp_path: Path) -> None:
    """No recursion of ours: 5,000 functions, each of which calls the one before it once."""
    model = doubling(5000)
    for function in model.functions:
        del function.node[1]
        function.node[0].output[0] = "b"
    assert "call chain depth exceeds" in refused(model, tmp_path / "net.onnx")


def test_a_declared_number_of_channels_costs_no_memory(new_graph: Any) -> None:
    graph = new_graph()
    value = graph.op("Softmax", graph.input("x", ("n", 4, 8, 8)), output="y")
    value.shape = ir.Shape([1, 1 << 62, 8, 8])
    model = graph.model(value)
    assert all(len(found) == 4 for found in channel_constants(model, channel_flow(model)).values())
