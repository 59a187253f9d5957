"""A packed convolution as kernels take it: lists on the device, a description for one input, and the launch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trtkp.cuda.arrays import DATA_TYPES, Activation4d, View, view
from trtkp.errors import InputError
from trtkp.graph.packing import PackedConv
from trtkp.graph.two_four import BLOCK_ROWS, LANES, STEP_COLUMNS, STORED_COLUMNS, compress
from trtkp.kernels.capi import ConvDesc, ConvTensors, Library

__all__ = [
    "ACTIVATIONS",
    "BASES",
    "PITCH_MULTIPLE",
    "DeviceConv",
    "Epilogue",
    "Geometry",
    "Lists",
    "Task",
    "stored_arrays",
]

#: Operators and activations, in the order of their numbers in the C interface.
BASES = ("KernelIndexConv", "StripeConv", "PatternConv")
ACTIVATIONS = ("", "Relu", "Relu6", "Silu", "HardSwish", "LeakyRelu")
#: Outputs that we allocate have a pitch that is a multiple of this: eight 16-bit channels are one 16-byte store.
PITCH_MULTIPLE = 8


@dataclass(frozen=True)
class Geometry:
    """Strides (h, w), pads (top, left, bottom, right) and dilations (h, w)."""

    strides: tuple[int, int] = (1, 1)
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilations: tuple[int, int] = (1, 1)

    @classmethod
    def of(cls, stride: int | Sequence[int], padding: int | Sequence[int], dilation: int | Sequence[int]) -> Geometry:
        """A geometry from the arguments of a PyTorch convolution.

        Each is one number or (h, w); padding may also be (top, left, bottom, right).

        Raises:
            InputError: an argument has another number of values.

        Example:
            >>> Geometry.of(2, (1, 0), 1)
            Geometry(strides=(2, 2), pads=(1, 0, 1, 0), dilations=(1, 1))
        """
        pads = tuple(padding) if not isinstance(padding, int) and len(padding) == 4 else _pair(padding, "padding") * 2
        return cls(_pair(stride, "stride"), pads, _pair(dilation, "dilation"))  # type: ignore[arg-type]


@dataclass(frozen=True)
class Epilogue:
    """The activation after the sums; ``alpha`` is the slope of LeakyRelu below 0.

    Raises:
        InputError: the activation is not known.
    """

    activation: str = ""
    alpha: float = 0.01

    def __post_init__(self) -> None:
        if self.activation not in ACTIVATIONS:
            known = ", ".join(name or "''" for name in ACTIVATIONS)
            raise InputError(f"activation {self.activation}: not known", remedy=f"use one of {known}")


@dataclass(frozen=True)
class Lists:
    """The properties of a layer's lists that its description needs.

    Attributes:
        weight_shape: (F, C, R, S) of the dense weight.
        groups: number of ONNX groups.
        base: the operator, one of `BASES`.
        block: 8 if the lists come in blocks of 8 channels, else 1.
        two_four: whether weights are 2:4.
    """

    weight_shape: tuple[int, int, int, int]
    groups: int
    base: str
    block: int
    two_four: bool = False


class DeviceConv:
    """The lists and weights of a packed convolution on a device. They are checked on the host and uploaded once.

    2:4 weights are compressed to [rows, 32·S] and ``metadata`` (`trtkp.graph.two_four`); otherwise ``metadata`` is
    None.

    Args:
        packed: the convolution.
        to_device: function from a NumPy array to an array on the device. It gets int32 lists, and the weight.
        library: the kernel library, which checks the lists.

    Raises:
        InputError: the lists are malformed, or no kernel takes the type of the weight.
    """

    def __init__(self, packed: PackedConv, to_device: Callable[[np.ndarray[Any, Any]], Any], library: Library) -> None:
        self.lists = checked_lists(packed, library)
        arrays = {name: None if array is None else to_device(array) for name, array in stored_arrays(packed).items()}
        self.weight = arrays["weight"]
        self.index = arrays["index"]
        self.row_group = arrays["row_group"]
        self.row_filter = arrays["row_filter"]
        self.metadata = arrays["metadata"]


def stored_arrays(packed: PackedConv) -> dict[str, np.ndarray[Any, Any] | None]:
    """The arrays that a kernel reads, by name. ``metadata`` is None unless weights are 2:4.

    Raises:
        InputError: the weights should be 2:4, but are not.
    """
    weight, metadata = compress(packed.weight) if packed.two_four else (packed.weight, None)
    return {"weight": weight, "index": packed.index, "row_group": packed.row_group, "row_filter": packed.filters,
            "metadata": metadata}  # fmt: skip


def checked_lists(packed: PackedConv, library: Library) -> Lists:
    """Check the lists of a packed convolution with the library.

    Raises:
        InputError: an entry is wrong. The message names it.
    """
    filters, channels, rows, columns = packed.weight_shape
    if packed.weight.dtype.name not in DATA_TYPES:
        raise InputError(f"weight is {packed.weight.dtype}", remedy=f"use one of {', '.join(DATA_TYPES)}")
    lists = [np.ascontiguousarray(a, np.int32) for a in (packed.index, packed.row_group, packed.filters)]
    if len(lists[1]) != len(packed.weight) or len(lists[2]) != len(packed.weight):
        raise InputError(
            f"{len(packed.weight)} rows of weight, but {len(lists[1])} row groups, {len(lists[2])} filters"
        )
    desc = ConvDesc.of(
        dataType=DATA_TYPES[packed.weight.dtype.name][0], batch=1, height=rows, width=columns, channels=channels,
        filters=filters, kernelRows=rows, kernelColumns=columns, strideH=1, strideW=1, dilationH=1, dilationW=1,
        groups=packed.groups, listKind=BASES.index(packed.base), listGroups=len(packed.index),
        listLength=packed.index.shape[1], rows=len(packed.weight), listBlock=1, xPitch=channels * packed.groups,
        yPitch=filters, twoFour=packed.two_four,
    )  # fmt: skip
    block = library.check_lists(desc, *(array.ctypes.data for array in lists))
    return Lists(packed.weight_shape, packed.groups, packed.base, block, packed.two_four)


@dataclass(frozen=True)
class Task:
    """One convolution on one input, ready to be launched with any of its tactics."""

    library: Library
    desc: ConvDesc
    fields: dict[str, int]

    @classmethod
    def of(
        cls, library: Library, lists: Lists, geometry: Geometry, epilogue: Epilogue, *, x: Activation4d,
        y: Activation4d, weight: Any, index: Any, row_group: Any, row_filter: Any, metadata: Any = None,
        bias: Any = None, residual: Activation4d | None = None, allow_tf32: bool = False,
    ) -> Task:  # fmt: skip
        """Describe a convolution on given tensors, and check that they fit.

        Raises:
            InputError: the types, shapes or memory orders of the tensors do not fit.
        """
        desc = describe(lists, geometry, epilogue, x=x, index=view(index, "index"),
                        rows=view(row_filter, "row_filter").shape[0], y_pitch=y.pitch,
                        residual_pitch=residual.pitch if residual else 0, has_bias=bias is not None,
                        allow_tf32=allow_tf32)  # fmt: skip
        filters = lists.weight_shape[0]
        out = (x.shape[0], filters, *library.output_size(desc))
        columns = _columns(lists, desc.listLength)
        steps = -(-columns // STEP_COLUMNS)
        stored = steps * STORED_COLUMNS if lists.two_four else columns
        if (metadata is not None) != lists.two_four:
            raise InputError(
                "metadata is None, but the weights are 2:4" if lists.two_four
                else "metadata is given, but the weights are not 2:4"
            )  # fmt: skip
        _require(y, out, x.dtype)
        if residual:
            _require(residual, out, x.dtype)
        flat = {
            "weight": (
                view(weight, "weight"),
                (desc.rows, stored),
                x.dtype,
            ),
            "index": (view(index, "index"), (desc.listGroups, desc.listLength), "int32"),
            "rowGroup": (view(row_group, "row_group"), (desc.rows,), "int32"),
            "rowFilter": (view(row_filter, "row_filter"), (desc.rows,), "int32"),
        }
        if metadata is not None:
            blocks = -(-desc.rows // BLOCK_ROWS)
            flat["metadata"] = (view(metadata, "metadata"), (blocks, steps, LANES), "int32")
        if bias is not None:
            flat["bias"] = (view(bias, "bias"), (filters,), x.dtype)
        for found, shape, dtype in flat.values():
            _require(found, shape, dtype)
            if not found.contiguous:
                raise InputError(f"{found.name} is not contiguous")
        fields = {name: found.address for name, (found, _, _) in flat.items()}
        fields |= {"x": x.address, "y": y.address} | ({"residual": residual.address} if residual else {})
        return cls(library, desc, fields)

    def launch(self, tactic: str, stream: int, workspace: View | None = None) -> None:
        """Enqueue the convolution. ``workspace`` must have at least `Library.workspace_bytes`."""
        space = {"workspace": workspace.address, "workspaceBytes": workspace.shape[0]} if workspace else {}
        self.library.launch(self.desc, tactic, ConvTensors.of(**self.fields, **space), stream)


def describe(
    lists: Lists, geometry: Geometry, epilogue: Epilogue, *, x: Activation4d, index: View, rows: int, y_pitch: int,
    residual_pitch: int, has_bias: bool, allow_tf32: bool = False,
) -> ConvDesc:  # fmt: skip
    """The description of a layer on one input. Pitches are in elements; a residual pitch of 0 means no residual.

    Raises:
        InputError: the input has other channels than the weight, or no kernel takes its type.
    """
    filters, channels, kernel_rows, kernel_columns = lists.weight_shape
    if x.shape[1] != channels * lists.groups:
        raise InputError(f"x has {x.shape[1]} channels, the weight {channels} in each of {lists.groups} ONNX groups")
    if x.dtype not in DATA_TYPES:
        raise InputError(f"x is {x.dtype}", remedy=f"use one of {', '.join(DATA_TYPES)}")
    if len(index.shape) != 2:
        raise InputError(f"index has shape {list(index.shape)}, expected two axes")
    top, left, bottom, right = geometry.pads
    return ConvDesc.of(
        dataType=DATA_TYPES[x.dtype][0], batch=x.shape[0], height=x.shape[2], width=x.shape[3], channels=channels,
        filters=filters, kernelRows=kernel_rows, kernelColumns=kernel_columns, strideH=geometry.strides[0],
        strideW=geometry.strides[1], padTop=top, padLeft=left, padBottom=bottom, padRight=right,
        dilationH=geometry.dilations[0], dilationW=geometry.dilations[1], groups=lists.groups,
        listKind=BASES.index(lists.base), listGroups=index.shape[0], listLength=index.shape[1], rows=rows,
        listBlock=lists.block, xPitch=x.pitch, yPitch=y_pitch, residualPitch=residual_pitch, hasBias=has_bias,
        hasResidual=residual_pitch > 0, activation=ACTIVATIONS.index(epilogue.activation), alpha=epilogue.alpha,
        allowTf32=allow_tf32, twoFour=lists.two_four,
    )  # fmt: skip


def output_pitch(filters: int) -> int:
    """Pitch of an output that we allocate: F rounded up to `PITCH_MULTIPLE`, so that every tactic can write it.

    Example:
        >>> output_pitch(60)
        64
    """
    return -(-filters // PITCH_MULTIPLE) * PITCH_MULTIPLE


def _columns(lists: Lists, length: int) -> int:
    _, channels, rows, columns = lists.weight_shape
    return {"KernelIndexConv": rows * columns * length, "StripeConv": length * channels}.get(lists.base, length)


def _require(found: View, shape: tuple[int, ...], dtype: str) -> None:
    if found.shape != shape or found.dtype != dtype:
        raise InputError(f"{found.name} is {found.dtype}{list(found.shape)}, expected {dtype}{list(shape)}")


def _pair(value: int | Sequence[int], name: str) -> tuple[int, int]:
    if isinstance(value, int):
        return value, value
    if len(value) != 2:
        raise InputError(f"{name} has {len(value)} values", remedy="give one number, or two for height and width")
    return value[0], value[1]
