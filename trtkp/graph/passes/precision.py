"""The pass to half precision. TensorRT's strongly typed networks take their types from the graph."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common_passes

from trtkp.errors import InputError

__all__ = ["to_float16"]

#: Operators that stay in float32 between Casts: ONNX defines NonMaxSuppression for float32 boxes only, and Range not at
#: all for float16.
_FLOAT32_ONLY = ["NonMaxSuppression", "Range"]


def to_float16(model: ir.Model, *, keep_io: bool = True) -> ir.Model:
    """A copy of a float32 graph with weights, constants and activations in float16.

    Constants that operators take in float32 only, such as the scales of Resize, stay. The conversion is done by
    onnxruntime's converter. It goes by the recorded types of values, so shapes and types are inferred first.

    Args:
        model: a float32 graph. It is not changed.
        keep_io: graph inputs and outputs stay float32, with one Cast each. False makes them float16.

    Raises:
        InputError: a weight is beyond the range of float16.
    """
    from onnxruntime.transformers.float16 import convert_float_to_float16

    source = ir.external_data.load_to_model(model.clone())
    bodies = dict(source.functions)  # they follow the types of their inputs, so they need no conversion
    source.functions.clear()
    # The converter ignores numbers that are attributes of Constant nodes.
    common_passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(source)
    common_passes.ShapeInferencePass()(source)
    limit = float(np.finfo(np.float16).max)
    for name, value in source.graph.initializers.items():
        if value.dtype == ir.DataType.FLOAT and value.const_value is not None:
            largest = float(np.abs(value.const_value.numpy()).max(initial=0.0))
            if not largest <= limit:
                raise InputError(
                    f"weight of magnitude {largest:g}, float16 ends at {limit:g}",
                    layer=name,
                    remedy="use --precision fp32",
                )
    converted = convert_float_to_float16(
        ir.to_proto(source), keep_io_types=keep_io, disable_shape_infer=True, op_block_list=_FLOAT32_ONLY
    )
    half = ir.from_proto(converted)
    half.functions.update(bodies)
    half.graph.sort()  # the converter appends its casts at the end
    return half
