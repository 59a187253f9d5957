"""The translation of `trtkp.pruning.methods.dppnet_op` for ``torch.onnx``: a ``DynamicPatternConv`` of our domain."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from trtkp.graph.ops import DOMAIN, DYNAMIC, VERSION

__all__ = ["translations"]


def translations() -> dict[Any, Callable[..., Any]]:
    """PyTorch operator to the function that writes its ONNX node: ``custom_translation_table`` of torch.onnx.export."""
    import torch
    from onnx.defs import OpSchema
    from onnxscript import values

    import trtkp.pruning.methods.dppnet_op  # noqa: F401 - registers the operator

    lists = ("strides", "pads", "dilations", "weight_shape")
    schema = OpSchema(
        DYNAMIC,
        DOMAIN,
        VERSION,
        inputs=[
            OpSchema.FormalParameter(name, "tensor(int32)" if name == "taps" else "T")
            for name in ("X", "weight", "taps", "attention", "bias")
        ],
        outputs=[OpSchema.FormalParameter("Y", "T")],
        type_constraints=[("T", ["tensor(float)", "tensor(float16)"], "")],
        attributes=[
            *(OpSchema.Attribute(name, OpSchema.AttrType.INTS) for name in lists),
            OpSchema.Attribute("channels", OpSchema.AttrType.INT),
            *(OpSchema.Attribute(name, OpSchema.AttrType.STRING) for name in ("plugin_namespace", "plugin_version")),
        ],
    )
    operator = values.Op(values.Opset(DOMAIN, VERSION), DYNAMIC, schema)

    def translate(
        x: Any, weight: Any, taps: Any, attention: Any, bias: Any,
        weight_shape: Sequence[int], strides: Sequence[int], pads: Sequence[int], dilations: Sequence[int],
    ) -> Any:  # fmt: skip
        return operator(
            x, weight, taps, attention, bias, strides=strides, pads=pads, dilations=dilations,
            weight_shape=weight_shape, channels=weight_shape[1], plugin_namespace=DOMAIN, plugin_version=str(VERSION),
        )  # fmt: skip

    return {torch.ops.trtkp.dynamic_pattern_conv.default: translate}
