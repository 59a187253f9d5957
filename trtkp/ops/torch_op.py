"""``torch.ops.trtkp.conv``: a packed convolution as a PyTorch operator for eager mode, compile, export, CUDA graphs.

It computes on CUDA tensors. On CPU tensors it works only with the emulated library of the tests.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trtkp.cuda.arrays import activation as activation_view
from trtkp.cuda.arrays import view
from trtkp.errors import InputError
from trtkp.graph.packing import PackedConv
from trtkp.kernels.capi import Library, load_library
from trtkp.kernels.choose import RUNS, choose
from trtkp.kernels.layer import DeviceConv, Epilogue, Geometry, Lists, Task, output_pitch
from trtkp.kernels.prediction import Gpu, gpu_like, known_gpu

__all__ = ["conv_op", "run", "to_torch", "upload"]

#: The GPU for which tactics are predicted under the emulator.
_EMULATED_GPU = "A100"


def to_torch(array: np.ndarray[Any, Any], device: Any) -> Tensor:
    """A NumPy array as a tensor on a device. NumPy's bfloat16 is that of ml_dtypes, which PyTorch does not know."""
    if array.dtype.name == "bfloat16":
        bits = torch.from_numpy(np.ascontiguousarray(array).view(np.int16).copy())
        return bits.to(device).view(torch.bfloat16)
    return torch.from_numpy(np.ascontiguousarray(array).copy()).to(device)


def upload(packed: PackedConv, device: Any = "cuda", library: Library | None = None) -> DeviceConv:
    """Copy the lists and weights of a packed convolution to a PyTorch device."""
    return DeviceConv(packed, lambda array: to_torch(array, device), library or load_library())


@torch.library.custom_op("trtkp::conv", mutates_args=())
def conv_op(
    x: Tensor,
    weight: Tensor,
    index: Tensor,
    row_group: Tensor,
    row_filter: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    metadata: Tensor | None,
    weight_shape: Sequence[int],
    groups: int,
    base: str,
    list_block: int,
    strides: Sequence[int],
    pads: Sequence[int],
    dilations: Sequence[int],
    activation: str,
    alpha: float,
    allow_tf32: bool,
    tactic: str,
) -> Tensor:
    """Compute ``act(conv(x, weight) + bias + residual)`` with channels-last tensors.

    ``metadata`` belongs to 2:4 weights (`trtkp.graph.two_four.compress`). ``allow_tf32`` lets float32 products be
    rounded. An empty ``tactic`` chooses the fastest. The output is [N, F, P, Q] with the channels innermost and a pitch
    that is a multiple of 8.
    """
    lists = Lists(tuple(weight_shape), groups, base, list_block, metadata is not None)  # type: ignore[arg-type]
    geometry = Geometry(tuple(strides), tuple(pads), tuple(dilations))  # type: ignore[arg-type]
    y = _empty_output(x, weight_shape, strides, pads, dilations)
    run(lists, geometry, Epilogue(activation, alpha), x=x, y=y, weight=weight, index=index, row_group=row_group,
        row_filter=row_filter, metadata=metadata, bias=bias, residual=residual, allow_tf32=allow_tf32,
        tactic=tactic)  # fmt: skip
    return y


@conv_op.register_fake
def _fake(
    x: Tensor, weight: Tensor, index: Tensor, row_group: Tensor, row_filter: Tensor,  # noqa: ARG001 (as conv_op)
    bias: Tensor | None, residual: Tensor | None, metadata: Tensor | None, weight_shape: Sequence[int],  # noqa: ARG001
    groups: int, base: str, list_block: int, strides: Sequence[int], pads: Sequence[int],  # noqa: ARG001
    dilations: Sequence[int], activation: str, alpha: float, allow_tf32: bool, tactic: str,  # noqa: ARG001
) -> Tensor:  # fmt: skip
    return _empty_output(x, weight_shape, strides, pads, dilations)


def run(
    lists: Lists, geometry: Geometry, epilogue: Epilogue, *, x: Tensor, y: Tensor, tactic: str = "",
    residual: Tensor | None = None, allow_tf32: bool = False, **tensors: Any,
) -> None:  # fmt: skip
    """Compute a packed convolution into ``y``, on the current stream of the tensors' device.

    Raises:
        InputError: the kernels do not run on the device, or the tensors do not fit.
    """
    library = load_library()
    named = {"x": x, "y": y, "residual": residual} | tensors
    for name, tensor in named.items():
        if tensor is not None and tensor.device != x.device:
            raise InputError(f"{name} is on {tensor.device}, x on {x.device}")
    _require_device(x.device, library)
    task = Task.of(
        library, lists, geometry, epilogue, x=activation_view(x, "x"), y=activation_view(y, "y"),
        residual=None if residual is None else activation_view(residual, "residual"), allow_tf32=allow_tf32, **tensors,
    )  # fmt: skip
    if x.device.type == "cpu":
        _launch(task, tactic or choose(task, known_gpu(_EMULATED_GPU), None), 0, x.device)
        return
    with torch.cuda.device(x.device):
        stream = torch.cuda.current_stream().cuda_stream

        def launch(name: str) -> None:
            _launch(task, name, stream, x.device)

        may_time = not torch.cuda.is_current_stream_capturing()
        launch(tactic or choose(task, _gpu(x.device), (lambda name: _time(launch, name)) if may_time else None))


def _empty_output(
    x: Tensor, weight_shape: Sequence[int], strides: Sequence[int], pads: Sequence[int], dilations: Sequence[int]
) -> Tensor:
    size = [
        (x.shape[2 + i] + pads[i] + pads[i + 2] - (weight_shape[2 + i] - 1) * dilations[i] - 1) // strides[i] + 1
        for i in range(2)
    ]
    if not torch.compiler.is_compiling() and min(size) < 1:
        raise InputError(f"x {list(x.shape)} is smaller than the kernel {list(weight_shape[2:])} with its dilation")
    y = x.new_empty((x.shape[0], *size, output_pitch(weight_shape[0])))
    return y.permute(0, 3, 1, 2)[:, : weight_shape[0]]


def _launch(task: Task, tactic: str, stream: int, device: torch.device) -> None:
    size = task.library.workspace_bytes(task.desc, tactic)
    # The workspace may be freed right after the launch: the caching allocator reuses it only for later work of the same
    # stream.
    space = torch.empty(size, dtype=torch.uint8, device=device) if size else None
    task.launch(tactic, stream, None if space is None else view(space, "workspace"))


def _time(launch: Any, tactic: str) -> list[float]:
    """Milliseconds of each of `RUNS` launches, between events, after one launch that is not timed."""
    launch(tactic)
    events = [torch.cuda.Event(enable_timing=True) for _ in range(RUNS + 1)]
    events[0].record()
    for event in events[1:]:
        launch(tactic)
        event.record()
    events[-1].synchronize()
    return [first.elapsed_time(second) for first, second in pairwise(events)]


def _require_device(device: torch.device, library: Library) -> None:
    if device.type == "cpu" and library.emulated:
        return
    if device.type != "cuda":
        raise InputError(f"x is on {device}: the kernels run on CUDA devices", remedy="move the tensors with .cuda()")
    if library.emulated:
        raise InputError("an emulated library takes no CUDA tensors", file=library.path, remedy="unset TRTKP_LIBRARY")
    capability = torch.cuda.get_device_capability(device)
    if capability < (8, 0):
        found = ".".join(map(str, capability))
        raise InputError(
            f"{torch.cuda.get_device_name(device)} has compute capability {found}: the kernels need 8.0 or later"
        )


def _gpu(device: torch.device) -> Gpu:
    return gpu_like(torch.cuda.get_device_properties(device))
