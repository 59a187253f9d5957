"""The ONNX operators of domain ``trtkp``, version 1, and their bodies as model-local functions.

One table serves the functions here and the plugin creators: an operator's name is its base (`BASES`), ``Add`` when it
takes a residual, and its activation (`ACTIVATIONS`), as in ``StripeConvAddRelu``. TensorRT's parser finds functions by
name alone and wants every input given, hence the epilogue in the name.

Inputs, in order (K: length of a row of packed weights; rows: filters in group order, padding rows included):

=============  =================  ==========================================================================
``X``          [N, C·group, H, W]
``weight``     [rows, K]          packed weights, channels innermost; 0 at padding
index          int32              `KernelIndexConv`: ``channels`` [G, L], K = R·S·L, a padding entry is C
                                  `StripeConv`: ``taps`` [G, T], K = T·C, a padding entry is R·S
                                  `PatternConv`: ``entries`` [G, K], tap·65536 + channel, padding is R·S·65536
``row_group``  int32 [rows]       filter group of a row, ascending
``filters``    int32 [rows]       output channel of a row; F for a padding row
``bias``       [F]
``residual``   as Y               only in the ``Add`` forms
=============  =================  ==========================================================================

Attributes: strides, pads, dilations, group, weight_shape (F, C, R, S), alpha (`LeakyRelu` forms), plugin_namespace and
plugin_version, which make a current TensorRT parser take the plugin over the function.

Attributes of calibrated models, for a plugin that computes in 8 bits (`SCALES`); absent elsewhere, without meaning to
the body. A scale is what one step of -127..127 stands for: ``input_scale`` of X, ``weight_scale`` [F] of the filters of
the source model in their order, ``output_scale`` of Y, ``residual_scale`` of the residual. ``output_scale`` and
``residual_scale`` are absent where the tensor is not quantised.

The body scatters the packed weights into a zero weight and calls Conv, driven by its inputs alone, as one name has one
body in a model. It is right everywhere, not fast: the planner writes what runs where there is no plugin.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx
import onnx.parser
import onnx_ir as ir

__all__ = ["ACTIVATIONS", "BASES", "DOMAIN", "INDEX_INPUT", "SCALES", "VERSION", "OpName", "function"]

DOMAIN = "trtkp"
VERSION = 1

#: Base name to the name of its index input.
INDEX_INPUT = {"KernelIndexConv": "channels", "StripeConv": "taps", "PatternConv": "entries"}
BASES = tuple(INDEX_INPUT)

#: Attributes that calibration adds to a node.
SCALES = ("input_scale", "weight_scale", "output_scale", "residual_scale")

#: Activation to the ONNX text that computes ``Y`` from ``sum``.
ACTIVATIONS = {
    "": "Y = Identity (sum)",
    "Relu": "Y = Relu (sum)",
    "Relu6": """
        low = Constant <value_float: float = 0.0> ()
        high = Constant <value_float: float = 6.0> ()
        low_like = CastLike (low, sum)
        high_like = CastLike (high, sum)
        Y = Clip (sum, low_like, high_like)""",
    "Silu": """
        gate = Sigmoid (sum)
        Y = Mul (sum, gate)""",
    "HardSwish": "Y = HardSwish (sum)",
    "LeakyRelu": "Y = LeakyRelu <alpha: float = @alpha> (sum)",
}

#: Base to the ONNX text that computes ``tap`` and ``channel`` of every packed column, broadcastable to [G, ?, ?].
_COLUMNS = {
    "KernelIndexConv": """
        channel = Unsqueeze (index, one)
        count = Squeeze (tap_count)
        first = Squeeze (zero)
        step = Squeeze (one)
        every_tap = Range (first, count, step)
        outer = Constant <value_ints: ints = [0, 2]> ()
        tap = Unsqueeze (every_tap, outer)""",
    "StripeConv": """
        tap = Unsqueeze (index, two)
        count = Squeeze (channel_count)
        first = Squeeze (zero)
        step = Squeeze (one)
        channel = Range (first, count, step)""",
    "PatternConv": """
        radix = Constant <value_ints: ints = [65536]> ()
        tap = Div (index, radix)
        base = Mul (tap, radix)
        channel = Sub (index, base)""",
}

_BODY = """
<domain: "trtkp", opset_import: ["" : {opset}]>
{name} <strides, pads, dilations, group, weight_shape, {alpha}plugin_namespace, plugin_version, {scales}>
    (X, weight, {index}, row_group, filters, bias{residual}) => (Y)
{{
    zero = Constant <value_ints: ints = [0]> ()
    one = Constant <value_ints: ints = [1]> ()
    two = Constant <value_ints: ints = [2]> ()
    three = Constant <value_ints: ints = [3]> ()
    flat = Constant <value_ints: ints = [-1]> ()
    shape = Constant <value_ints: ints = @weight_shape> ()
    filter_count = Gather (shape, zero)
    channel_count = Gather (shape, one)
    kernel_rows = Gather (shape, two)
    kernel_columns = Gather (shape, three)
    tap_count = Mul (kernel_rows, kernel_columns)
    index = Cast <to: int = 7> ({index})
    {columns}

    grid_channels = Add (channel_count, one)
    grid_taps = Add (tap_count, one)
    grid_filters = Add (filter_count, one)
    grid_width = Mul (grid_taps, grid_channels)
    grid_size = Mul (grid_filters, grid_width)
    tap_offset = Mul (tap, grid_channels)
    offset = Add (tap_offset, channel)
    group_count_shape = Shape <start: int = 0, end: int = 1> ({index})
    group_shape = Concat <axis: int = 0> (group_count_shape, flat)
    group_offset = Reshape (offset, group_shape)
    row_offset = Gather (group_offset, row_group)
    filter = Cast <to: int = 7> (filters)
    filter_column = Unsqueeze (filter, one)
    filter_offset = Mul (filter_column, grid_width)
    position = Add (filter_offset, row_offset)
    position_flat = Reshape (position, flat)
    weight_flat = Reshape (weight, flat)
    zeros_float = ConstantOfShape (grid_size)
    zeros = CastLike (zeros_float, weight)
    scattered = ScatterElements <axis: int = 0> (zeros, position_flat, weight_flat)
    grid_shape = Concat <axis: int = 0> (grid_filters, grid_taps, grid_channels)
    grid = Reshape (scattered, grid_shape)
    starts = Constant <value_ints: ints = [0, 0, 0]> ()
    ends = Concat <axis: int = 0> (filter_count, tap_count, channel_count)
    cropped = Slice (grid, starts, ends)
    taps_last = Transpose <perm: ints = [0, 2, 1]> (cropped)
    dense = Reshape (taps_last, shape)
    product = Conv <strides: ints = @strides, pads: ints = @pads, dilations: ints = @dilations, group: int = @group>
        (X, dense, bias)
    {add}
    {activation}
}}
"""


@dataclass(frozen=True)
class OpName:
    """An operator of the domain: base, epilogue, and the name that both make."""

    base: str
    residual: bool = False
    activation: str = ""

    def __str__(self) -> str:
        return f"{self.base}{'Add' if self.residual else ''}{self.activation}"

    @classmethod
    def parse(cls, op_type: str) -> OpName:
        """The operator of that name.

        Raises:
            KeyError: not an operator of the domain.
        """
        for base in BASES:
            for residual in (False, True):
                for activation in ACTIVATIONS:
                    name = cls(base, residual, activation)
                    if str(name) == op_type:
                        return name
        raise KeyError(op_type)


def function(name: OpName, opset: int) -> ir.Function:
    """The operator's body over the given opset (18 or later) of the default domain."""
    text = _BODY.format(
        opset=opset,
        name=name,
        alpha="alpha, " if name.activation == "LeakyRelu" else "",
        scales=", ".join(SCALES if name.residual else SCALES[:-1]),
        index=INDEX_INPUT[name.base],
        residual=", residual" if name.residual else "",
        columns=_COLUMNS[name.base],
        add="sum = Add (product, residual)" if name.residual else "sum = Identity (product)",
        activation=ACTIVATIONS[name.activation],
    )
    proto = onnx.parser.parse_function(text)
    proto.doc_string = f"{DOMAIN} v{VERSION}: {name.base} with its epilogue, as a dense Conv over scattered weights."
    return ir.serde.deserialize_function(proto)
