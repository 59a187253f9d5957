"""Half precision as TensorRT's strongly typed networks want it: the types are in the graph."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common_passes

from trtkp.errors import InputError

__all__ = ["to_float16"]

#: Operators that ONNX does not define for float16, or only with the boxes in float32; they stay behind Casts.
_FLOAT32_ONLY = ["NonMaxSuppression", "Range"]


def to_float16(model: ir.Model, *, keep_io: bool = True) -> ir.Model:
    """A copy of a float32 graph with weights, constants and activations in float16.

    With ``keep_io`` graph inputs and outputs stay float32 behind one Cast each; without it they are float16 as well.
    Constants that operators take in float32 only (scales of Resize) stay. The work is onnxruntime's converter, which
    decides by the stored types of values, so these are inferred first.

    Raises:
        InputError: a weight beyond the range of float16.
    """
    from onnxruntime.transformers.float16 import convert_float_to_float16

    source = ir.external_data.load_to_model(model.clone())
    bodies = dict(source.functions)  # driven by their inputs' types, as they are
    source.functions.clear()
    # the converter passes over numbers in attributes of Constant nodes
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
