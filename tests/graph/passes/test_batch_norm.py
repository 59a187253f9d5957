"""Folding batch normalisation and constant additions: exact where it is allowed, and left alone elsewhere."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from trtkp.graph.edit import WEIGHT, finish, weight_name
from trtkp.graph.passes.batch_norm import fold_batch_norm

RNG = np.random.default_rng(0)
X = RNG.normal(size=(2, 4, 7, 7)).astype(np.float32)
WEIGHT_VALUE = RNG.normal(size=(6, 4, 3, 3)).astype(np.float32)


def batch_norm(graph: Any, x: ir.Value, channels: int = 6, prefix: str = "bn", **attributes: Any) -> ir.Value:
    rng = np.random.default_rng(len(graph.nodes))
    values = [
        graph.constant(f"{prefix}.{name}", array.astype(np.float32))
        for name, array in (
            ("weight", rng.normal(size=channels)),
            ("bias", rng.normal(size=channels)),
            ("mean", rng.normal(size=channels)),
            ("var", rng.uniform(0.01, 2, size=channels)),
        )
    ]
    return graph.op("BatchNormalization", x, *values, **{"epsilon": 1e-2, **attributes})


def check_fold(model: ir.Model, run: Any, relative_error: Any, folds: int, **feeds: Any) -> list[str]:
    feeds = feeds or {"x": X}
    before = run(model, feeds, optimise=False)
    outputs = [(value.name, value.shape, value.dtype) for value in model.graph.outputs]
    assert fold_batch_norm(model) == folds
    finish(model)
    assert [(value.name, value.shape, value.dtype) for value in model.graph.outputs] == outputs
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    after = run(model, feeds, optimise=False)
    for got, want in zip(after, before, strict=True) if isinstance(before, list) else [(after, before)]:
        assert relative_error(got, want) < 1e-6
    return [node.op_type for node in model.graph]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("groups", [1, 2])
def test_fold(new_graph: Any, run: Any, relative_error: Any, bias: bool, groups: int) -> None:
    graph = new_graph()
    weight = graph.constant("conv.weight", WEIGHT_VALUE[:, : 4 // groups])
    inputs = [weight, graph.constant("conv.bias", WEIGHT_VALUE[:, 0, 0, 0])] if bias else [weight]
    conv = graph.op("Conv", graph.input("x", ("n", 4, 7, 7)), *inputs, group=groups, strides=[2, 1], name="the conv")
    conv.producer().metadata_props["kept"] = "yes"
    model = graph.model(graph.op("Relu", batch_norm(graph, conv), output="y"))
    assert check_fold(model, run, relative_error, 1) == ["Conv", "Relu"]
    merged = model.graph[0]
    assert merged.name == "the conv"
    assert weight_name(merged) == merged.metadata_props[WEIGHT] == "conv.weight"
    assert merged.metadata_props["kept"] == "yes"
    assert not [name for name in model.graph.initializers if name.startswith("bn.")]
    # zeros of the weight stay zeros
    assert merged.inputs[1].dtype == ir.DataType.FLOAT


def test_default_epsilon_and_a_chain(new_graph: Any, run: Any, relative_error: Any) -> None:
    graph = new_graph()
    conv = graph.op("Conv", graph.input("x", ("n", 4, 7, 7)), graph.constant("w", WEIGHT_VALUE))
    first = graph.op(
        "BatchNormalization", conv, *(graph.constant(f"c{i}", np.full(6, 1e-6, np.float32)) for i in range(4))
    )
    second = batch_norm(graph, first, prefix="bn2")
    addend = graph.constant("addend", np.arange(6, dtype=np.float32).reshape(1, 6, 1, 1))
    model = graph.model(graph.op("Add", addend, second))
    assert check_fold(model, run, relative_error, 3) == ["Conv"]
    assert weight_name(model.graph[0]) == "w"


def test_zeros_of_the_weight_stay_zeros(new_graph: Any) -> None:
    mask = RNG.random(WEIGHT_VALUE.shape) < 0.5
    graph = new_graph()
    conv = graph.op("Conv", graph.input("x", ("n", 4, 7, 7)), graph.constant("w", np.where(mask, WEIGHT_VALUE, 0)))
    model = graph.model(batch_norm(graph, conv))
    fold_batch_norm(model)
    assert np.array_equal(model.graph[0].inputs[1].const_value.numpy() != 0, mask)


def test_shared_weight_gets_a_copy(new_graph: Any, run: Any, relative_error: Any) -> None:
    graph = new_graph()
    x, weight = graph.input("x", ("n", 4, 7, 7)), graph.constant("w", WEIGHT_VALUE)
    outputs = [
        graph.op("Relu", batch_norm(graph, graph.op("Conv", x, weight), prefix="one")),
        graph.op("Conv", x, weight, strides=[2, 2]),
        batch_norm(graph, graph.op("Conv", x, weight), prefix="two"),
    ]
    model = graph.model(*outputs)
    assert check_fold(model, run, relative_error, 2) == ["Conv", "Relu", "Conv", "Conv"]
    convs = [node for node in model.graph if node.op_type == "Conv"]
    assert [weight_name(node) for node in convs] == ["w"] * 3
    assert len({node.inputs[1].name for node in convs}) == 3
    assert np.array_equal(convs[1].inputs[1].const_value.numpy(), WEIGHT_VALUE)


@pytest.mark.parametrize("shape", [(6, 1, 1), (1, 6, 1, 1)])
@pytest.mark.parametrize("first", [False, True])
def test_addition_of_a_constant_per_filter(
    new_graph: Any, run: Any, relative_error: Any, shape: Any, first: bool
) -> None:
    graph = new_graph()
    conv = graph.op("Conv", graph.input("x", ("n", 4, 7, 7)), graph.constant("w", WEIGHT_VALUE))
    addend = graph.constant("addend", np.arange(6, dtype=np.float32).reshape(shape))
    model = graph.model(graph.op("Add", *((addend, conv) if first else (conv, addend))))
    assert check_fold(model, run, relative_error, 1) == ["Conv"]
    assert model.graph[0].inputs[1].name == "w"  # its values have not changed


@pytest.mark.parametrize("shape", [(1,), (), (5, 5), (1, 1, 6, 1, 1), (6, 5, 5), (2, 6, 1, 1)])
def test_other_additions_are_left(new_graph: Any, run: Any, relative_error: Any, shape: Any) -> None:
    graph = new_graph()
    conv = graph.op("Conv", graph.input("x", (2, 4, 7, 7)), graph.constant("w", WEIGHT_VALUE))
    model = graph.model(graph.op("Add", conv, graph.constant("addend", RNG.normal(size=shape).astype(np.float32))))
    assert check_fold(model, run, relative_error, 0) == ["Conv", "Add"]


def test_addition_with_a_single_filter_keeps_the_rank(new_graph: Any, run: Any, relative_error: Any) -> None:
    for shape, folds in (((1, 1, 1), 1), ((1, 1, 1, 1), 1), ((1, 1, 1, 1, 1), 0)):
        graph = new_graph()
        conv = graph.op("Conv", graph.input("x", (2, 4, 7, 7)), graph.constant("w", WEIGHT_VALUE[:1]))
        model = graph.model(graph.op("Add", conv, graph.constant("addend", np.ones(shape, np.float32))))
        check_fold(model, run, relative_error, folds)


def test_left_alone(new_graph: Any, run: Any, relative_error: Any) -> None:
    def before(graph: Any, x: ir.Value, weight: ir.Value) -> list[ir.Value]:
        return [graph.op("Conv", batch_norm(graph, x, 4), weight)]

    def read_twice(graph: Any, x: ir.Value, weight: ir.Value) -> list[ir.Value]:
        conv = graph.op("Conv", x, weight)
        return [graph.op("Add", batch_norm(graph, conv), graph.op("Neg", conv))]

    def added_to_itself(graph: Any, x: ir.Value, weight: ir.Value) -> list[ir.Value]:
        conv = graph.op("Conv", x, weight)
        return [graph.op("Add", conv, conv)]

    def after_concat(graph: Any, x: ir.Value, weight: ir.Value) -> list[ir.Value]:
        both = graph.op("Concat", graph.op("Conv", x, weight), graph.op("Conv", x, weight), axis=1)
        return [batch_norm(graph, both, 12)]

    def graph_output(graph: Any, x: ir.Value, weight: ir.Value) -> list[ir.Value]:
        conv = graph.op("Conv", x, weight)
        return [conv, batch_norm(graph, conv)]

    def computed_weight(graph: Any, x: ir.Value, weight: ir.Value) -> list[ir.Value]:
        return [batch_norm(graph, graph.op("Conv", x, graph.op("Neg", weight)))]

    def computed_statistics(graph: Any, x: ir.Value, weight: ir.Value) -> list[ir.Value]:
        normed = batch_norm(graph, graph.op("Conv", x, weight))
        normed.producer().replace_input_with(1, graph.op("Abs", normed.producer().inputs[1]))
        graph.nodes.sort(key=lambda node: node.op_type == "BatchNormalization")
        return [normed]

    def computed_bias(graph: Any, x: ir.Value, weight: ir.Value) -> list[ir.Value]:
        bias = graph.op("Neg", graph.constant("b", np.ones(6, np.float32)))
        return [batch_norm(graph, graph.op("Conv", x, weight, bias))]

    for make in (
        before, read_twice, added_to_itself, after_concat, graph_output, computed_weight, computed_statistics,
        computed_bias,
    ):  # fmt: skip
        graph = new_graph()
        outputs = make(graph, graph.input("x", ("n", 4, 7, 7)), graph.constant("w", WEIGHT_VALUE))
        model = graph.model(*outputs)
        operators = [node.op_type for node in model.graph]
        assert check_fold(model, run, relative_error, 0) == operators, make.__name__


def test_training_mode_is_left(new_graph: Any) -> None:
    graph = new_graph()
    conv = graph.op("Conv", graph.input("x", ("n", 4, 7, 7)), graph.constant("w", WEIGHT_VALUE))
    assert fold_batch_norm(graph.model(batch_norm(graph, conv, training_mode=1), infer=False)) == 0


def test_weight_of_a_constant_node(new_graph: Any, run: Any, relative_error: Any) -> None:
    graph = new_graph()
    weight = graph.op("Constant", value=ir.tensor(WEIGHT_VALUE), output="stored")
    model = graph.model(batch_norm(graph, graph.op("Conv", graph.input("x", ("n", 4, 7, 7)), weight)))
    assert check_fold(model, run, relative_error, 1) == ["Conv"]
    assert weight_name(model.graph[0]) == "stored"


def test_initializer_names_that_are_taken(new_graph: Any, run: Any, relative_error: Any) -> None:
    graph = new_graph()
    x = graph.input("x", ("n", 4, 7, 7))
    conv = graph.op("Conv", x, graph.constant("w", WEIGHT_VALUE))
    other = graph.op(
        "Mul", graph.constant("w.bias", np.full(1, 3, np.float32)), graph.constant("w.folded", np.ones(1, np.float32))
    )
    model = graph.model(graph.op("Mul", batch_norm(graph, conv), other))
    check_fold(model, run, relative_error, 1)
    assert {"w.bias", "w.bias.1", "w.folded", "w.folded.1"} <= set(model.graph.initializers)


def test_what_was_folded_away_is_gone() -> None:
    """A large running variance that is part of a weight by now must not make that weight seem beyond half precision."""
    from trtkp.graph.passes.precision import to_float16

    x = ir.val("x", ir.DataType.FLOAT, ["N", 2, 4, 4])
    arrays = {
        "w": np.full((2, 2, 1, 1), 1e3, np.float32),
        "gamma": np.ones(2, np.float32),
        "beta": np.zeros(2, np.float32),
        "mean": np.zeros(2, np.float32),
        "variance": np.full(2, 1e9, np.float32),
    }
    values = {
        name: ir.val(name, ir.DataType.FLOAT, array.shape, const_value=ir.tensor(array, name=name))
        for name, array in arrays.items()
    }
    conv = ir.node("Conv", [x, values["w"]], name="conv")
    norm = ir.node("BatchNormalization", [conv.outputs[0], *list(values.values())[1:]], name="norm")
    for node, name in ((conv, "a"), (norm, "y")):
        node.outputs[0].name, node.outputs[0].dtype = name, ir.DataType.FLOAT
        node.outputs[0].shape = ir.Shape(["N", 2, 4, 4])
    model = ir.Model(
        ir.Graph([x], norm.outputs, nodes=[conv, norm], initializers=list(values.values()), opset_imports={"": 18}),
        ir_version=10,
    )
    assert fold_batch_norm(model) == 1
    assert not set(arrays) & set(model.graph.initializers)
    to_float16(model)
