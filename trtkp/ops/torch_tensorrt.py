"""torch-tensorrt: ``torch.ops.trtkp.conv`` becomes trtkp's plugin instead of a break in the graph.

*Unverified*: torch-tensorrt needs the full TensorRT. The tests record what the converter asks of both.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from trtkp.errors import InputError, JobError
from trtkp.graph.ops import DOMAIN, VERSION, OpName
from trtkp.ops.torch_op import conv_op

__all__ = ["register_converter"]

#: Parameters of the operator, in its order.
_PARAMETERS = (
    "x", "weight", "index", "row_group", "row_filter", "bias", "residual", "metadata", "weight_shape", "groups", "base",
    "list_block", "strides", "pads", "dilations", "activation", "alpha", "allow_tf32", "tactic",
)  # fmt: skip


def register_converter() -> None:
    """Let torch-tensorrt convert trtkp's convolutions. Call it once, before ``torch_tensorrt.compile``.

    TensorRT must know the plugins: load ``libtrtkp.so`` with ``tensorrt.get_plugin_registry().load_library`` first. The
    operator's ``tactic`` and ``allow_tf32`` have no effect: TensorRT chooses the tactic.

    Raises:
        JobError: torch-tensorrt or TensorRT is not installed.

    Example:
        ```python
        register_converter()
        compiled = torch_tensorrt.compile(swapped, ir="dynamo", inputs=[images])
        ```
    """
    try:
        conversion = importlib.import_module("torch_tensorrt.dynamo.conversion")
        utilities = importlib.import_module("torch_tensorrt.dynamo.conversion.converter_utils")
        tensorrt = importlib.import_module("tensorrt")
    except ImportError as error:
        raise JobError(f"torch-tensorrt cannot be imported ({error})", remedy="pip install torch-tensorrt") from None
    convert = partial(_convert, tensorrt, utilities.get_trt_tensor)
    conversion.dynamo_tensorrt_converter(conv_op._opoverload, supports_dynamic_shapes=True)(convert)


def _convert(
    trt: Any, get_trt_tensor: Any, ctx: Any, _target: Any, args: Sequence[Any], kwargs: Mapping[str, Any], name: str
) -> Any:
    """Add the plugin to a network, with the arguments that torch-tensorrt gives to a converter."""
    given = dict(zip(_PARAMETERS, args, strict=False)) | dict(kwargs)
    residual, metadata = given.get("residual"), given.get("metadata")
    op = str(OpName(given["base"], residual is not None, given["activation"], metadata is not None))
    creator = trt.get_plugin_registry().get_creator(op, str(VERSION), DOMAIN)
    if creator is None:
        raise InputError(
            f"TensorRT knows no plugin {op}", layer=name, remedy="load libtrtkp.so into its registry first"
        )
    plugin = creator.create_plugin(name, trt.PluginFieldCollection(_fields(trt, given)), trt.TensorRTPhase.BUILD)
    if plugin is None:
        raise JobError(f"the plugin {op} refused its fields; TensorRT's log says why", layer=name)
    bias = given.get("bias")
    tensors = [
        ("x", given["x"]),
        ("weight", given["weight"]),
        ("index", _int32(given["index"])),
        ("row_group", _int32(given["row_group"])),
        ("filters", _int32(given["row_filter"])),
        ("bias", _zeros_like(given["weight"], given["weight_shape"][0]) if bias is None else bias),
        ("residual", residual),
        ("metadata", _int32(metadata)),
    ]
    inputs = [get_trt_tensor(ctx, value, f"{name}_{part}") for part, value in tensors if value is not None]
    layer = ctx.net.add_plugin_v3(inputs, [], plugin)
    layer.name = name
    return layer.get_output(0)


def _fields(trt: Any, given: Mapping[str, Any]) -> list[Any]:
    kinds = trt.PluginFieldType
    values: dict[str, Any] = {
        "strides": given["strides"],
        "pads": given["pads"],
        "dilations": given["dilations"],
        "weight_shape": given["weight_shape"],
        "group": [given["groups"]],
        "list_block": [given["list_block"]],
    }
    fields = [trt.PluginField(name, np.array(value, np.int32), kinds.INT32) for name, value in values.items()]
    if given["activation"] == "LeakyRelu":
        fields.append(trt.PluginField("alpha", np.array([given["alpha"]], np.float32), kinds.FLOAT32))
    return fields


def _int32(value: Any) -> Any:
    """A constant list as int32, which is what the plugin takes; tensors of the network stay as they are."""
    if isinstance(value, torch.Tensor):
        return value.to(torch.int32)
    return value.astype(np.int32) if isinstance(value, np.ndarray) else value


def _zeros_like(weight: Any, count: int) -> Any:
    """A bias of zeros, of the weight's type: the plugins have no optional inputs."""
    if isinstance(weight, torch.Tensor):
        return torch.zeros(count, dtype=weight.dtype)
    if isinstance(weight, np.ndarray):
        return np.zeros(count, weight.dtype)
    raise InputError("the layer's weight is computed by the network, and it has no bias", remedy="give it a bias")
