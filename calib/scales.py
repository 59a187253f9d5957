"""Attach scales to the packed operators of ``model.onnx``, for plugins that compute in 8 bits.

The function bodies of the operators do not read these attributes, so ``model.onnx`` still computes in fp32.
"""

from __future__ import annotations

import onnx_ir as ir

from trtkp.bundle.calibration import Calibration
from trtkp.calib.placement import root
from trtkp.calib.qdq import weight_scales
from trtkp.graph.edit import weight_name
from trtkp.graph.packing import unpack
from trtkp.graph.passes.pack import packed_nodes, read_packed

__all__ = ["attach_scales"]


def attach_scales(model: ir.Model, calibration: Calibration) -> list[str]:
    """Set the attributes of `trtkp.graph.ops.SCALES` on every packed node of a quantised layer.

    The scales are those of int8, whatever the kind of the calibration. A layer in floating point gets none.

    Args:
        model: the packed graph; changed in place.
        calibration: made for the planned graph of the same model, in which values have the same names.

    Returns:
        The names of the nodes that got scales.
    """
    done = []
    for node in packed_nodes(model):
        if weight_name(node) not in calibration.quantised:
            continue
        read = _scale(node.inputs[0], calibration)
        if read is None:
            continue
        op, packed = read_packed(node)
        scales = {"input_scale": read, "output_scale": _scale(node.outputs[0], calibration)}
        if op.residual:
            scales["residual_scale"] = _scale(node.inputs[6], calibration)
        for name, scale in scales.items():
            if scale is not None:
                node.attributes.add(ir.AttrFloat32(name, scale))
        per_filter = weight_scales(unpack(packed), 0)
        node.attributes.add(ir.AttrFloat32s("weight_scale", [float(scale) for scale in per_filter]))
        done.append(str(node.name))
    return done


def _scale(value: ir.Value | None, calibration: Calibration) -> float | None:
    if value is None:
        return None
    found = calibration.tensors.get(str(root(value).name))
    return found.scale if found is not None and found.amax > 0 else None
