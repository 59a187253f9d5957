"""Random dynamic pattern convolutions, as the C interface takes them."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trtkp.kernels.capi import INTERFACE_VERSION

from .cases import (
    ACTIVATIONS,
    DTYPES,
    Array,
    ConvDesc,
    Convolution,
    random_epilogue,
    random_geometry,
)

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
class DynamicCase(Convolution):
    """One layer with its data: ``kernels`` [P, F, C, R, S], 0 where a pattern drops a tap; ``attention`` [N, P, F]."""

    kernels: Array
    attention: Array
    taps: Array

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """F, C, R and S."""
        return self.kernels.shape[1:]

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
            ctypes.sizeof(ConvDesc), INTERFACE_VERSION, list(DTYPES).index(self.dtype),
            len(self.x), *self.x.shape[2:], channels, filters, rows, columns,
            *self.strides, *self.pads, *self.dilations, 1, 1, 1, len(self.taps), filters, 1,
            *self.pitches, self.bias is not None, self.residual is not None, ACTIVATIONS.index(self.activation),
            self.alpha, 0,
        )  # fmt: skip
        return DynamicDesc(ctypes.sizeof(DynamicDesc), INTERFACE_VERSION, patterns, 0, conv)

    def write(self, path: Path, tactic: str, seed: int, desc: DynamicDesc | None = None) -> None:
        """The file that run_dynamic reads."""
        x, residual = self.activations()
        arrays = [x, self.packed, self.attention, self.taps, self.bias, residual]
        self.write_file(path, desc or self.desc(), DYNAMIC_TACTICS[tactic], seed, arrays)


def random_dynamic_case(seed: int, *, dtype: str, whole: bool) -> DynamicCase:
    """A layer of any geometry; with ``whole``, channels and pitches are multiples of 8, as tensor cores need."""
    rng = np.random.default_rng(seed)
    kernel = [(1, 1), (3, 3), (2, 3), (5, 5), (1, 4)][rng.choice(5, p=[0.15, 0.55, 0.1, 0.1, 0.1])]
    patterns, filters, batch = int(rng.integers(1, 6)), int(rng.integers(1, 80)), int(rng.integers(1, 7))
    channels = 8 * int(rng.integers(1, 4)) if whole else int(rng.integers(1, 20))
    masks = rng.random((patterns, *kernel)) < rng.choice([0.0, 0.3, 0.6, 1.0], p=[0.05, 0.45, 0.4, 0.1])
    taps = np.flatnonzero(masks.any(axis=0))
    padding = int(rng.integers(0, 3)) + (len(taps) == 0)
    sizes, geometry = random_geometry(rng, kernel)
    scale = 1 / np.sqrt(max(1, len(taps) * channels))
    as_type = DTYPES[dtype]
    kernels = rng.normal(size=(patterns, filters, channels, *kernel)) * masks[:, None, None] * scale
    scores = np.exp(rng.normal(size=(batch, patterns, filters)))
    case = DynamicCase(
        x=rng.normal(size=(batch, channels, *sizes)).astype(as_type), kernels=kernels.astype(as_type),
        attention=(scores / scores.sum(axis=1, keepdims=True)).astype(as_type),
        taps=np.append(taps, [kernel[0] * kernel[1]] * padding).astype(np.int32), dtype=dtype, **geometry,
        **random_epilogue(rng, seed, channels, filters, as_type, multiple=8 if whole else 1),
    )  # fmt: skip
    return case.with_residual(rng)
