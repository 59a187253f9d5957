"""``torch.ops.trtkp.dynamic_pattern_conv``: a convolution whose kernel is a mix of patterns, different per sample.

It is one operator so that an exported program holds one node for it, which becomes one ``DynamicPatternConv`` with the
same inputs in the ONNX graph (`trtkp.graph.ops`). It runs on any device. Its backward pass computes the forward pass
again and differentiates that, so an exported net can be trained further; the positions that it reads stay the same.
Under automatic mixed precision it computes in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

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
    """Compute ``y_n = (sum_p A_np · W_p) * x_n + b``, [N, F, P, Q].

    Args:
        x: input, [N, C, H, W].
        weight: the packed weights of the patterns, [P, F, T·C], channels innermost.
        taps: the T positions that are stored, ``r·S + s``, int32 [1, T].
        attention: shares of the patterns, A, [N, P, F].
        bias: [F].
        weight_shape: F, C, R, S.
        strides: strides of height and width.
        pads: padding at the top, left, bottom and right.
        dilations: dilations of height and width.
    """
    return _computed(x, weight, taps, attention, bias, weight_shape, strides, pads, dilations)


def _computed(
    x: Tensor, weight: Tensor, taps: Tensor, attention: Tensor, bias: Tensor,
    weight_shape: Sequence[int], strides: Sequence[int], pads: Sequence[int], dilations: Sequence[int],
) -> Tensor:  # fmt: skip
    filters, channels, rows, columns = weight_shape
    count, listed = x.shape[0], taps.flatten().long()
    packed = torch.einsum("npf,pfk->nfk", attention, weight).unflatten(2, (len(listed), channels))
    if packed.shape[1] != filters:  # from a file it may be any number, and so much memory would be asked for below
        raise ValueError(f"weight_shape names {filters} filters, but the weight has {packed.shape[1]}")
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


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG001 (as PyTorch calls it)
    ctx.save_for_backward(*inputs[:5])
    ctx.geometry = inputs[5:]


def _gradients(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    """Gradients of all tensors but ``taps``, through a second forward pass."""
    given = [tensor.detach() for tensor in ctx.saved_tensors]
    wanted = [given[i].requires_grad_() for i in (0, 1, 3, 4)]
    with torch.enable_grad():
        out = _computed(*given, *ctx.geometry)
    x, weight, attention, bias = torch.autograd.grad(out, wanted, gradient)
    return x, weight, None, attention, bias, None, None, None, None


pattern_conv.register_autograd(_gradients, setup_context=_keep)
for _device in ("cpu", "cuda"):
    pattern_conv.register_autocast(_device, torch.float32)
