"""Half precision as TensorRT's strongly typed networks want it: the types are in the graph."""

from __future__ import annotations

import logging

import numpy as np
import onnx_ir as ir

from trtkp.errors import InputError

__all__ = ["to_float16"]

logger = logging.getLogger(__name__)


def to_float16(model: ir.Model, *, keep_io: bool = True) -> ir.Model:
    """A copy of a float32 graph with weights, constants and activations in float16.

    With ``keep_io`` graph inputs and outputs stay float32 behind one Cast each; without it they are float16 as well.
    Constants that operators take in float32 only (scales of Resize) stay. The work is onnxruntime's converter.

    Raises:
        InputError: a weight beyond the range of float16.
    """
    from onnxruntime.transformers.float16 import convert_float_to_float16

    limit = float(np.finfo(np.float16).max)
    for name, value in model.graph.initializers.items():
        if value.dtype == ir.DataType.FLOAT and value.const_value is not None:
            largest = float(np.abs(value.const_value.numpy()).max(initial=0.0))
            if not largest <= limit:
                raise InputError(
                    f"weight of magnitude {largest:g}, float16 ends at {limit:g}",
                    layer=name,
                    remedy="use --precision fp32",
                )
    proto = ir.to_proto(model)
    converted = convert_float_to_float16(proto, keep_io_types=keep_io, disable_shape_infer=True, op_block_list=[])
    half = ir.from_proto(converted)
    half.graph.sort()  # the converter appends its casts at the end
    return half
