"""``conv``: compute one packed convolution on PyTorch tensors or on other arrays in device memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

from trtkp.cuda.arrays import activation as activation_view
from trtkp.cuda.arrays import view
from trtkp.errors import InputError
from trtkp.graph.packing import PackedConv
from trtkp.kernels.capi import load_library
from trtkp.kernels.choose import choose
from trtkp.kernels.layer import DeviceConv, Epilogue, Geometry, Task
from trtkp.kernels.prediction import Gpu, known_gpu

__all__ = ["conv"]

#: Packed convolutions that `conv` has uploaded, by device. An entry is freed together with its packed convolution.
_UPLOADED: WeakKeyDictionary[PackedConv, dict[str, DeviceConv]] = WeakKeyDictionary()


def conv(
    x: Any,
    packed: PackedConv | DeviceConv,
    *,
    bias: Any = None,
    residual: Any = None,
    activation: str = "",
    alpha: float = 0.01,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    allow_tf32: bool = False,
    tactic: str | None = None,
    out: Any = None,
    workspace: Any = None,
    stream: int | None = None,
    gpu: Gpu | None = None,
) -> Any:
    """Compute ``act(conv(x, packed) + bias + residual)``.

    Tensors are channels-last. Sums are in fp32, or in fp64 with the tactic ``reference``.

    Args:
        x: [N, C, H, W] with the channels innermost (``torch.channels_last``). The distance between pixels may be more
            than C. A CUDA tensor, or any object with ``__cuda_array_interface__``.
        packed: the convolution. With tensors, a `PackedConv` is uploaded to their device at its first use and kept
            there as long as it lives. Other arrays need a `DeviceConv`. 2:4 weights use sparse tensor cores in 16-bit
            types.
        bias: [F].
        residual: [N, F, P, Q] in the layout of x, added before the activation.
        activation: "", "Relu", "Relu6", "Silu", "HardSwish" or "LeakyRelu".
        alpha: slope of LeakyRelu below 0.
        stride: one number, or (h, w).
        padding: one number, (h, w), or (top, left, bottom, right).
        dilation: one number, or (h, w).
        allow_tf32: float32 products may be rounded to TF32 on tensor cores, with relative errors of about 5e-4.
        tactic: name of a tactic. None takes the fastest: by prediction and, with tensors, by timing once per layer and
            shape.
        out: [N, F, P, Q] in the layout of x, to write into. None allocates it if x is a tensor. Padding channels are
            set to 0.
        workspace: uint8 memory for tactics that need it. With tensors it is allocated.
        stream: ``cudaStream_t``. None takes PyTorch's current stream, or the stream of the array interface, or the
            default stream.
        gpu: the GPU to predict for if x is no tensor. None takes an A100.

    Returns:
        ``out``, or a new tensor.

    Raises:
        InputError: the index set is malformed, tensors do not fit or are not aligned to 16 bytes, the tactic cannot
            compute the layer, there is no library, or the GPU is below compute capability 8.0.
        JobError: the launch failed, as on a GPU for which the library was not built.
    """
    geometry, epilogue = Geometry.of(stride, padding, dilation), Epilogue(activation, alpha)
    if hasattr(x, "data_ptr"):
        if workspace is not None or stream is not None:
            raise InputError("workspace and stream cannot be given with tensors", remedy="use torch.cuda.stream")
        return _conv_tensors(x, packed, geometry, epilogue, bias, residual, allow_tf32, tactic or "", out)
    if not isinstance(packed, DeviceConv):
        raise InputError("packed is in host memory", remedy="make a DeviceConv of it with your library's asarray")
    if out is None:
        raise InputError("out is None", remedy="give the output array: only tensors are allocated here")
    task = Task.of(
        load_library(), packed.lists, geometry, epilogue, x=activation_view(x, "x"), y=activation_view(out, "y"),
        weight=packed.weight, index=packed.index, row_group=packed.row_group, row_filter=packed.row_filter,
        metadata=packed.metadata, bias=bias,
        residual=None if residual is None else activation_view(residual, "residual"), allow_tf32=allow_tf32,
    )  # fmt: skip
    space = None if workspace is None else view(workspace, "workspace")
    name = tactic or choose(task, gpu or known_gpu("A100"), None, workspace=space is not None)
    task.launch(name, _stream(x) if stream is None else stream, space)
    return out


def _conv_tensors(
    x: Any, packed: PackedConv | DeviceConv, geometry: Geometry, epilogue: Epilogue, bias: Any, residual: Any,
    allow_tf32: bool, tactic: str, out: Any,
) -> Any:  # fmt: skip
    from trtkp.ops.torch_op import conv_op, run, upload

    if isinstance(packed, PackedConv):
        kept = _UPLOADED.setdefault(packed, {})
        if str(x.device) not in kept:
            kept[str(x.device)] = upload(packed, x.device)
        packed = kept[str(x.device)]
    lists = packed.lists
    tensors = (packed.weight, packed.index, packed.row_group, packed.row_filter, bias)
    if out is not None:
        names = ("weight", "index", "row_group", "row_filter", "bias")
        run(lists, geometry, epilogue, x=x, y=out, residual=residual, metadata=packed.metadata, allow_tf32=allow_tf32,
            tactic=tactic, **dict(zip(names, tensors, strict=True)))  # fmt: skip
        return out
    if x.dim() != 4:
        raise InputError(f"x has shape {list(x.shape)}, expected [N, C, H, W]")
    return conv_op(
        x, *tensors, residual, packed.metadata, list(lists.weight_shape), lists.groups, lists.base, lists.block,
        list(geometry.strides), list(geometry.pads), list(geometry.dilations), epilogue.activation, epilogue.alpha,
        allow_tf32, tactic,
    )  # fmt: skip


def _stream(x: Any) -> int:
    """The stream of the array interface (version 3). Its 1 and 2 are CUDA's handles of the default streams."""
    return int(x.__cuda_array_interface__.get("stream") or 0)
