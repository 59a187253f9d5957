"""The ONNX operators of domain ``trtkp``, version 1, and their bodies as model-local functions.

This table is the single definition of the operators; the plugin creators follow it. An operator's name consists of
its base (`BASES` or `DYNAMIC`), ``24`` if its weights are 2:4, ``Add`` if it takes a residual, and its activation
(`ACTIVATIONS`), as in ``StripeConvAddRelu`` or ``KernelIndexConv24Relu``. The epilogue is part of the name because
TensorRT's parser finds functions by their name alone and takes no optional inputs.

Inputs, in order. K is the length of a row of packed weights; rows are the filters in group order, with padding rows:

=============  =================  ==========================================================================
``X``          [N, C·group, H, W]
``weight``     [rows, K]          packed weights, channels innermost; 0 at padding
index          int32              `KernelIndexConv`: ``channels`` [G, L], K = R·S·L, a padding entry is C
                                  `StripeConv`: ``taps`` [G, T], K = T·C, a padding entry is R·S
                                  `PatternConv`: ``entries`` [G, K], tap·65536 + channel, padding is R·S·65536
``row_group``  int32 [rows]       filter group of a row, ascending
``filters``    int32 [rows]       output channel of a row; F for a padding row
``bias``       [F]
``residual``   as Y               only if the name has ``Add``
``metadata``   int32              only if the name has ``24``: [ceil(rows / 16), S, 32], S = ceil(K / 64), and
                                  ``weight`` is [rows, 32·S]; see `trtkp.graph.two_four`
=============  =================  ==========================================================================

`DynamicPatternConv` computes a kernel for every sample, as a sum of P patterns weighted by an attention. It has one
list for the layer:

=============  =================  ==========================================================================
``X``          [N, C, H, W]
``weight``     [P, F, K]          packed weights of every pattern, K = T·C; 0 where a pattern drops a tap, and at
                                  padding
``taps``       int32 [1, T]       as in `StripeConv`
``attention``  [N, P, F]
``bias``       [F]
``residual``   as Y               only if the name has ``Add``
=============  =================  ==========================================================================

Attributes are strides, pads, dilations, group, ``weight_shape`` (F, C, R, S) and, for `LeakyRelu`, alpha. In addition:

- ``plugin_namespace`` and ``plugin_version`` make a current TensorRT parser prefer the plugin to the function.
- ``list_block`` is the value of `PackedConv.list_block`. A plugin needs it because it cannot read lists, which are on
  the device, before a launch. If it is absent, it is 1.
- ``tactic`` may name the plugin's tactic for a GPU (`trtkp.plan.pins`); the body ignores it.
- `DynamicPatternConv` has ``channels`` (C) in place of group, which is 1, and no ``list_block``.
- `SCALES` are for a plugin that computes in 8 bits. Only calibrated models have them, and the body ignores them. A
  scale is the value of one step in -127..127: ``input_scale`` of X, ``weight_scale`` [F] of the source model's filters
  in their order, ``output_scale`` of Y, ``residual_scale`` of the residual. The last two are absent if the tensor is
  not quantised.

The body scatters the packed weights into a zero weight and calls Conv. It depends on nothing but its inputs, because a
model has one body per name. It is correct in every runtime, but not fast: where there is no plugin, the planner writes
lowerings instead. The weights of `DynamicPatternConv` differ from sample to sample, so its body is im2col (a depthwise
Conv with one-hot kernels) and a batched MatMul, for any batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import onnx
import onnx.parser
import onnx_ir as ir

__all__ = ["ACTIVATIONS", "BASES", "DOMAIN", "DYNAMIC", "INDEX_INPUT", "SCALES", "VERSION", "OpName", "function"]

DOMAIN = "trtkp"
VERSION = 1

#: Base name to the name of its index input.
INDEX_INPUT = {"KernelIndexConv": "channels", "StripeConv": "taps", "PatternConv": "entries"}
BASES = tuple(INDEX_INPUT)
#: The base whose weights depend on the input.
DYNAMIC = "DynamicPatternConv"

#: Attributes that calibration adds to a node.
SCALES = ("input_scale", "weight_scale", "output_scale", "residual_scale")

#: Activation to the ONNX text that computes ``Y`` from ``sum``. Constants are cast to the type of ``sum``, as one body
#: serves fp32 and fp16.
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

#: Base to the ONNX text that computes ``tap`` and ``channel`` of every packed column. Both broadcast to [G, ?, ?].
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

#: The body of a packed convolution. A position in the grid is ``filter · (R·S+1)(C+1) + tap · (C+1) + channel``, so a
#: single ScatterElements restores filter order, list order and padding. Padding rows and entries address the spare
#: filter, tap or channel of the grid, which the Slice removes. The zeros come from ConstantOfShape and CastLike because
#: ONNX Runtime folds these at load time, also in fp16; a zero made by arithmetic is not folded there.
_BODY = """
<domain: "trtkp", opset_import: ["" : {opset}]>
{name} <strides, pads, dilations, group, weight_shape, list_block, tactic, {alpha}plugin_namespace, plugin_version,
    {scales}>
    (X, weight, {index}, row_group, filters, bias{residual}{metadata}) => (Y)
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
    {expand}
    filter = Cast <to: int = 7> (filters)
    filter_column = Unsqueeze (filter, one)
    filter_offset = Mul (filter_column, grid_width)
    position = Add (filter_offset, row_offset)
    position_flat = Reshape (position, flat)
    weight_flat = Reshape (rows, flat)
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


#: The ONNX text that expands 2:4 weights to ``rows`` [rows, K]: it reads the places of the weights from the words of
#: the metadata, and scatters. Words are made non-negative first, because Div rounds towards 0.
_EXPAND = """
    words = Cast <to: int = 7> (metadata)
    word_values = Constant <value_ints: ints = [4294967296]> ()
    unsigned = Mod (words, word_values)
    unsigned_column = Unsqueeze (unsigned, three)
    powers = Constant <value_ints: ints = [{powers}]> ()
    shifted = Div (unsigned_column, powers)
    four = Constant <value_ints: ints = [4]> ()
    place_bits = Mod (shifted, four)
    place_shape = Constant <value_ints: ints = [0, 0, 8, 4, 2, 8]> ()
    place_parts = Reshape (place_bits, place_shape)
    place_rows = Transpose <perm: ints = [0, 4, 2, 1, 3, 5]> (place_parts)
    row_count = Shape <start: int = 0, end: int = 1> (weight)
    stored_count = Shape <start: int = 1, end: int = 2> (weight)
    stored_shape = Concat <axis: int = 0> (flat, stored_count)
    place_padded = Reshape (place_rows, stored_shape)
    place = Slice (place_padded, zero, row_count)
    stored_first = Squeeze (zero)
    stored_end = Squeeze (stored_count)
    stored_step = Squeeze (one)
    stored = Range (stored_first, stored_end, stored_step)
    quad = Div (stored, two)
    quad_first = Mul (quad, four)
    column = Add (place, quad_first)
    expanded_count = Mul (stored_count, two)
    expanded_shape = Concat <axis: int = 0> (row_count, expanded_count)
    expanded_float = ConstantOfShape (expanded_shape)
    expanded_zeros = CastLike (expanded_float, weight)
    expanded = ScatterElements <axis: int = 1> (expanded_zeros, column, weight)
    origin = Constant <value_ints: ints = [0, 0]> ()
    rows_shape = Shape (row_offset)
    rows = Slice (expanded, origin, rows_shape)""".format(powers=", ".join(str(4**i) for i in range(16)))

_DYNAMIC_BODY = """
<domain: "trtkp", opset_import: ["" : {opset}]>
{name} <strides, pads, dilations, channels, weight_shape, {alpha}plugin_namespace, plugin_version>
    (X, weight, taps, attention, bias{residual}) => (Y)
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
    count = Squeeze (tap_count)
    first = Squeeze (zero)
    step = Squeeze (one)
    every_tap = Range (first, count, step)
    listed = Cast <to: int = 7> (taps)
    listed_flat = Reshape (listed, flat)
    listed_column = Unsqueeze (listed_flat, one)
    is_tap = Equal (listed_column, every_tap)
    one_hot = CastLike (is_tap, X)
    list_length = Shape (listed_flat)
    spread_shape = Concat <axis: int = 0> (channel_count, list_length, tap_count)
    one_hots = Expand (one_hot, spread_shape)
    kernel_shape = Concat <axis: int = 0> (flat, one, kernel_rows, kernel_columns)
    kernels = Reshape (one_hots, kernel_shape)
    gathered = Conv <strides: ints = @strides, pads: ints = @pads, dilations: ints = @dilations, group: int = @channels>
        (X, kernels)
    by_channel_shape = Concat <axis: int = 0> (zero, channel_count, list_length, flat)
    by_channel = Reshape (gathered, by_channel_shape)
    by_tap = Transpose <perm: ints = [0, 2, 1, 3]> (by_channel)
    column_count = Mul (channel_count, list_length)
    columns_shape = Concat <axis: int = 0> (zero, column_count, flat)
    columns = Reshape (by_tap, columns_shape)

    attention_column = Unsqueeze (attention, three)
    weighted = Mul (attention_column, weight)
    kernel = ReduceSum <keepdims: int = 0> (weighted, one)
    product_flat = MatMul (kernel, columns)
    batch = Shape <start: int = 0, end: int = 1> (gathered)
    size = Shape <start: int = 2, end: int = 4> (gathered)
    product_shape = Concat <axis: int = 0> (batch, filter_count, size)
    product = Reshape (product_flat, product_shape)
    bias_shape = Concat <axis: int = 0> (filter_count, one, one)
    bias_column = Reshape (bias, bias_shape)
    biased = Add (product, bias_column)
    {add}
    {activation}
}}
"""


@dataclass(frozen=True)
class OpName:
    """The name of an operator, in its parts.

    Attributes:
        base: one of `BASES`, or `DYNAMIC`.
        residual: whether it adds a residual before the activation.
        activation: one of `ACTIVATIONS`.
        two_four: whether its weights are 2:4.

    Example:
        >>> str(OpName("StripeConv", residual=True, activation="Relu"))
        'StripeConvAddRelu'
        >>> OpName.parse("KernelIndexConv24Relu").two_four
        True
    """

    base: str
    residual: bool = False
    activation: str = ""
    two_four: bool = False

    def __str__(self) -> str:
        return f"{self.base}{'24' if self.two_four else ''}{'Add' if self.residual else ''}{self.activation}"

    @classmethod
    def parse(cls, op_type: str) -> OpName:
        """The parts of an operator's name.

        Raises:
            KeyError: the domain has no operator of this name.
        """
        variants = [*product(BASES, (False, True)), (DYNAMIC, False)]  # a dynamic pattern has no 2:4 weights
        for (base, two_four), residual, activation in product(variants, (False, True), ACTIVATIONS):
            name = cls(base, residual, activation, two_four)
            if str(name) == op_type:
                return name
        raise KeyError(op_type)


def function(name: OpName, opset: int) -> ir.Function:
    """The operator's body, in standard operators.

    Args:
        name: the operator.
        opset: version of the default domain that the body uses, 18 or later.
    """
    common = {
        "opset": opset,
        "name": name,
        "alpha": "alpha, " if name.activation == "LeakyRelu" else "",
        "residual": ", residual" if name.residual else "",
        "activation": ACTIVATIONS[name.activation],
    }
    if name.base == DYNAMIC:
        text = _DYNAMIC_BODY.format(
            **common, add="sum = Add (biased, residual)" if name.residual else "sum = Identity (biased)"
        )
        what = "im2col and a batched MatMul"
    else:
        text = _BODY.format(
            **common,
            scales=", ".join(SCALES if name.residual else SCALES[:-1]),
            index=INDEX_INPUT[name.base],
            columns=_COLUMNS[name.base],
            metadata=", metadata" if name.two_four else "",
            expand=_EXPAND if name.two_four else "rows = Identity (weight)",
            add="sum = Add (product, residual)" if name.residual else "sum = Identity (product)",
        )
        what = "a dense Conv over scattered weights"
    proto = onnx.parser.parse_function(text)
    proto.doc_string = f"{DOMAIN} v{VERSION}: {name.base} with its epilogue, as {what}."
    return ir.serde.deserialize_function(proto)
