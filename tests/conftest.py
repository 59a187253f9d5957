"""What the tests share: the float64 oracle of the operators, a builder of small ONNX graphs, and a way to run them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common_passes
import pytest
from hypothesis import strategies as st

from trtkp.kernels.capi import Library
from trtkp.plan.cache import DIRECTORY_VARIABLE
from trtkp.plan.lowerings import gather as gather_module

Array = np.ndarray[Any, Any]


#: What a user or a CI service may have set, and the tests, or the processes that they start, would heed.
FOREIGN_VARIABLES = (
    "CLICOLOR_FORCE", "COLUMNS", "FORCE_COLOR", "LINES", "NO_COLOR", "PYTHONWARNINGS", "TERMINAL_WIDTH",
    "TTY_COMPATIBLE", "TTY_INTERACTIVE", "TRTKP_ALLOW_HOST_CODE", "TRTKP_CUDA_ARCHITECTURES", "TRTKP_LIBRARY",
    "TRTKP_TOKEN",
)  # fmt: skip


def pytest_sessionstart() -> None:
    """No foreign settings, and no proxy between a test and its own server: before modules of tests are imported."""
    for name in FOREIGN_VARIABLES:
        os.environ.pop(name, None)
    os.environ["NO_PROXY"] = os.environ["no_proxy"] = "127.0.0.1,localhost"
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # else it complains where the home folder cannot be written


@pytest.fixture(autouse=True, scope="session")
def timing_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache of layers' times of the tests' own: the user's is neither read nor written."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("timings")
        patch.setenv(DIRECTORY_VARIABLE, str(folder))
        yield folder


@pytest.fixture(params=[8, 16], ids=["8 floats", "16 floats"])
def granule(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Channels that fp32 lists are padded to: those of a CPU with vectors of 8 floats, then of one of 16 (AVX-512).

    What the planner offers hangs on it, so tests of that name it; they then run for both on any machine.
    """
    floats = int(request.param)
    monkeypatch.setattr(gather_module, "vector_floats", lambda: floats)
    return floats


ACTIVATIONS: dict[str, Callable[[Array, float], Array]] = {
    "": lambda x, alpha: x,
    "Relu": lambda x, alpha: np.where(x > 0, x, 0),
    "Relu6": lambda x, alpha: np.clip(x, 0, 6),
    "Silu": lambda x, alpha: x / (1 + np.exp(-x)),
    "HardSwish": lambda x, alpha: x * np.clip(x / 6 + 0.5, 0, 1),
    "LeakyRelu": lambda x, alpha: np.where(x > 0, x, alpha * x),
}


def masked_convolution(
    x: Array,
    weight: Array,
    mask: Array | None = None,
    *,
    bias: Array | None = None,
    residual: Array | None = None,
    activation: str = "",
    alpha: float = 0.01,
    strides: Sequence[int] = (1, 1),
    pads: Sequence[int] = (0, 0, 0, 0),
    dilations: Sequence[int] = (1, 1),
    groups: int = 1,
) -> Array:
    """``act(conv(x, weight o mask) + bias + residual)`` in float64, tap by tap."""
    x, weight = x.astype(np.float64), weight.astype(np.float64)
    if mask is not None:
        weight = np.where(mask, weight, 0)
    filters, channels, rows, columns = weight.shape
    top, left, bottom, right = pads
    padded = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)))
    height = (padded.shape[2] - dilations[0] * (rows - 1) - 1) // strides[0] + 1
    width = (padded.shape[3] - dilations[1] * (columns - 1) - 1) // strides[1] + 1
    y = np.zeros((len(x), filters, height, width))
    per_group = filters // groups
    for f in range(filters):
        first = f // per_group * channels
        for r in range(rows):
            for s in range(columns):
                at = (r * dilations[0], s * dilations[1])
                window = padded[
                    :,
                    first : first + channels,
                    at[0] : at[0] + strides[0] * height : strides[0],
                    at[1] : at[1] + strides[1] * width : strides[1],
                ][:, :, :height, :width]
                y[:, f] += np.tensordot(window, weight[f, :, r, s], axes=(1, 0))
    if bias is not None:
        y += bias.astype(np.float64)[:, None, None]
    if residual is not None:
        y += residual.astype(np.float64)
    return ACTIVATIONS[activation](y, alpha)


def tolerance(dtype: Any, terms: int) -> float:
    """Largest relative Frobenius error of one operator that sums that many products."""
    return 2e-3 if np.dtype(dtype) == np.float16 else 1e-6 * max(1.0, (terms / 1024) ** 0.5)


@dataclass(frozen=True)
class ConvCase:
    """A masked convolution with its epilogue, and data to run it on."""

    x: Array
    weight: Array
    mask: Array
    bias: Array | None
    residual: Array | None
    activation: str
    alpha: float
    strides: tuple[int, int]
    pads: tuple[int, int, int, int]
    dilations: tuple[int, int]
    groups: int

    def want(self) -> Array:
        """What the oracle says."""
        return masked_convolution(
            self.x, self.weight, self.mask, bias=self.bias, residual=self.residual, activation=self.activation,
            alpha=self.alpha, strides=self.strides, pads=self.pads, dilations=self.dilations, groups=self.groups,
        )  # fmt: skip

    def astype(self, dtype: Any) -> ConvCase:
        """The same with every array rounded to a type."""
        arrays = {name: getattr(self, name) for name in ("x", "weight", "bias", "residual")}
        return replace(self, **{name: a if a is None else a.astype(dtype) for name, a in arrays.items()})

    def feeds(self) -> dict[str, Array]:
        """Inputs of `model`."""
        return {"x": self.x} | ({} if self.residual is None else {"r": self.residual})

    def model(self) -> ir.Model:
        """A graph of one Conv, as an exporter writes it, with input ``x``, weight ``w`` and output ``y``."""
        graph, dtype = GraphBuilder(), self.x.dtype
        x = graph.input("x", ("batch", *self.x.shape[1:]), dtype)
        inputs = [x, graph.constant("w", self.weight)]
        if self.bias is not None:
            inputs.append(graph.constant("b", self.bias))
        y = graph.op(
            "Conv", *inputs, name="conv", strides=self.strides, pads=self.pads, dilations=self.dilations,
            group=self.groups,
        )  # fmt: skip
        residual = None
        if self.residual is not None:
            residual = graph.input("r", ("batch", *self.residual.shape[1:]), dtype)
        y = append_epilogue(graph, y, residual, self.activation, self.alpha)
        y.name = "y"
        return graph.model(y)


@st.composite
def _conv_cases(
    draw: Any,
    kinds: Sequence[str] = ("kernel", "stripe", "pattern", "none", "all"),
    max_groups: int = 3,
    max_pools: int = 4,
    epilogue: bool = True,
) -> ConvCase:
    """Any geometry; masks of every kind, in which a few lists (``max_pools``) are shared by the filters."""

    def up_to(low: int, high: int) -> int:
        return int(draw(st.integers(low, high)))

    groups = up_to(1, max_groups)
    filters, channels = groups * up_to(1, 4), up_to(1, 5)
    rows, columns = up_to(1, 5), up_to(1, 5)
    strides, dilations = (up_to(1, 3), up_to(1, 3)), (up_to(1, 2), up_to(1, 3))
    pads = (up_to(0, 4), up_to(0, 3), up_to(0, 3), up_to(0, 4))
    # the smallest input that gives one output, and a little more
    height = max(1, dilations[0] * (rows - 1) + 1 - pads[0] - pads[2]) + up_to(0, 5)
    width = max(1, dilations[1] * (columns - 1) + 1 - pads[1] - pads[3]) + up_to(0, 5)
    rng = np.random.default_rng(up_to(0, 2**32 - 1))
    pool = np.ones((up_to(1, max_pools), channels, rows, columns), bool)
    kind = draw(st.sampled_from(kinds))
    density = draw(st.sampled_from([0.2, 0.5, 0.8]))
    if kind == "kernel":
        pool &= rng.random((len(pool), channels, 1, 1)) < density
    elif kind == "stripe":
        pool &= rng.random((len(pool), 1, rows, columns)) < density
    elif kind != "all":
        pool &= rng.random(pool.shape) < (density if kind == "pattern" else 0)
    mask = pool[rng.integers(len(pool), size=filters)]
    case = ConvCase(
        x=rng.normal(size=(up_to(1, 2), channels * groups, height, width)).astype(np.float32),
        weight=rng.normal(size=mask.shape).astype(np.float32),
        mask=mask,
        bias=rng.normal(size=filters).astype(np.float32) if draw(st.booleans()) else None,
        residual=None,
        activation=draw(st.sampled_from(sorted(ACTIVATIONS))) if epilogue else "",
        alpha=draw(st.sampled_from([0.01, 0.3])),
        strides=strides,
        pads=pads,
        dilations=dilations,
        groups=groups,
    )
    if epilogue and draw(st.booleans()):
        case = replace(case, residual=rng.normal(size=case.want().shape).astype(np.float32))
    return case


class GraphBuilder:
    """A graph put together operator by operator."""

    def __init__(self, opset: int = 20) -> None:
        self.opset = opset
        self.inputs: list[ir.Value] = []
        self.initializers: list[ir.Value] = []
        self.nodes: list[ir.Node] = []

    def input(self, name: str, shape: Sequence[int | str], dtype: Any = np.float32) -> ir.Value:
        self.inputs.append(ir.val(name, ir.DataType.from_numpy(np.dtype(dtype)), ir.Shape(shape)))
        return self.inputs[-1]

    def constant(self, name: str, array: Array) -> ir.Value:
        array = np.asarray(array)
        tensor = ir.tensor(array, name=name)
        self.initializers.append(
            ir.val(name, ir.DataType.from_numpy(array.dtype), ir.Shape(array.shape), const_value=tensor)
        )
        return self.initializers[-1]

    def op(
        self,
        op_type: str,
        *inputs: ir.Value | None,
        output: str | None = None,
        name: str | None = None,
        **attributes: Any,
    ) -> ir.Value:
        number = len(self.nodes)
        node = ir.node(op_type, list(inputs), attributes, name=f"node_{number}" if name is None else name)
        node.outputs[0].name = output or f"value_{number}"
        self.nodes.append(node)
        return node.outputs[0]

    def model(self, *outputs: ir.Value, infer: bool = True) -> ir.Model:
        graph = ir.Graph(
            self.inputs,
            outputs,
            nodes=self.nodes,
            initializers=self.initializers,
            opset_imports={"": self.opset},
            name="g",
        )
        model = ir.Model(graph, ir_version=10)
        if infer:
            common_passes.ShapeInferencePass()(model)
        for value in outputs:
            value.dtype = value.dtype or ir.DataType.FLOAT
        return model


def append_epilogue(
    graph: GraphBuilder, value: ir.Value, residual: ir.Value | None, activation: str, alpha: float = 0.01
) -> ir.Value:
    """Append a residual Add and an activation to a value, as an exporter writes them."""
    if residual is not None:
        value = graph.op("Add", value, residual)
    if activation == "Relu6":
        dtype = graph.inputs[0].dtype.numpy() if graph.inputs[0].dtype else np.float32
        low, high = graph.constant("low", np.array(0, dtype)), graph.constant("high", np.array(6, dtype))
        return graph.op("Clip", value, low, high)
    if activation == "Silu":
        return graph.op("Mul", value, graph.op("Sigmoid", value))
    if activation == "LeakyRelu":
        return graph.op("LeakyRelu", value, alpha=alpha)
    return graph.op(activation, value) if activation else value


def run_model(
    model: ir.Model, feeds: Mapping[str, Array] | None = None, *, optimise: bool = True, **named: Array
) -> Any:
    """The outputs in ONNX Runtime on the CPU; the only one by itself."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    if not optimise:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    payload = ir.to_proto(model).SerializeToString()
    session = onnxruntime.InferenceSession(payload, options, providers=["CPUExecutionProvider"])
    results = session.run(None, {**(feeds or {}), **named})
    return results[0] if len(results) == 1 else results


def error_of(got: Array, want: Array) -> float:
    """Relative Frobenius error, of outputs below a tenth on average as if they were a tenth.

    Data is of unit scale: where a few terms of it cancel, the rounding of the terms stays while their sum goes.
    """
    assert got.shape == want.shape
    difference = float(np.linalg.norm(got.astype(np.float64) - want))
    floor = 0.1 * want.size**0.5
    return difference / max(float(np.linalg.norm(want)), floor, 1e-30)


@pytest.fixture(scope="session")
def library_path() -> Path:
    """``libtrtkp.so`` with emulated kernels."""
    from tests.emulation.programs import build_library

    return build_library()


@pytest.fixture(scope="session")
def oracle() -> Callable[..., Array]:
    """`masked_convolution`."""
    return masked_convolution


@pytest.fixture(scope="session")
def error_bound() -> Callable[[Any, int], float]:
    """`tolerance`."""
    return tolerance


@pytest.fixture(scope="session")
def relative_error() -> Callable[[Array, Array], float]:
    """`error_of`."""
    return error_of


@pytest.fixture(scope="session")
def new_graph() -> type[GraphBuilder]:
    """`GraphBuilder`."""
    return GraphBuilder


@pytest.fixture(scope="session")
def run() -> Callable[..., Any]:
    """`run_model`."""
    return run_model


@pytest.fixture(scope="session")
def conv_cases() -> Callable[..., st.SearchStrategy[ConvCase]]:
    """`_conv_cases`: hypothesis strategies of masked convolutions."""
    return _conv_cases


@pytest.fixture
def library(library_path: Path, monkeypatch: pytest.MonkeyPatch) -> Library:
    """The emulated library, which `trtkp.kernels` loads as it loads the real one."""
    from trtkp.kernels import choose
    from trtkp.kernels.capi import load_library

    monkeypatch.setenv("TRTKP_LIBRARY", str(library_path))
    monkeypatch.setattr(choose, "_CHOSEN", {})  # a tactic that another library's timing chose must not be used here
    return load_library()
