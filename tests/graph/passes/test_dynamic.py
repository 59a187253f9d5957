"""DynamicPatternConv: the body against the oracle run per sample, for any batch, and what other tools make of it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from tests.conftest import append_epilogue
from trtkp.graph.layers import conv_layers
from trtkp.graph.ops import ACTIVATIONS, DOMAIN, DYNAMIC, OpName, function
from trtkp.graph.passes.dynamic import add_bodies, expand_dynamic, fold_dynamic, fuse_dynamic
from trtkp.graph.passes.pack import packed_nodes

Array = np.ndarray[Any, Any]
GEOMETRY = [
    ((1, 1), (1, 1, 1, 1), (1, 1), (3, 3)),
    ((2, 1), (0, 2, 1, 0), (1, 2), (3, 3)),
    ((1, 1), (0, 0, 0, 0), (1, 1), (1, 1)),
    ((1, 2), (1, 0, 2, 3), (2, 1), (2, 5)),
]


class Layer:
    """P masked kernels, an attention, and the graph of the operator."""

    def __init__(self, seed: int, dtype: Any, name: OpName, geometry: Any = GEOMETRY[0], padding: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.strides, self.pads, self.dilations, kernel = geometry
        self.name, self.dtype, patterns, filters, channels = name, dtype, 4, 6, 5
        masks = rng.random((patterns, *kernel)) < 0.4
        masks[0, 0, 0] = True
        weight = rng.normal(size=(patterns, filters, channels, *kernel)).astype(dtype)
        self.weight = np.where(masks[:, None, None], weight, dtype(0))
        taps = np.flatnonzero(masks.any(axis=0))
        flat = self.weight.reshape(patterns, filters, channels, -1)
        packed = flat[..., taps].transpose(0, 1, 3, 2).reshape(patterns, filters, -1)
        self.packed = np.pad(packed, ((0, 0), (0, 0), (0, padding * channels)))
        self.taps = np.pad(taps, (0, padding), constant_values=kernel[0] * kernel[1])[None].astype(np.int32)
        self.bias = rng.normal(size=filters).astype(dtype)

    def data(self, batch: int) -> dict[str, Array]:
        rng = np.random.default_rng(batch)
        scores = rng.normal(size=(batch, 4, 6))
        attention = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
        feeds = {"x": rng.normal(size=(batch, 5, 9, 8)), "attention": attention}
        if self.name.residual:
            feeds["r"] = rng.normal(size=(batch, 6, *self.output_size()))
        return {key: value.astype(self.dtype) for key, value in feeds.items()}

    def output_size(self) -> tuple[int, ...]:
        kernel, size = self.weight.shape[3:], (9 + self.pads[0] + self.pads[2], 8 + self.pads[1] + self.pads[3])
        return tuple((size[i] - (kernel[i] - 1) * self.dilations[i] - 1) // self.strides[i] + 1 for i in range(2))

    def want(self, oracle: Any, feeds: dict[str, Array]) -> Array:
        """Sample by sample, with the kernel that the attention makes of the patterns."""
        samples = []
        for n in range(len(feeds["x"])):
            weight = np.einsum("pf,pfcrs->fcrs", feeds["attention"][n].astype(float), self.weight.astype(float))
            samples.append(
                oracle(
                    feeds["x"][n : n + 1],
                    weight,
                    bias=self.bias,
                    activation=self.name.activation,
                    alpha=0.2,
                    residual=feeds["r"][n : n + 1] if self.name.residual else None,
                    strides=self.strides,
                    pads=self.pads,
                    dilations=self.dilations,
                )
            )
        return np.concatenate(samples)

    def model(self, new_graph: Any) -> ir.Model:
        graph = new_graph()
        inputs = [
            graph.input("x", ("batch", 5, 9, 8), self.dtype), graph.constant("w", self.packed),
            graph.constant("taps", self.taps), graph.input("attention", ("batch", 4, 6), self.dtype),
            graph.constant("b", self.bias),
        ]  # fmt: skip
        if self.name.residual:
            inputs.append(graph.input("r", ("batch", 6, *self.output_size()), self.dtype))
        attributes = {
            "strides": self.strides, "pads": self.pads, "dilations": self.dilations, "channels": 5,
            "weight_shape": self.weight.shape[1:], "plugin_namespace": DOMAIN, "plugin_version": "1",
        } | ({"alpha": 0.2} if self.name.activation == "LeakyRelu" else {})  # fmt: skip
        node = ir.node(str(self.name), inputs, attributes, domain=DOMAIN, name="dynamic")
        graph.nodes.append(node)
        y = node.outputs[0]
        y.name, y.dtype = "y", ir.DataType.from_numpy(np.dtype(self.dtype))
        y.shape = ir.Shape(("batch", 6, *self.output_size()))
        model = graph.model(y, infer=False)
        body = function(self.name, model.graph.opset_imports[""])
        model.functions[body.identifier()] = body
        model.graph.opset_imports[DOMAIN] = 1
        return model


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("geometry", range(len(GEOMETRY)))
@pytest.mark.parametrize("batch", [1, 2, 5])
def test_any_batch(
    batch: int, geometry: int, dtype: Any, new_graph: Any, run: Any, oracle: Any, relative_error: Any
) -> None:
    layer = Layer(geometry, dtype, OpName(DYNAMIC, bool(batch % 2), "Relu"), GEOMETRY[geometry], padding=batch % 3)
    feeds = layer.data(batch)
    got = run(layer.model(new_graph), feeds)
    assert got.dtype == dtype
    assert relative_error(got, layer.want(oracle, feeds)) < (1e-6 if dtype is np.float32 else 2e-3)


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_epilogue(
    activation: str, residual: bool, new_graph: Any, run: Any, oracle: Any, relative_error: Any
) -> None:
    layer = Layer(1, np.float32, OpName(DYNAMIC, residual, activation))
    model, feeds = layer.model(new_graph), layer.data(3)
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    assert relative_error(run(model, feeds), layer.want(oracle, feeds)) < 1e-6
    assert OpName.parse(str(layer.name)) == layer.name
    assert packed_nodes(model) == []  # no list of its own for the planner


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("activation", ["", "Relu", "Silu"])
def test_what_follows_is_folded_fused_and_expanded(
    activation: str, residual: bool, new_graph: Any, run: Any, relative_error: Any
) -> None:
    layer, rng, graph = Layer(3, np.float32, OpName(DYNAMIC, residual)), np.random.default_rng(0), new_graph()
    shape = ("batch", 6, 9, 8)
    inputs = [
        graph.input("x", ("batch", 5, 9, 8)), graph.constant("w", layer.packed), graph.constant("taps", layer.taps),
        graph.input("attention", ("batch", 4, 6)), graph.constant("b", layer.bias),
    ]  # fmt: skip
    node = ir.node(
        DYNAMIC,
        inputs,
        {"strides": (1, 1), "pads": (1, 1, 1, 1), "dilations": (1, 1), "channels": 5, "weight_shape": (6, 5, 3, 3)},
        domain=DOMAIN,
        name="dynamic",
    )
    graph.nodes.append(node)
    node.outputs[0].dtype, node.outputs[0].shape, node.outputs[0].name = ir.DataType.FLOAT, ir.Shape(shape), "conv"
    statistics = [graph.constant(name, rng.uniform(0.5, 2, 6).astype(np.float32)) for name in ("g", "o", "m", "v")]
    y = graph.op("BatchNormalization", node.outputs[0], *statistics)
    y.dtype, y.shape = ir.DataType.FLOAT, ir.Shape(shape)
    y = append_epilogue(graph, y, graph.input("r", shape) if residual else None, activation)
    model = graph.model(y, infer=False)
    add_bodies(model)
    feeds = layer.data(3)
    before = run(model, feeds)
    table = conv_layers(model, {name: value.shape for name, value in layer.data(1).items()})
    taps = layer.taps.size
    assert table.macs == 6 * 5 * taps * 72 + 4 * 6 * 5 * taps
    assert table.params == 4 * 6 * 5 * taps + 6 + 2 * 6
    assert table.left_out == {"w": f"a kernel for every sample, {taps} of 9 positions (DynamicPatternConv)"}
    assert fold_dynamic(model) == 1
    fuse_dynamic(model)
    assert [n.op_type for n in model.graph] == [str(OpName(DYNAMIC, residual, activation))]
    assert relative_error(run(model, feeds), before) < 1e-6
    expand_dynamic(model)
    assert {n.domain for n in model.graph} == {""}
    assert not model.functions
    assert DOMAIN not in model.graph.opset_imports
    assert relative_error(run(model, feeds), before) < 1e-6


def test_a_convolution_that_two_read_keeps_what_follows(new_graph: Any) -> None:
    model = Layer(3, np.float32, OpName(DYNAMIC)).model(new_graph)
    y = model.graph.outputs[0]
    relu = ir.node("Relu", [y], name="relu")
    model.graph.append(relu)
    relu.outputs[0].name, relu.outputs[0].dtype, relu.outputs[0].shape = "z", y.dtype, y.shape
    model.graph.outputs.append(relu.outputs[0])
    assert fold_dynamic(model) == 0
    fuse_dynamic(model)
    assert [n.op_type for n in model.graph] == [DYNAMIC, "Relu"]


def test_tensorrt_rtx_builds_it_with_a_dynamic_batch(new_graph: Any, tmp_path: Path) -> None:
    """In its own process, as another test may hold a plugin library."""
    pytest.importorskip("tensorrt_rtx")
    path = tmp_path / "dynamic.onnx"
    ir.save(Layer(2, np.float16, OpName(DYNAMIC, False, "Relu")).model(new_graph), path)
    program = """
import sys
import tensorrt_rtx as trt
logger = trt.Logger(trt.Logger.ERROR)
builder = trt.Builder(logger)
network = builder.create_network()
parser = trt.OnnxParser(network, logger)
if not parser.parse_from_file(sys.argv[1]):
    sys.exit(str([parser.get_error(i).desc() for i in range(parser.num_errors)]))
config = builder.create_builder_config()
config.num_compute_capabilities = 1
config.set_compute_capability(trt.ComputeCapability.SM89, 0)
profile = builder.create_optimization_profile()
for name, shape in (("x", (5, 9, 8)), ("attention", (4, 6))):
    profile.set_shape(name, (1, *shape), (2, *shape), (8, *shape))
config.add_optimization_profile(profile)
engine = builder.build_serialized_network(network, config)
print(tuple(network.get_output(0).shape), engine is not None and engine.nbytes > 0)
"""
    result = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "(-1, 6, 9, 8) True"
