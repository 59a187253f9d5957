"""The operators of domain trtkp: their functions against the oracle, and what other tools make of them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trtkp.graph.layers import conv_layers
from trtkp.graph.ops import ACTIVATIONS, BASES, DOMAIN, OpName, function
from trtkp.graph.passes.pack import pack_convolutions
from trtkp.index.index_set import Kind, from_mask
from trtkp.pruning.method import Method
from trtkp.pruning.methods.kep import KEP
from trtkp.pruning.methods.pptkp import PPTKP
from trtkp.pruning.methods.soks import SOKS
from trtkp.pruning.methods.vskp import VSKP

NAMES = [OpName(*parts) for parts in product(BASES, (False, True), ACTIVATIONS)]
OF_KIND = {Kind.KERNEL: "KernelIndexConv", Kind.STRIPE: "StripeConv", Kind.PATTERN: "PatternConv"}


def packed(case: Any, row_multiple: int = 1, list_multiple: int = 1) -> tuple[ir.Model, str]:
    model = case.model()
    index = from_mask(case.mask, case.groups)
    (node,) = pack_convolutions(model, {"w": index}, {}, row_multiple=row_multiple, list_multiple=list_multiple)
    assert [n.op_type for n in model.graph] == [node.op_type]
    assert node.op_type == str(OpName(OF_KIND[index.kind], case.residual is not None, case.activation))
    return model, node.op_type


@pytest.fixture(scope="module")
def plain_case(conv_cases: Any) -> Callable[..., Any]:
    """A case of a kind, 3x3 with padding 1, with the given parts changed."""
    rng = np.random.default_rng(5)

    def make(kind: str = "pattern", residual: bool = False, **changes: Any) -> Any:
        mask = np.ones((6, 4, 3, 3), bool)
        if kind == "kernel":
            mask &= rng.random((6, 4, 1, 1)) < 0.6
        elif kind == "stripe":
            mask &= rng.random((1, 1, 3, 3)) < 0.5
        else:
            mask &= rng.random(mask.shape) < 0.5
        case = _example(conv_cases)
        return replace(
            case, x=rng.normal(size=(2, 4, 8, 9)).astype(np.float32), mask=mask,
            weight=rng.normal(size=mask.shape).astype(np.float32), bias=rng.normal(size=6).astype(np.float32),
            residual=rng.normal(size=(2, 6, 8, 9)).astype(np.float32) if residual else None,
            **{"activation": "", "alpha": 0.2, "strides": (1, 1), "pads": (1, 1, 1, 1), "dilations": (1, 1),
               "groups": 1, **changes},
        )  # fmt: skip

    return make


def _example(conv_cases: Any) -> Any:
    found: list[Any] = []

    @settings(max_examples=1, database=None)
    @given(conv_cases())
    def first(case: Any) -> None:
        found.append(case)

    first()
    return found[0]


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_functions_agree_with_the_oracle(
    conv_cases: Any, run: Any, relative_error: Any, error_bound: Any, dtype: Any
) -> None:
    seen: set[tuple[str, bool, str]] = set()

    @settings(max_examples=120)
    @given(conv_cases(), st.sampled_from([1, 2, 4]), st.sampled_from([1, 3, 8]))
    def check(case: Any, row_multiple: int, list_multiple: int) -> None:
        case = case.astype(dtype)
        model, op_type = packed(case, row_multiple, list_multiple)
        op = OpName.parse(op_type)
        seen.add((op.base, op.residual, op.activation))
        got = run(model, case.feeds())
        assert got.dtype == dtype
        assert relative_error(got, case.want()) < error_bound(dtype, case.weight[0].size)

    check()
    # the examples reach every base with and without residual, and every activation
    assert {s[:2] for s in seen} == set(product(BASES, (False, True)))
    assert {s[2] for s in seen} == set(ACTIVATIONS)


def repeated(case: Any, times: int) -> Any:
    """The case with its samples, and multiples of them, in one batch."""
    x, residual = (
        None if part is None else np.concatenate([part * factor for factor in range(1, times + 1)])
        for part in (case.x, case.residual)
    )
    return replace(case, x=x, residual=residual)


@pytest.mark.parametrize("base", BASES)
def test_bodies_in_float64_are_the_oracle_to_rounding(conv_cases: Any, relative_error: Any, base: str) -> None:
    """The reference evaluator computes in the type of its input: what is left is the order of the sums."""
    from onnx.inliner import inline_local_functions
    from onnx.reference import ReferenceEvaluator

    kind = {name: str(kind) for kind, name in OF_KIND.items()}[base]
    seen: list[bool] = []
    batches: set[int] = set()

    @settings(max_examples=40)
    @given(conv_cases(kinds=(kind,)), st.sampled_from([1, 2]), st.sampled_from([1, 4]), st.sampled_from([1, 3]))
    def check(case: Any, repeats: int, row_multiple: int, list_multiple: int) -> None:
        case = repeated(case, repeats)
        batches.add(len(case.x))
        # numbers in attributes are float32: the slope of LeakyRelu, and 1/6 in the evaluator's HardSwish
        plain = replace(case, activation="") if case.activation in ("LeakyRelu", "HardSwish") else case
        case = plain.astype(np.float64)
        model, op_type = packed(case, row_multiple, list_multiple)
        seen.append(OpName.parse(op_type).base == base)  # a mask may be of a simpler kind by chance
        body = inline_local_functions(ir.to_proto(model))  # the evaluator knows no defaults of a function's attributes
        (got,) = ReferenceEvaluator(body).run(None, case.feeds())
        assert got.dtype == np.float64
        assert relative_error(got, case.want()) < 1e-14 * max(10, case.weight[0].size)

    check()
    assert sum(seen) >= 10
    assert batches == {1, 2, 4}


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize(
    ("kind", "method"),
    [
        (Kind.KERNEL, PPTKP(ratio=0.5)),
        (Kind.KERNEL, VSKP(ratio=0.5)),
        (Kind.STRIPE, SOKS(ratio=0.5, filter_group=1)),
        (Kind.PATTERN, KEP(n=4)),
    ],
    ids=lambda part: getattr(part, "name", str(part)),
)
def test_permuted_filters_permute_masks_and_outputs(
    kind: Kind, method: Method, residual: bool, plain_case: Any, run: Any, relative_error: Any
) -> None:
    case = plain_case(str(kind), residual, activation="Relu")
    order = np.array([3, 0, 5, 1, 4, 2])

    def pruned(weight: Any) -> Any:
        layers = conv_layers(replace(case, weight=weight).model(), {"x": case.x.shape, "r": (2, 6, 8, 9)}).layers
        return method.masks(layers, {"w": weight})["w"]

    case = replace(case, mask=pruned(case.weight))
    assert not case.mask.all()
    assert np.array_equal(pruned(case.weight[order]), case.mask[order])
    moved = replace(
        case, weight=case.weight[order], mask=case.mask[order], bias=case.bias[order],
        residual=None if case.residual is None else case.residual[:, order],
    )  # fmt: skip
    model, op_type = packed(case)
    assert OpName.parse(op_type).base == OF_KIND[kind]
    before, after = run(model, case.feeds()), run(packed(moved)[0], moved.feeds())
    assert not np.allclose(before, after)
    assert relative_error(after, before[:, order]) < 1e-6


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("name", NAMES, ids=str)
def test_every_operator(
    name: OpName, dtype: Any, plain_case: Any, run: Any, relative_error: Any, error_bound: Any
) -> None:
    kind = {base: str(kind) for kind, base in OF_KIND.items()}[name.base]
    case = repeated(plain_case(kind, name.residual, activation=name.activation), 2).astype(dtype)
    assert len(case.x) == 4
    model, op_type = packed(case, 4, 4)
    assert op_type == str(name)
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    assert relative_error(run(model, case.feeds()), case.want()) < error_bound(dtype, 36)


def test_names_parse_back() -> None:
    assert len({str(name) for name in NAMES}) == 36
    for name in NAMES:
        assert OpName.parse(str(name)) == name
    assert str(OpName("StripeConv", residual=True, activation="Relu")) == "StripeConvAddRelu"
    for wrong in ("Conv", "StripeConvReluAdd", "StripeConvTanh", "stripeconv", ""):
        with pytest.raises(KeyError):
            OpName.parse(wrong)


@pytest.mark.parametrize("opset", [18, 20, 22])
@pytest.mark.parametrize("name", NAMES, ids=str)
def test_functions_have_the_inputs_that_a_node_gives(name: OpName, opset: int) -> None:
    body = function(name, opset)
    assert body.identifier() == (DOMAIN, str(name), "")
    assert body.opset_imports == {"": opset}
    assert len(body.inputs) == 6 + name.residual
    assert ("alpha" in body.attributes) == (name.activation == "LeakyRelu")
    used = {value.name for node in body for value in node.inputs if value is not None}
    assert {value.name for value in body.inputs} <= used


@pytest.mark.parametrize("kind", list(Kind))
def test_output_shape_is_inferred(kind: Kind, plain_case: Any) -> None:
    case = plain_case(str(kind), residual=False, activation="Relu", strides=(2, 1))
    model, _ = packed(case)
    proto = ir.to_proto(model)
    del proto.graph.value_info[:]
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    inferred = onnx.shape_inference.infer_shapes(proto, strict_mode=True, data_prop=True)
    shape = inferred.graph.output[0].type.tensor_type.shape.dim
    assert [dim.dim_param or dim.dim_value for dim in shape] == ["batch", 6, 4, 9]


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("kind", list(Kind))
def test_onnxruntime_folds_the_body_to_a_convolution(kind: Kind, dtype: Any, plain_case: Any, tmp_path: Path) -> None:
    import onnxruntime

    model, _ = packed(plain_case(str(kind)).astype(dtype), 4, 8)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"])
    left = {node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node}
    # layouts and, on a CPU, single precision are onnxruntime's business
    assert left - {"Cast", "ReorderInput", "ReorderOutput"} == {"Conv"}


def test_one_function_serves_layers_of_different_structure(
    new_graph: Any, run: Any, oracle: Any, relative_error: Any
) -> None:
    rng = np.random.default_rng(0)
    graph = new_graph()
    y: ir.Value = graph.input("x", ("batch", 3, 9, 9))
    x = rng.normal(size=(2, 3, 9, 9)).astype(np.float32)
    want: Any = x
    sets = {}
    layers = [((6, 3, 3, 3), 1, (1, 1), 0.4), ((9, 2, 4, 2), 3, (2, 1), 0.5), ((4, 9, 2, 1), 1, (1, 1), 0.3)]
    for i, (shape, groups, strides, density) in enumerate(layers):
        weight = rng.normal(size=shape).astype(np.float32)
        mask = rng.random(shape) < density
        sets[f"w{i}"] = from_mask(mask, groups)
        y = graph.op("Conv", y, graph.constant(f"w{i}", weight), strides=strides, group=groups)
        y = graph.op("Relu", y)
        want = oracle(want, weight, mask, strides=strides, groups=groups, activation="Relu")
    assert {index.kind for index in sets.values()} == {Kind.PATTERN}
    model = graph.model(y)
    assert len(pack_convolutions(model, sets, {})) == 3
    assert [str(key[1]) for key in model.functions] == ["PatternConvRelu"]
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    assert relative_error(run(model, x=x), want) < 1e-6


def test_tensorrt_parses_every_base(plain_case: Any, tmp_path: Path) -> None:
    """Parsing only; in its own process, as another test may hold a plugin library."""
    pytest.importorskip("tensorrt_rtx")
    paths = []
    for kind in Kind:
        model, op_type = packed(plain_case(str(kind), residual=True, activation="Relu"))
        paths.append(str(tmp_path / f"{op_type}.onnx"))
        ir.save(model, paths[-1])
    program = """
import sys
import tensorrt_rtx as trt
logger = trt.Logger(trt.Logger.ERROR)
for path in sys.argv[1:]:
    network = trt.Builder(logger).create_network()
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(path):
        sys.exit(f"{path}: {[parser.get_error(i).desc() for i in range(parser.num_errors)]}")
    types = [network.get_layer(i).type for i in range(network.num_layers)]
    assert trt.LayerType.CONVOLUTION in types, types
    print(network.num_layers, tuple(network.get_output(0).shape))
"""
    result = subprocess.run([sys.executable, "-c", program, *paths], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert [line.split(" ", 1)[1] for line in result.stdout.splitlines()] == ["(-1, 6, 8, 9)"] * 3
