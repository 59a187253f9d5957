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

from trtkp.graph.ops import ACTIVATIONS, DOMAIN, DYNAMIC, OpName, function
from trtkp.graph.rewrite import packed_nodes

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
