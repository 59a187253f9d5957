"""``torch.ops.trtkp.dynamic_pattern_conv``: a convolution whose kernel is put together for every sample.

One operator, so that an exported program holds one node and the ONNX graph one ``DynamicPatternConv`` of the same
inputs (`trtkp.graph.ops`). It computes on any device; it has no gradient, training uses `prune.dynamic`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import conv2d, pad

__all__ = ["pattern_conv"]


@torch.library.custom_op("trtkp::dynamic_pattern_conv", mutates_args=())
def pattern_conv(
    x: Tensor,
    weight: Tensor,
    taps: Tensor,
    attention: Tensor,
    bias: Tensor,
    weight_shape: Sequence[int],
    strides: Sequence[int],
    pads: Sequence[int],
    dilations: Sequence[int],
) -> Tensor:
    """``y_n = (sum_p A_np · W_p) * x_n + b``, [N, F, P, Q].

    Args:
        x: [N, C, H, W].
        weight: of every pattern, [P, F, T·C], channels innermost.
        taps: int32 [1, T], ``r·S + s`` of the listed positions.
        attention: A, [N, P, F].
        bias: [F].
        weight_shape: F, C, R, S.
        strides: of height and width.
        pads: top, left, bottom, right.
        dilations: of height and width.
    """
    filters, channels, rows, columns = weight_shape
    count, listed = x.shape[0], taps.flatten().long()
    packed = torch.einsum("npf,pfk->nfk", attention, weight).unflatten(2, (len(listed), channels))
    dense = packed.new_zeros(count, filters, rows * columns, channels)
    dense[:, :, listed] = packed
    kernels = dense.transpose(2, 3).reshape(count * filters, channels, rows, columns)
    top, left, bottom, right = pads
    padded = pad(x, (left, right, top, bottom)).flatten(0, 1)[None]
    out = conv2d(padded, kernels, None, tuple(strides), 0, tuple(dilations), count)[0].unflatten(0, (count, filters))
    return out + bias[:, None, None]


@pattern_conv.register_fake
def _fake(
    x: Tensor, weight: Tensor, taps: Tensor, attention: Tensor, bias: Tensor,  # noqa: ARG001 (as pattern_conv)
    weight_shape: Sequence[int], strides: Sequence[int], pads: Sequence[int], dilations: Sequence[int],
) -> Tensor:  # fmt: skip
    size = [
        (x.shape[2 + i] + pads[i] + pads[i + 2] - (weight_shape[2 + i] - 1) * dilations[i] - 1) // strides[i] + 1
        for i in range(2)
    ]
    return x.new_empty((x.shape[0], weight_shape[0], *size))
