"""What the converter asks of torch-tensorrt and TensorRT, whose stand-ins record it: neither can be installed here."""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from trtkp.errors import InputError, JobError
from trtkp.graph.ops import INDEX_INPUT
from trtkp.ops.torch_op import conv_op
from trtkp.ops.torch_tensorrt import _PARAMETERS, register_converter


class StandIn:
    """Both modules, and what was asked of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.converters: dict[Any, Any] = {}
        self.creator: Any = SimpleNamespace(create_plugin=self._create)
        self.plugins: list[tuple[str, dict[str, list[float]], str]] = []
        self.asked: list[tuple[str, str, str]] = []
        tensorrt = ModuleType("tensorrt")
        vars(tensorrt).update(
            PluginField=lambda name, data, kind: SimpleNamespace(name=name, data=data, kind=kind),
            PluginFieldCollection=list,
            PluginFieldType=SimpleNamespace(INT32="int32", FLOAT32="float32"),
            TensorRTPhase=SimpleNamespace(BUILD="build"),
            get_plugin_registry=lambda: SimpleNamespace(get_creator=self._find),
        )
        conversion = ModuleType("torch_tensorrt.dynamo.conversion")
        vars(conversion).update(dynamo_tensorrt_converter=self._converter)
        utilities = ModuleType("torch_tensorrt.dynamo.conversion.converter_utils")
        vars(utilities).update(get_trt_tensor=lambda ctx, value, name: (name, value))
        for module in (tensorrt, conversion, utilities):
            module.__spec__ = ModuleSpec(module.__name__, None)  # PyTorch looks for it
            monkeypatch.setitem(sys.modules, module.__name__, module)
        for name in ("torch_tensorrt", "torch_tensorrt.dynamo"):
            monkeypatch.setitem(sys.modules, name, ModuleType(name))

    def convert(self, *args: Any, **kwargs: Any) -> Any:
        ctx = SimpleNamespace(net=SimpleNamespace(add_plugin_v3=self._add))
        return self.converters[torch.ops.trtkp.conv.default](ctx, None, args, kwargs, "layer1")

    def _converter(self, target: Any, *, supports_dynamic_shapes: bool) -> Any:
        assert supports_dynamic_shapes
        return lambda function: self.converters.setdefault(target, function)

    def _find(self, name: str, version: str, space: str) -> Any:
        self.asked.append((name, version, space))
        return self.creator

    def _create(self, name: str, fields: list[Any], phase: str) -> Any:
        for field in fields:
            assert field.data.dtype == field.kind
        self.plugins.append((name, {field.name: field.data.tolist() for field in fields}, phase))
        return "plugin"

    def _add(self, inputs: list[Any], shapes: list[Any], plugin: Any) -> Any:
        assert (shapes, plugin) == ([], "plugin")
        return SimpleNamespace(get_output=lambda index: (index, inputs))


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    made = StandIn(monkeypatch)
    register_converter()
    return made


def arguments(**changes: Any) -> list[Any]:
    """Of a layer with 4 filters of 6 channels, as a graph has them: constants, and the input as a network's tensor."""
    values: dict[str, Any] = {
        "x": "x of the network",
        "weight": torch.ones(2, 4, 3, dtype=torch.float16),
        "index": torch.tensor([[0, 2, 4]], dtype=torch.int64),
        "row_group": torch.zeros(1, dtype=torch.int32),
        "row_filter": torch.arange(4),
        "bias": None,
        "residual": None,
        "metadata": None,
        "weight_shape": [4, 6, 3, 3],
        "groups": 1,
        "base": "KernelIndexConv",
        "list_block": 1,
        "strides": [2, 2],
        "pads": [1, 1, 1, 1],
        "dilations": [1, 1],
        "activation": "Relu",
        "alpha": 0.0,
        "allow_tf32": False,
        "tactic": "",
    }
    return list((values | changes).values())


def test_parameters_are_those_of_the_operator() -> None:
    schema = torch.ops.trtkp.conv.default._schema
    assert tuple(argument.name for argument in schema.arguments) == _PARAMETERS
    assert conv_op._opoverload is torch.ops.trtkp.conv.default
    assert len(arguments()) == len(_PARAMETERS)


def test_fields_and_inputs(stand_in: StandIn) -> None:
    index, inputs = stand_in.convert(*arguments())
    assert index == 0
    assert stand_in.asked == [("KernelIndexConvRelu", "1", "trtkp")]
    fields = {"strides": [2, 2], "pads": [1] * 4, "dilations": [1, 1], "weight_shape": [4, 6, 3, 3], "group": [1],
              "list_block": [1]}  # fmt: skip
    assert stand_in.plugins == [("layer1", fields, "build")]
    names = ["x", "weight", "index", "row_group", "filters", "bias"]
    assert [name for name, _ in inputs] == [f"layer1_{name}" for name in names]
    values = dict(zip(names, (value for _, value in inputs), strict=True))
    assert values["x"] == "x of the network"
    assert {values[name].dtype for name in ("index", "row_group", "filters")} == {torch.int32}
    assert values["bias"].dtype == torch.float16
    assert values["bias"].tolist() == [0] * 4


def test_residual_metadata_and_slope(stand_in: StandIn) -> None:
    """In the order of the operators' inputs, and with the slope that only LeakyRelu has."""
    given = arguments(
        base="StripeConv", activation="LeakyRelu", alpha=0.25, residual="shortcut",
        metadata=torch.zeros(8, dtype=torch.int32), bias=torch.ones(4, dtype=torch.float16),
    )  # fmt: skip
    _, inputs = stand_in.convert(*given[:8], **dict(zip(_PARAMETERS[8:], given[8:], strict=True)))
    assert stand_in.asked[0][0] == "StripeConv24AddLeakyRelu"
    assert stand_in.plugins[0][1]["alpha"] == [0.25]
    assert [name for name, _ in inputs][5:] == ["layer1_bias", "layer1_residual", "layer1_metadata"]
    assert INDEX_INPUT.keys() == {"KernelIndexConv", "StripeConv", "PatternConv"}  # none needs fields of its own


def test_arrays_as_constants(stand_in: StandIn) -> None:
    """torch-tensorrt gives frozen parameters as NumPy arrays."""
    _, inputs = stand_in.convert(*arguments(weight=np.ones((2, 4, 3), np.float16), index=np.array([[0, 2, 4]])))
    values = dict(inputs)
    assert values["layer1_index"].dtype == np.int32
    assert values["layer1_bias"].dtype == np.float16


def test_refusals(stand_in: StandIn) -> None:
    with pytest.raises(InputError, match="weight is computed by the network"):
        stand_in.convert(*arguments(weight="computed"))
    stand_in.creator = SimpleNamespace(create_plugin=lambda *_: None)
    with pytest.raises(JobError, match="layer1: the plugin KernelIndexConvRelu refused its fields"):
        stand_in.convert(*arguments())
    stand_in.creator = None
    with pytest.raises(InputError, match=r"layer1: TensorRT knows no plugin KernelIndexConvRelu; load libtrtkp\.so"):
        stand_in.convert(*arguments())


def test_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_tensorrt", None)
    with pytest.raises(JobError, match="torch-tensorrt cannot be imported"):
        register_converter()


def test_operator_in_a_graph(stand_in: StandIn) -> None:
    """The converter is keyed by the target of the nodes that export makes of the operator."""

    class Net(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            given = arguments(x=x)
            given[3] = torch.zeros(2, dtype=torch.int32)
            out: torch.Tensor = torch.ops.trtkp.conv(*given)
            return out

    program = torch.export.export(Net(), (torch.ones(1, 6, 8, 8, dtype=torch.float16),))
    targets = [node.target for node in program.graph.nodes if node.op == "call_function"]
    assert any(target in stand_in.converters for target in targets)
