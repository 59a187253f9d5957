"""Random dynamic pattern convolutions, as the C interface takes them."""

from __future__ import annotations

import ctypes
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .cases import ACTIVATIONS, DTYPES, Array, ConvDesc, nhwc

#: Tactics of the dynamic pattern, by number.
DYNAMIC_TACTICS = {"dynamic_reference": 48, "dynamic_128x64": 49, "dynamic_64x64": 50}


class DynamicDesc(ctypes.Structure):
    """``trtkpDynamicDesc``."""

    _fields_ = [
        ("structSize", ctypes.c_uint32),
        ("interfaceVersion", ctypes.c_uint32),
        ("patterns", ctypes.c_int32),
        ("reserved", ctypes.c_uint32),
        ("conv", ConvDesc),
    ]


@dataclass(frozen=True)
class DynamicCase:
    """One layer with its data; activations are NCHW. ``kernels`` is [P, F, C, R, S], 0 where a pattern drops a tap."""

    x: Array
    kernels: Array
    attention: Array
    taps: Array
    bias: Array | None
    residual: Array | None
    activation: str
    alpha: float
    strides: tuple[int, int]
    pads: tuple[int, int, int, int]
    dilations: tuple[int, int]
    dtype: str
    pitches: tuple[int, int, int]

    @property
    def output_size(self) -> tuple[int, int]:
        """P and Q."""
        kernel, (top, left, bottom, right) = self.kernels.shape[3:], self.pads
        size = (self.x.shape[2] + top + bottom, self.x.shape[3] + left + right)
        p, q = ((size[i] - (kernel[i] - 1) * self.dilations[i] - 1) // self.strides[i] + 1 for i in range(2))
        return p, q

    @property
    def packed(self) -> Array:
        """[P, F, T·C], channels innermost, 0 at padding."""
        patterns, filters, channels = self.kernels.shape[:3]
        spare = np.zeros((patterns, filters, channels, 1), self.kernels.dtype)
        flat = np.concatenate([self.kernels.reshape(patterns, filters, channels, -1), spare], axis=3)
        return flat[..., self.taps].transpose(0, 1, 3, 2).reshape(patterns, filters, -1)

    def want(self, oracle: Any) -> Array:
        """The answer in float64, sample by sample."""
        samples = []
        for n, x in enumerate(self.x):
            weight = np.einsum("pf,pfcrs->fcrs", self.attention[n].astype(float), self.kernels.astype(float))
            samples.append(
                oracle(
                    x[None], weight, bias=self.bias, residual=None if self.residual is None else self.residual[n][None],
                    activation=self.activation, alpha=self.alpha, strides=self.strides, pads=self.pads,
                    dilations=self.dilations,
                )
            )  # fmt: skip
        return np.concatenate(samples)

    def desc(self) -> DynamicDesc:
        """The description."""
        patterns, filters, channels, rows, columns = self.kernels.shape
        conv = ConvDesc(
            ctypes.sizeof(ConvDesc), 2, list(DTYPES).index(self.dtype), len(self.x), *self.x.shape[2:], channels,
            filters, rows, columns, *self.strides, *self.pads, *self.dilations, 1, 1, 1, len(self.taps), filters, 1,
            *self.pitches, self.bias is not None, self.residual is not None, ACTIVATIONS.index(self.activation),
            self.alpha, 0,
        )  # fmt: skip
        return DynamicDesc(ctypes.sizeof(DynamicDesc), 2, patterns, 0, conv)

    def write(self, path: Path, tactic: str, seed: int, desc: DynamicDesc | None = None) -> None:
        """The file that run_dynamic reads."""
        x_pitch, y_pitch, residual_pitch = self.pitches
        residual = None if self.residual is None else nhwc(self.residual, residual_pitch)
        arrays = [nhwc(self.x, x_pitch), self.packed, self.attention, self.taps, self.bias, residual]
        raw = [b"" if a is None else np.ascontiguousarray(a).tobytes() for a in arrays]
        out = int(np.prod((len(self.x), *self.output_size, y_pitch))) * DTYPES[self.dtype].itemsize
        head = bytes(desc or self.desc()) + struct.pack("=iI", DYNAMIC_TACTICS[tactic], seed)
        head += bytes(-len(head) % 8) + struct.pack("=7q", *map(len, raw), out)
        path.write_bytes(head + b"".join(raw))

    def read(self, path: Path) -> tuple[Array, Array]:
        """What run_dynamic wrote: the output in float64 as [N, F, P, Q], and its padded channels."""
        shape = (len(self.x), *self.output_size, self.pitches[1])
        y = np.frombuffer(path.read_bytes(), DTYPES[self.dtype]).reshape(shape).astype(np.float64)
        filters = self.kernels.shape[1]
        return y[..., :filters].transpose(0, 3, 1, 2), y[..., filters:]


def random_dynamic_case(seed: int, *, dtype: str, whole: bool) -> DynamicCase:
    """A layer of any geometry; with ``whole``, channels and pitches are multiples of 8, as tensor cores need."""
    rng = np.random.default_rng(seed)
    kernel = [(1, 1), (3, 3), (2, 3), (5, 5), (1, 4)][rng.choice(5, p=[0.15, 0.55, 0.1, 0.1, 0.1])]
    patterns, filters, batch = int(rng.integers(1, 6)), int(rng.integers(1, 80)), int(rng.integers(1, 7))
    multiple = 8 if whole else 1
    channels = 8 * int(rng.integers(1, 4)) if whole else int(rng.integers(1, 20))
    masks = rng.random((patterns, *kernel)) < rng.choice([0.0, 0.3, 0.6, 1.0], p=[0.05, 0.45, 0.4, 0.1])
    taps = np.flatnonzero(masks.any(axis=0))
    padding = int(rng.integers(0, 3)) + (len(taps) == 0)
    dilations = (int(rng.integers(1, 3)), int(rng.integers(1, 3)))
    pads = tuple(int(p) for p in rng.integers(0, 1 + max(kernel) // 2 * 2, size=4))
    least = [(kernel[i] - 1) * dilations[i] + 1 - pads[i] - pads[i + 2] for i in range(2)]
    size = [max(least[i], 1) + int(rng.integers(0, 9)) for i in range(2)]
    scale = 1 / np.sqrt(max(1, len(taps) * channels))
    as_type = DTYPES[dtype]
    kernels = rng.normal(size=(patterns, filters, channels, *kernel)) * masks[:, None, None] * scale
    scores = np.exp(rng.normal(size=(batch, patterns, filters)))
    x_pitch, y_pitch, residual_pitch = (
        -(-n // multiple) * multiple + multiple * int(rng.integers(0, 2)) for n in (channels, filters, filters)
    )
    bias = rng.normal(size=filters).astype(as_type) if rng.random() < 0.7 else None
    case = DynamicCase(
        x=rng.normal(size=(batch, channels, *size)).astype(as_type), kernels=kernels.astype(as_type),
        attention=(scores / scores.sum(axis=1, keepdims=True)).astype(as_type),
        taps=np.append(taps, [kernel[0] * kernel[1]] * padding).astype(np.int32), bias=bias, residual=None,
        activation=ACTIVATIONS[seed % len(ACTIVATIONS)], alpha=0.2,
        strides=(int(rng.integers(1, 4)), int(rng.integers(1, 3))), pads=pads, dilations=dilations, dtype=dtype,
        pitches=(x_pitch, y_pitch, 0),
    )  # type: ignore[arg-type]  # fmt: skip
    if rng.random() < 0.5:
        residual = rng.normal(size=(batch, filters, *case.output_size)).astype(as_type)
        case = DynamicCase(**{**vars(case), "residual": residual, "pitches": (x_pitch, y_pitch, residual_pitch)})
    return case
