"""Random packed convolutions, as the C interface takes them."""

from __future__ import annotations

import ctypes
import struct
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import ml_dtypes
import numpy as np

from trtkp.graph.packing import PackedConv, pack
from trtkp.graph.two_four import compress
from trtkp.index.index_set import IndexSet, Kind, from_mask
from trtkp.kernels.capi import INTERFACE_VERSION, ConvDesc
from trtkp.pruning.nm import two_four_mask

Array = np.ndarray[Any, Any]

DTYPES = {"float32": np.dtype(np.float32), "float16": np.dtype(np.float16), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
TOLERANCE = {"float16": 2e-3, "bfloat16": 1e-2, "tf32": 2e-3}
BASES = ("KernelIndexConv", "StripeConv", "PatternConv")
ACTIVATIONS = ("", "Relu", "Relu6", "Silu", "HardSwish", "LeakyRelu")
FLOATS, HALVES = ("float32", "float16", "bfloat16"), ("float16", "bfloat16")


@dataclass(frozen=True)
class Tactic:
    """What a tactic takes: types, lists in blocks of 8 and whole ones, splits and columns of a step, 2:4 weights."""

    tier: str
    dtypes: tuple[str, ...] = HALVES
    blocks: bool = False
    whole: bool = False
    splits: int = 1
    step: int = 32
    tf32: bool = False
    two_four: bool = False

    @property
    def least(self) -> int:
        """The fewest columns of a list: each split needs a step."""
        return self.splits * self.step if self.splits > 1 else 0


def _narrow(splits: int = 1) -> Tactic:
    return Tactic("T1", blocks=True, splits=splits)


def _wide(splits: int = 1) -> Tactic:
    return Tactic("T1", blocks=True, whole=True, splits=splits, step=64)


def _wide32(splits: int = 1, *, tf32: bool = False) -> Tactic:
    return Tactic("T1", FLOATS[:1], blocks=True, whole=True, splits=splits, tf32=tf32)


def _sparse(splits: int = 1, *, blocks: bool = True) -> Tactic:
    return Tactic("T4", blocks=blocks, splits=splits, step=64, two_four=True)


#: Tactics in the order of their numbers.
TACTIC = {
    "reference": Tactic("T0", FLOATS),
    "mma_128x128": _narrow(), "mma_128x64": _narrow(), "mma_64x64": _narrow(), "mma_64x32": _narrow(),
    "mma_64x64_split4": _narrow(4), "mma_64x64_split16": _narrow(16), "mma_64x32_split4": _narrow(4),
    "mma_128x128_k64": _wide(), "mma_128x64_k64": _wide(), "mma_64x64_k64": _wide(), "mma_128x32_k64": _wide(),
    "mma_64x64_k64_split4": _wide(4), "mma_64x64_k64_split16": _wide(16),
    "tf32_128x64": _wide32(tf32=True), "tf32_64x64": _wide32(tf32=True), "tf32_64x64_split4": _wide32(4, tf32=True),
    "simt_128x64": _wide32(), "simt_64x32": _wide32(), "simt_64x32_split4": _wide32(4),
    "single_128x64": Tactic("T3"), "single_128x32": Tactic("T3"), "single_128x16": Tactic("T3"),
    "single_128x32_split4": Tactic("T3", splits=4, step=64), "single_tf32_128x64": Tactic("T3", FLOATS[:1], tf32=True),
    "single_simt_64x32": Tactic("T3", FLOATS[:1]), "direct": Tactic("T3", FLOATS),
    "sparse_128x128": _sparse(), "sparse_128x64": _sparse(), "sparse_64x64": _sparse(),
    "sparse_64x64_split4": _sparse(4), "sparse_singles_64x64": _sparse(blocks=False),
    "sparse_singles_64x128": _sparse(blocks=False),
}  # fmt: skip
TACTICS = tuple(TACTIC)
#: T4's numbers begin at 32.
NUMBERS = dict(zip(TACTIC, (*range(27), *range(32, 38)), strict=True))
BLOCK = 8


@dataclass(frozen=True)
class Convolution(ABC):
    """What every case has: activations [N, C, H, W] with their pitches, epilogue and geometry."""

    x: Array
    bias: Array | None
    residual: Array | None
    activation: str
    alpha: float
    strides: tuple[int, int]
    pads: tuple[int, int, int, int]
    dilations: tuple[int, int]
    dtype: str
    #: Of x, y and the residual.
    pitches: tuple[int, int, int]

    @property
    @abstractmethod
    def weight_shape(self) -> tuple[int, ...]:
        """F, C, R and S."""

    @property
    def output_size(self) -> tuple[int, int]:
        """P and Q."""
        kernel, (top, left, bottom, right) = self.weight_shape[2:], self.pads
        size = (self.x.shape[2] + top + bottom, self.x.shape[3] + left + right)
        p, q = ((size[i] - (kernel[i] - 1) * self.dilations[i] - 1) // self.strides[i] + 1 for i in range(2))
        return p, q

    @property
    def stored_shape(self) -> tuple[int, int, int, int]:
        """Of y in memory: N, P, Q and its pitch."""
        return len(self.x), *self.output_size, self.pitches[1]

    def with_residual(self, rng: np.random.Generator) -> Self:
        """The case with a residual, or with none and no pitch for it."""
        if rng.random() >= 0.5:
            return replace(self, pitches=(*self.pitches[:2], 0))
        shape = (len(self.x), self.weight_shape[0], *self.output_size)
        return replace(self, residual=rng.normal(size=shape).astype(self.x.dtype))

    def activations(self) -> tuple[Array, Array | None]:
        """x and the residual as they stand in memory."""
        return nhwc(self.x, self.pitches[0]), None if self.residual is None else nhwc(self.residual, self.pitches[2])

    def write_file(
        self, path: Path, desc: ctypes.Structure, tactic: int, seed: int, arrays: Sequence[Array | None]
    ) -> None:
        """The file that a program of case_file.h reads."""
        out = int(np.prod(self.stored_shape)) * DTYPES[self.dtype].itemsize
        write_case(path, desc, tactic, seed, arrays, out)

    def read(self, path: Path) -> tuple[Array, Array]:
        """What a program wrote: the output in float64 as [N, F, P, Q], and its padded channels."""
        y = np.frombuffer(path.read_bytes(), DTYPES[self.dtype]).reshape(self.stored_shape).astype(np.float64)
        filters = self.weight_shape[0]
        return y[..., :filters].transpose(0, 3, 1, 2), y[..., filters:]


@dataclass(frozen=True)
class Case(Convolution):
    """One layer with its data."""

    weight: Array
    index: IndexSet
    packed: PackedConv
    groups: int
    block: int
    tf32: bool = False

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """F, C, R and S."""
        return self.weight.shape

    @property
    def two_four(self) -> bool:
        """Whether weights are stored as 2:4."""
        return self.index.nm_mask is not None

    def want(self, oracle: Any) -> Array:
        """The answer in float64."""
        return oracle(
            self.x, self.weight, self.index.mask(), bias=self.bias, residual=self.residual, activation=self.activation,
            alpha=self.alpha, strides=self.strides, pads=self.pads, dilations=self.dilations, groups=self.groups,
        )  # fmt: skip

    def desc(self) -> ConvDesc:
        """The description."""
        filters, channels, rows, columns = self.weight.shape
        return ConvDesc(
            ctypes.sizeof(ConvDesc), INTERFACE_VERSION, list(DTYPES).index(self.dtype),
            len(self.x), *self.x.shape[2:], channels, filters, rows, columns,
            *self.strides, *self.pads, *self.dilations, self.groups,
            BASES.index(self.packed.base), *self.packed.index.shape, len(self.packed.weight), self.block, *self.pitches,
            self.bias is not None, self.residual is not None, ACTIVATIONS.index(self.activation), self.alpha,
            self.tf32, self.two_four,
        )  # fmt: skip

    def write(self, path: Path, tactic: str, seed: int) -> None:
        """The file that run_conv reads."""
        weight, metadata = compress(self.packed.weight) if self.two_four else (self.packed.weight, None)
        x, residual = self.activations()
        lists = self.packed.index, self.packed.row_group, self.packed.filters
        arrays = [x, weight, *lists, self.bias, residual, metadata]
        self.write_file(path, self.desc(), NUMBERS[tactic], seed, arrays)


def write_case(
    path: Path, desc: ctypes.Structure, tactic: int, seed: int, arrays: Sequence[Array | None], output_bytes: int
) -> None:
    """Header and tensors in the order of case_file.h."""
    raw = [b"" if a is None else np.ascontiguousarray(a).tobytes() for a in arrays]
    head = bytes(desc) + struct.pack("=iI", tactic, seed)
    head += bytes(-len(head) % 8) + struct.pack(f"={len(raw) + 1}q", *map(len, raw), output_bytes)
    path.write_bytes(head + b"".join(raw))


def nhwc(array: Array, pitch: int) -> Array:
    """[N, C, H, W] as [N, H, W, pitch], the padded channels full of NaN."""
    n, channels, height, width = array.shape
    padded = np.full((n, height, width, pitch), np.nan, array.dtype)
    padded[..., :channels] = array.transpose(0, 2, 3, 1)
    return padded


def random_case(
    seed: int,
    *,
    base: str,
    dtype: str,
    blocks: bool,
    whole: bool = False,
    long: bool = False,
    tf32: bool = False,
    two_four: bool = False,
    shape: tuple[int, int, tuple[int, int]] | None = None,
) -> Case:
    """A layer with lists of one kind, in blocks of eight channels (all of them whole), long or 2:4 where asked for.

    ``shape`` fixes the filters and channels of an ONNX group, and the kernel.
    """
    rng = np.random.default_rng(seed)
    kernel = [(1, 1), (3, 3), (2, 3), (1, 5), (5, 5), (7, 7), (4, 1)][
        rng.choice(7, p=[0.2, 0.35, 0.1, 0.1, 0.1, 0.05, 0.1])
    ]
    groups = int(rng.choice([1, 2, 3], p=[0.7, 0.2, 0.1]))
    per_group = int(rng.integers(1, 90 // groups))
    whole_blocks = blocks and (whole or base != "KernelIndexConv" or groups > 1)
    large = kernel[0] * kernel[1] > 9  # emulation is slow: few channels then, and few lists
    channels = (
        8 * int(rng.integers(1, 3 if large else 7)) if whole_blocks else int(rng.integers(1, 20 if large else 45))
    )
    if long:
        kernel, channels, per_group = (5, 5), 8 * int(rng.integers(4, 7)), int(rng.integers(1, 40 // groups))
    if shape is not None:
        per_group, channels, kernel = shape
    mask = random_mask(rng, base, (per_group * groups, channels, *kernel), groups, blocks, two_four)
    index = from_mask(mask, groups)
    if two_four:
        index = refined(rng, index, shuffled=not blocks)
    weight = rng.normal(size=mask.shape) / np.sqrt(max(1, index.retained / len(mask)))

    sizes, geometry = random_geometry(rng, kernel)
    x = rng.normal(size=(int(rng.integers(1, 6)), channels * groups, *sizes))

    as_type = DTYPES[dtype]
    list_multiple = BLOCK if blocks and index.kind is not Kind.STRIPE else int(rng.choice([1, 3]))
    row_multiple = int(rng.choice([1, 8, 32, 64]))
    packed = pack(weight.astype(as_type), index, row_multiple=row_multiple, list_multiple=list_multiple)
    case = Case(
        x=x.astype(as_type), weight=weight.astype(as_type), index=index, packed=packed, groups=groups, dtype=dtype,
        block=BLOCK if blocks else 1, tf32=tf32, **geometry,
        **random_epilogue(rng, seed, channels * groups, len(mask), as_type, multiple=8 if blocks else 1),
    )  # fmt: skip
    return case.with_residual(rng)


def random_geometry(rng: np.random.Generator, kernel: tuple[int, int]) -> tuple[list[int], dict[str, tuple[int, ...]]]:
    """H and W, a little more than the kernel needs, and strides, pads and dilations."""
    dilations = (int(rng.integers(1, 3)), int(rng.integers(1, 3)))
    pads = tuple(int(p) for p in rng.integers(0, 1 + max(kernel) // 2 * 2, size=4))
    least = [(kernel[i] - 1) * dilations[i] + 1 - pads[i] - pads[i + 2] for i in range(2)]
    sizes = [max(least[i], 1) + int(rng.integers(0, 10)) for i in range(2)]
    strides = (int(rng.integers(1, 4)), int(rng.integers(1, 3)))
    return sizes, {"strides": strides, "pads": pads, "dilations": dilations}


def random_epilogue(
    rng: np.random.Generator, seed: int, channels: int, filters: int, as_type: Any, *, multiple: int
) -> dict[str, Any]:
    """A bias or none, an activation, and pitches (multiples of ``multiple``) for x, y and a residual."""
    x_pitch, y_pitch, residual_pitch = (
        -(-n // multiple) * multiple + multiple * int(rng.integers(0, 2)) for n in (channels, filters, filters)
    )
    bias = rng.normal(size=filters).astype(as_type) if rng.random() < 0.7 else None
    return {"bias": bias, "residual": None, "activation": ACTIVATIONS[seed % len(ACTIVATIONS)], "alpha": 0.2,
            "pitches": (x_pitch, y_pitch, residual_pitch)}  # fmt: skip


def refined(rng: np.random.Generator, index: IndexSet, *, shuffled: bool) -> IndexSet:
    """2:4 inside product lists, whose entries may stand in any order."""
    if shuffled:
        channel = index.channel.copy()
        for first, end in zip(index.entry_ptr[:-1], index.entry_ptr[1:], strict=True):
            channel[first:end] = rng.permutation(channel[first:end])
        index = replace(index, channel=channel)
    return index.refined(two_four_mask(rng.normal(size=index.shape), index))


def random_mask(
    rng: np.random.Generator, base: str, shape: tuple[int, int, int, int], groups: int, blocks: bool, products: bool
) -> Array:
    """A mask whose filters share lists of the base's kind; some lists are empty, some full, some a single entry.

    With ``products`` lists have the same channels at every tap.
    """
    filters, channels, rows, columns = shape
    mask = np.zeros(shape, bool)
    share = int(rng.choice([16, 32, 100] if rows * columns > 6 else [3, 16, 32, 100]))
    share = 1 if rows * columns == 1 and rng.random() < 0.3 else share
    order = rng.permutation(filters) if rng.random() < 0.3 else np.arange(filters)
    for group in range(groups):
        mine = order[(order >= group * (filters // groups)) & (order < (group + 1) * (filters // groups))]
        for first in range(0, len(mine), share):
            density = rng.choice([0.0, 0.2, 0.5, 0.8, 1.0], p=[0.08, 0.3, 0.3, 0.24, 0.08])
            step = BLOCK if blocks else 1
            scores = rng.random((-(-channels // step), rows, columns))
            chosen = scores == scores.min() if rng.random() < 0.06 else scores < density
            if base == "KernelIndexConv":
                chosen[:] = chosen[:, :1, :1]
            elif base == "StripeConv":
                chosen[:] = chosen[:1]
            elif products:
                chosen = chosen[:, :1, :1] & (rng.random((1, rows, columns)) < 0.7)
            mask[mine[first : first + share]] = np.repeat(chosen, step, axis=0)[:channels]
    return mask
