"""Layers as a plugin has them: fields, and tensors in TensorRT's formats."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from tests.emulation.cases import DTYPES, Array, Case, nhwc, random_case
from tests.emulation.dynamic_cases import DynamicCase, random_dynamic_case
from trtkp.graph.two_four import compress

#: nvinfer1::DataType.
TYPES = {"float32": 0, "float16": 1, "bfloat16": 7}
#: nvinfer1::PluginFieldType.
FLOAT32, INT8, INT32, CHAR = 1, 3, 5, 6


@dataclass(frozen=True)
class Field:
    """A field as it is handed over: type, length and bytes need not agree."""

    name: str
    type: int
    length: int
    data: bytes | None

    @classmethod
    def of(cls, name: str, values: Sequence[int] | float) -> Field:
        """A good one."""
        if isinstance(values, float):
            return cls(name, FLOAT32, 1, np.float32(values).tobytes())
        return cls(name, INT32, len(values), np.array(values, np.int32).tobytes())

    def line(self) -> str:
        """As plugin_host reads it."""
        return f"field {self.name} {self.type} {self.length} {'' if self.data is None else self.data.hex()}".strip()


def padded(array: Array, dtype: str) -> Array:
    """[N, C, H, W] as TensorRT holds it: kHWC8 with NaN in the channels that pad, or kHWC in float32."""
    channels = array.shape[1]
    return nhwc(array, channels if dtype == "float32" else -(-channels // 8) * 8)


@dataclass(frozen=True)
class Layer:
    """An operator with its fields, input arrays (activations in NCHW) and the answer."""

    op: str
    fields: tuple[Field, ...]
    inputs: tuple[Array, ...]
    output_shape: tuple[int, ...]
    dtype: str
    lines: tuple[str, ...] = field(default=())

    def write(self, path: Path) -> None:
        """The two files that plugin_host reads."""
        stored = [padded(a, self.dtype) if a.ndim == 4 else np.ascontiguousarray(a) for a in self.inputs]
        shapes = [
            *((array.shape, raw.nbytes) for array, raw in zip(self.inputs, stored, strict=True)),
            (self.output_shape, self.stored_output[1]),
        ]
        tensors = [f"tensor {size} {' '.join(map(str, shape))}" for shape, size in shapes]
        lines = [
            f"operator {self.op}",
            *(f.line() for f in self.fields),
            f"type {TYPES[self.dtype]}",
            *tensors,
            *self.lines,
        ]
        path.write_text("\n".join(lines) + "\n")
        path.with_name(path.name + ".bin").write_bytes(b"".join(raw.tobytes() for raw in stored))

    @property
    def stored_output(self) -> tuple[tuple[int, ...], int]:
        """Shape and bytes of Y in memory."""
        n, filters, p, q = self.output_shape
        pitch = filters if self.dtype == "float32" else -(-filters // 8) * 8
        return (n, p, q, pitch), n * p * q * pitch * DTYPES[self.dtype].itemsize

    def read(self, path: Path) -> tuple[Array, Array]:
        """Y in float64 as [N, F, P, Q], and its padded channels."""
        y = np.frombuffer(path.read_bytes(), DTYPES[self.dtype]).reshape(self.stored_output[0]).astype(np.float64)
        filters = self.output_shape[1]
        return y[..., :filters].transpose(0, 3, 1, 2), y[..., filters:]


def geometry(case: Case | DynamicCase, weight_shape: Sequence[int]) -> list[Field]:
    """The fields that every operator has."""
    fields = [Field.of(name, getattr(case, name)) for name in ("strides", "pads", "dilations")]
    fields.append(Field.of("weight_shape", weight_shape))
    if case.activation == "LeakyRelu":
        fields.append(Field.of("alpha", float(case.alpha)))
    return fields


def epilogue(case: Case | DynamicCase) -> str:
    """The end of an operator's name."""
    return ("" if case.residual is None else "Add") + case.activation


def with_bias(case: Any) -> Any:
    """Operators always have a bias."""
    filters = case.weight.shape[0] if isinstance(case, Case) else case.kernels.shape[1]
    return case if case.bias is not None else replace(case, bias=np.zeros(filters, DTYPES[case.dtype]))


def listed_layer(seed: int, *, base: str, dtype: str, blocks: bool, two_four: bool = False) -> tuple[Layer, Case]:
    """A random layer with static lists."""
    case: Case = with_bias(random_case(seed, base=base, dtype=dtype, blocks=blocks, two_four=two_four))
    packed = case.packed
    weight, metadata = compress(packed.weight) if two_four else (packed.weight, None)
    inputs: list[Any] = [case.x, weight, packed.index, packed.row_group, packed.filters, case.bias]
    inputs += [] if case.residual is None else [case.residual]
    inputs += [] if metadata is None else [metadata]
    fields = [
        *geometry(case, case.weight.shape),
        Field.of("group", [case.groups]),
        Field.of("list_block", [case.block]),
    ]
    op = f"{packed.base}{'24' if two_four else ''}{epilogue(case)}"
    shape = (len(case.x), len(case.weight), *case.output_size)
    return Layer(op, tuple(fields), tuple(inputs), shape, dtype), case


def dynamic_layer(seed: int, *, dtype: str, whole: bool) -> tuple[Layer, DynamicCase]:
    """A random layer with a dynamic pattern."""
    case = random_dynamic_case(seed, dtype=dtype, whole=whole)
    case = with_bias(case)
    inputs: list[Any] = [case.x, case.packed, case.taps[None], case.attention, case.bias]
    inputs += [] if case.residual is None else [case.residual]
    fields = [*geometry(case, case.kernels.shape[1:]), Field.of("channels", [case.kernels.shape[2]])]
    shape = (len(case.x), case.kernels.shape[1], *case.output_size)
    return Layer(f"DynamicPatternConv{epilogue(case)}", tuple(fields), tuple(inputs), shape, dtype), case
